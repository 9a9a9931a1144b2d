"""Which models a server has, how much they hold and what they cost, as far as it tells.

    openai      GET /models; OpenRouter, vLLM, llama.cpp, Groq and Mistral add sizes, OpenRouter prices
    anthropic   GET /v1/models
    ollama      GET /api/tags, then POST /api/show for each, on the same connection

An Ollama behind the OpenAI dialect is asked in its own: the other one knows neither sizes nor what was pulled.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any

from loom.models import classify, decode
from loom.models.anthropic import VERSION
from loom.models.base import Timeouts
from loom.models.classify import Endpoint
from loom.models.ollama import native_url
from loom.models.proxies import Proxy
from loom.models.transport import Client
from loom.wire import errors, jsontext
from loom.wire.provider import Price, Provider
from loom.wire.record import record

QUICK = Timeouts(connect_s=3.0, first_byte_s=5.0, idle_s=5.0)
MAX_MODELS = 10_000
_MAX_SHOWN_IN_DETAIL = 100  # models of one Ollama
_MAX_BYTES = 32 << 20
# Where servers of the OpenAI dialect put the size of a model's window.
_SIZES = ("context_length", "max_model_len", "context_window", "max_context_length", "max_input_tokens", "n_ctx")


@record
class Listed:
    """One model of a server. None: the server does not say."""

    name: str
    context: int | None = None
    price: Price | None = None


def list_models(provider: Provider, key: str, proxy: Proxy | None, timeouts: Timeouts = QUICK) -> tuple[Listed, ...]:
    """The models of a provider whose dialect is known, by name. Raises Unavailable and what the server refuses with."""
    asking = _Asking(provider, key, Client(timeouts, proxy))
    if provider.dialect == "anthropic":
        found = asking.anthropic()
    elif provider.dialect == "ollama" or provider.alias == "ollama":
        found = asking.ollama()
    else:
        found = asking.openai()
    return tuple(sorted(found, key=lambda model: model.name))


class _Asking:
    def __init__(self, provider: Provider, key: str, client: Client) -> None:
        self._base = provider.base_url.rstrip("/")
        self._endpoint = Endpoint(provider.alias, "models", provider.base_url, key=key)
        self._client = client
        self._hint = classify.OLLAMA_DOWN if provider.alias == "ollama" else ""

    def openai(self) -> Iterator[Listed]:
        for item in _items(self._get(f"{self._base}/models", self._bearer()), "data"):
            name = decode.text_of(item.get("id"))
            meta = _mapping(item.get("meta"))  # llama.cpp's
            size = _size(item) or _size(meta) or decode.count(meta.get("n_ctx_train"))
            if name:
                yield Listed(name, size or None, _price(item.get("pricing")))

    def anthropic(self) -> Iterator[Listed]:
        url = self._base + ("/models" if self._base.endswith("/v1") else "/v1/models")
        headers = {"x-api-key": self._endpoint.key, "anthropic-version": VERSION}
        for item in _items(self._get(f"{url}?limit=1000", headers), "data"):
            name = decode.text_of(item.get("id"))
            if name:
                yield Listed(name, _size(item) or None)

    def ollama(self) -> Iterator[Listed]:
        base = native_url(self._base)
        names = [decode.text_of(i.get("name")) for i in _items(self._get(f"{base}/api/tags", self._bearer()), "models")]
        for place, name in enumerate(filter(None, names)):
            size = None
            if place < _MAX_SHOWN_IN_DETAIL:
                try:
                    size = self._shown(f"{base}/api/show", name)
                except errors.LoomError:
                    pass  # a list without sizes is better than none
            yield Listed(name.removesuffix(":latest"), size)

    def _shown(self, url: str, name: str) -> int | None:
        """What this model is made for, or less where its Modelfile says so."""
        data = self._ask("POST", url, self._bearer(), jsontext.dumps({"model": name}))
        info = _mapping(data.get("model_info"))
        sizes = [decode.count(v) for k, v in info.items() if k.endswith(".context_length")]
        for line in decode.text_of(data.get("parameters")).splitlines():
            words = line.split()
            if len(words) == 2 and words[0] == "num_ctx" and words[1].isdecimal():
                sizes.append(int(words[1]))
        return min(filter(None, sizes), default=None)

    def _bearer(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self._endpoint.key}"} if self._endpoint.key else {}

    def _get(self, url: str, headers: Mapping[str, str]) -> Mapping[str, Any]:
        return self._ask("GET", url, headers, b"")

    def _ask(self, method: str, url: str, headers: Mapping[str, str], body: bytes) -> Mapping[str, Any]:
        headers = {"Accept": "application/json", "User-Agent": "loom", **headers}
        if body:
            headers["Content-Type"] = "application/json"
        asked = self._client.request(method, url, headers, body, hint=self._hint, max_body_bytes=_MAX_BYTES)
        with asked as response:
            said = b"".join(response.chunks) if 200 <= response.status < 300 else response.start_of_body(1 << 16)
        if not 200 <= response.status < 300:
            raise classify.http_error(self._endpoint, response.status, response.headers, said, time.time())
        data = decode.json_object(said)
        if data is None:
            raise errors.BrokenStream(f"{self._endpoint.alias} sent no list of models", hint="check base_url")
        return data


def _items(data: Mapping[str, Any], name: str) -> Iterator[Mapping[str, Any]]:
    found = data.get(name)
    yield from (item for item in (found if isinstance(found, list) else [])[:MAX_MODELS] if isinstance(item, dict))


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _size(item: Mapping[str, Any]) -> int:
    return next((size for size in (decode.count(item.get(name)) for name in _SIZES) if size), 0)


def _price(pricing: object) -> Price | None:
    """OpenRouter's: USD for one token, as text. A negative one means that it depends."""
    if not isinstance(pricing, dict):
        return None
    values = [_usd(pricing.get(name)) for name in ("prompt", "completion", "input_cache_read")]
    given, made, cached = values
    return None if given is None or made is None else Price(given, made, cached)


def _usd(value: object) -> float | None:
    if not isinstance(value, str | int | float) or isinstance(value, bool):
        return None
    try:
        usd = float(value) * 1e6
    except (ValueError, OverflowError):
        return None
    return round(usd, 6) if 0 <= usd < 1e9 else None
