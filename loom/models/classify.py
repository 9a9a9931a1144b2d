"""What went wrong with a provider, said once and for all. Pure.

Enters: status, headers and body of an answer, or the phase in which a connection failed; the present time.
Leaves: one loom.wire.errors.LoomError, one line long: who was asked, what was found, what to do next.
Text that servers sent is shown without control characters, at most 300 characters of it and never with the key.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

from loom.models import decode
from loom.wire import errors
from loom.wire.record import field, record

MAX_SAID_CHARS = 300
MAX_RETRY_AFTER_S = 3600.0  # a server that says "tomorrow" is asked again in an hour

OLLAMA_DOWN = "is it running? start it with: ollama serve"


@record
class Endpoint:
    """Who is asked for what: the words of an error.

    alias      the provider, as in a model's name
    model      the model's name at the provider
    base_url   where it is
    key_names  how a person sets the key, e.g. "OPENAI_API_KEY"; '' when none is needed
    key        the key, here only to be kept out of messages
    context    tokens its model is to have room for; 0: as the server has it
    """

    alias: str
    model: str
    base_url: str
    key_names: str = ""
    key: str = field(default="", repr=False)
    context: int = 0

    @property
    def name(self) -> str:
        """The model's full name."""
        return f"{self.alias}/{self.model}"


Phase = Literal["resolve", "connect", "tls", "send", "head", "first_byte", "body", "idle"]

# What was tried, and what to look at when the caller has nothing better to say.
_PHASES: dict[Phase, tuple[str, str]] = {
    "resolve": ("cannot find the host {host}", "check the name in base_url and the network"),
    "connect": ("cannot connect to {host}", "check that the server runs and base_url is right"),
    "tls": ("cannot agree on TLS with {host}", "check base_url (http or https), the clock and SSL_CERT_FILE"),
    "send": ("{host} did not take the request", "try again; check the network"),
    "head": ("{host} gave no proper answer", "check that base_url names a model server"),
    "first_byte": ("{host} was asked and stayed silent", "try again, or try a smaller model or request"),
    "body": ("{host} broke off in the middle of its answer", "try again"),
    "idle": ("{host} fell silent in the middle of its answer", "try again"),
}


def unreachable(phase: Phase, host: str, detail: str, hint: str = "", kind: str = "") -> errors.Unavailable:
    """A connection failed. `hint` replaces the general one when nobody answered at all; `kind` names a hang."""
    tried, check = _PHASES[phase]
    text = f"{tried.format(host=host)}: {clean(detail) or 'no reason given'}"
    if phase in ("body", "idle"):
        return errors.BrokenStream(text, hint=check, kind=kind)
    return errors.Unavailable(text, hint=hint if hint and phase in ("resolve", "connect") else check, kind=kind)


def is_transient(error: errors.LoomError) -> bool:
    """Whether the same request may succeed when it is sent again a little later."""
    return isinstance(error, errors.Unavailable | errors.TryLater)


def clean(text: str, key: str = "") -> str:
    """`text` as one line for a person: no control characters, no key, at most MAX_SAID_CHARS characters."""
    shown = "".join(c if c.isprintable() else " " if c.isspace() else "" for c in text)
    shown = " ".join(shown.split())
    if key:
        # After the control characters have gone, else one of them in the key's middle would save it from here.
        shown = shown.replace(key, "[key]")
    return shown if len(shown) <= MAX_SAID_CHARS else shown[: MAX_SAID_CHARS - 1] + "…"


def http_error(
    endpoint: Endpoint, status: int, headers: Mapping[str, str], body: bytes, now_s: float
) -> errors.LoomError:
    """An answer whose status is not 2xx. Header names are in lower case; `now_s` is Unix time."""
    said, codes = _said(body)
    if status < 400 and headers.get("location"):
        said = f"it redirects to {headers['location']}"
    return _classified(endpoint, status, said, codes, retry_after_s(headers, now_s))


def sent_object(endpoint: Endpoint, data: bytes) -> dict[str, Any]:
    """The JSON object that a server sent as a part of its answer. Raises BrokenStream for anything else."""
    found = decode.json_object(data)
    if found is None:
        shown = clean(data.decode("utf-8", "replace"), endpoint.key)[:120] or "nothing"
        raise errors.BrokenStream(f"{endpoint.name} sent what is no JSON object: {shown}", hint="check base_url")
    return found


def stream_error(endpoint: Endpoint, error: object) -> errors.LoomError:
    """An error a server sent as part of a stream that had begun with 200."""
    data = error if isinstance(error, dict) else {"message": error if isinstance(error, str) else ""}
    said, codes = _message(data), _codes(data)
    status = next((int(c) for c in codes if _STATUS.fullmatch(c)), 0)
    if not status:
        status = next((_CODE_STATUS[c] for c in codes if c in _CODE_STATUS), 0)
    if not status:
        return errors.BrokenStream(
            f"{endpoint.name} gave up in the middle: {clean(said, endpoint.key) or 'no reason given'}", hint="try again"
        )
    return _classified(endpoint, status, said, codes, None)


def retry_after_s(headers: Mapping[str, str], now_s: float) -> float | None:
    """How long the server asks us to wait: seconds, or the time until an HTTP date. None when it does not say."""
    value = headers.get("retry-after-ms", "")
    seconds = _number(value)
    if seconds is not None:
        seconds /= 1000
    else:
        value = headers.get("retry-after", "")
        seconds = _number(value)
    if seconds is None and value:
        seconds = _until(value, now_s)
    return None if seconds is None else min(max(seconds, 0.0), MAX_RETRY_AFTER_S)


def _number(value: str) -> float | None:
    value = value.strip()  # of more than float() itself would take off
    return float(value) if re.fullmatch(r"[0-9]{1,12}(\.[0-9]{1,9})?", value, re.ASCII) else None


def _until(value: str, now_s: float) -> float | None:
    from email.utils import parsedate_tz  # here, because few errors carry a date
    from email.utils import mktime_tz  # isort: skip

    try:
        parsed = parsedate_tz(value)
        return None if parsed is None else mktime_tz(parsed) - now_s
    except (ValueError, OverflowError, IndexError, TypeError):
        return None


# Codes that some servers put into a body while the status says something vaguer.
_BILLING = frozenset({"insufficient_quota", "billing_hard_limit_reached", "billing_not_active", "insufficient_credits"})
_STATUS = re.compile("[45][0-9][0-9]")
_CODE_STATUS = {
    "rate_limit_exceeded": 429,
    "rate_limit_error": 429,
    "overloaded_error": 529,
    "insufficient_quota": 402,
    "invalid_api_key": 401,
    "authentication_error": 401,
    "model_not_found": 404,
    "context_length_exceeded": 400,
    "invalid_request_error": 400,
}
_OVERFLOW = re.compile(
    r"context_length_exceeded|string_above_max_length|context[ _](?:length|window|size)|maximum context"
    r"|(?:prompt|input|request) is too long|too many (?:input |prompt )?tokens|reduce the length of the"
    r"|exceeds? (?:the )?(?:available |maximum )?context",
    re.IGNORECASE,
)


def _classified(
    endpoint: Endpoint, status: int, said: str, codes: tuple[str, ...], wait_s: float | None
) -> errors.LoomError:
    shown = clean(said, endpoint.key) or "no reason given"
    text = f"{endpoint.name} answered {status}: {shown}"
    if status == 402 or _BILLING.intersection(codes):
        return errors.Config(text, hint=f"check credit and billing of {endpoint.alias}, or use another model")
    if _overflows(status, said, codes):
        return errors.ContextOverflow(text, hint="send less, or use a model with a larger window")
    if status in (401, 403):
        return errors.Config(f"{endpoint.name} refused the key ({status}): {shown}", hint=_key_hint(endpoint))
    if status == 404:
        return _model_not_found(endpoint, shown)
    if status in (429, 503, 529):
        return errors.TryLater(text, hint="it is busy; try again later", retry_after_s=wait_s)
    if status in (408, 409, 425) or status >= 500:
        return errors.Unavailable(text, hint="try again", retry_after_s=wait_s)
    if status in (400, 422):
        return errors.BadInput(text, hint="the same request will fail again; change the request or the model")
    if status < 400 or status == 405:
        followed = "redirects are followed within a server only" if status < 400 else "it takes no POST there"
        return errors.Config(text, hint=f"check base_url ({_shown_url(endpoint)}); {followed}")
    return errors.BadInput(text, hint="the same request will fail again")


def _overflows(status: int, said: str, codes: tuple[str, ...]) -> bool:
    if status == 413:
        return True
    if status == 429:
        # Over the limit of one minute all by itself: waiting cannot help.
        return said.startswith("Request too large")
    # 500: older llama.cpp servers report an overflow so.
    return status in (400, 422, 500) and any(_OVERFLOW.search(text) for text in (said, *codes))


def _key_hint(endpoint: Endpoint) -> str:
    if endpoint.key_names:
        return f"check {endpoint.key_names}"
    return f"the server wants a key: set providers.{endpoint.alias}.key in config.yml"


def _model_not_found(endpoint: Endpoint, shown: str) -> errors.ModelNotFound:
    if endpoint.alias == "ollama":
        return errors.ModelNotFound(
            f"ollama does not have the model {endpoint.model!r}: {shown}", hint=f"ollama pull {endpoint.model}"
        )
    return errors.ModelNotFound(
        f"{endpoint.alias} does not know the model {endpoint.model!r}: {shown}",
        hint=f"check the model's name and base_url ({_shown_url(endpoint)})",
    )


def _shown_url(endpoint: Endpoint) -> str:
    return clean(endpoint.base_url, endpoint.key)


def _said(body: bytes) -> tuple[str, tuple[str, ...]]:
    """What an error body says, and the codes in it."""
    stripped = body.strip()
    data = decode.json_object(stripped.removeprefix(b"[").removesuffix(b"]"))  # Gemini wraps its error in a list
    if data is None:
        text = stripped.decode("utf-8", "replace")
        return (_html_title(text) if text.startswith("<") else text), ()
    inner = data.get("error")
    if isinstance(inner, dict):
        return _message(inner), _codes(inner)
    if isinstance(inner, str):
        return inner, _codes(data)
    return _message(data), _codes(data)


def _message(error: Mapping[str, Any]) -> str:
    for name in ("message", "detail", "msg", "error"):
        value = error.get(name)
        if isinstance(value, str) and value:
            metadata = error.get("metadata")  # OpenRouter keeps the real reason here
            raw = metadata.get("raw") if isinstance(metadata, dict) else None
            return f"{value}: {raw}" if isinstance(raw, str) and raw else value
        if isinstance(value, list) and value and isinstance(value[0], dict):
            return _message(value[0])
    return ""


def _codes(error: Mapping[str, Any]) -> tuple[str, ...]:
    values = (error.get("code"), error.get("type"))
    return tuple(str(v) for v in values if isinstance(v, str | int) and not isinstance(v, bool))


def _html_title(text: str) -> str:
    found = re.search(r"<title[^>]*>([^<]{1,200})", text[:4000], re.IGNORECASE)
    return f"an HTML page ({found.group(1).strip()})" if found else "an HTML page"
