"""`loom model ls | test`: which models there are, and whether one of them answers."""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from loom.cli import model_names, printing
from loom.cli.groups import LazyGroup
from loom.cli.homes import look_into_home
from loom.models import keys, proxies, registry
from loom.models.base import Model, ModelContext
from loom.spool import config as settings_file
from loom.spool.config import Loaded
from loom.wire.chat import ChatMessage, ChatReply, ChatRequest, Notice, TextDelta, ToolSpec, usage_to_json
from loom.wire.errors import BadInput, LoomError, Unavailable, Usage
from loom.wire.provider import Price, Provider
from loom.wire.record import record

if TYPE_CHECKING:
    from loom.models.listing import Listed

LIST_S = 15.0  # for all servers together
SHOWN = 20  # models of one provider, unless it was asked for

_BUILTIN = "builtin"

_HERE = "loom.cli.model"
cli = LazyGroup(
    "model",
    {
        "ls": (f"{_HERE}:ls", "providers, whether they answer, and their models"),
        "test": (f"{_HERE}:test", "ask one model for one word: time, tokens, cost, tools"),
    },
    help="List models, and try one.",
)


def _context() -> tuple[ModelContext, Loaded]:
    home = look_into_home(is_needed=False)
    loaded = settings_file.load(home, os.environ)
    return model_names.context(home, loaded, os.environ, os.getcwd()), loaded


# ls


@record(frozen=False)
class Found:
    """What is known of one provider; `reachable` is None when it was not asked."""

    provider: Provider
    key_from: str = ""
    error: str = ""
    reachable: bool | None = None
    ms: float | None = None
    models: tuple[Listed, ...] = ()


@click.command("ls")
@click.argument("provider", required=False)
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def ls(provider: str | None, as_json: bool) -> None:
    """List the providers, whether they answer, and the models of those that do; of PROVIDER all of them.

    A provider that needs a key and has none is not asked. `builtin` names the models that need no provider.
    """
    context, loaded = _context()
    known = sorted({*registry.PROVIDERS, *context.providers} - registry.RESERVED_ALIASES)
    if provider is not None and provider not in (*known, _BUILTIN):
        raise Usage(f"there is no provider {provider!r}{registry.did_you_mean(provider, [*known, _BUILTIN])}")
    wanted = known if provider is None else [provider] if provider != _BUILTIN else []
    found = _ask_all(wanted, context)
    local = [f"{_BUILTIN}/{name}" for name in registry.BUILTINS] if provider in (None, _BUILTIN) else []
    configured = [] if provider is not None else _configured(loaded, context)
    if as_json:
        told = [_as_json(one) for one in found]
        printing.json_line({"v": 1, "providers": told, "builtin": local, "configured": configured})
        return
    if found:
        printing.table(("PROVIDER", "DIALECT", "AT", "KEY", "ANSWERS"), [_row(one, context) for one in found])
    models = [row for one in found for row in _model_rows(one, SHOWN if provider is None else None)]
    models += [(name, "", "") for name in local]
    if models:
        if found:
            printing.line()
        printing.table(("MODEL", "CONTEXT", "USD PER MILLION IN, OUT"), models)
    if configured:
        printing.line()
        rows = [(c["setting"], c["model"], "ok" if c["ok"] else c["error"]) for c in configured]
        printing.table(("SETTING", "MODEL", ""), rows)


def _ask_all(aliases: list[str], context: ModelContext, patience_s: float = LIST_S) -> list[Found]:
    """All of them at a time, in the order given. Who has not answered within that time does not answer."""
    found = {alias: Found(registry.find_provider(alias, context)) for alias in aliases}
    done: queue.SimpleQueue[Found] = queue.SimpleQueue()

    def ask(one: Found) -> None:
        for known in _asked(one.provider, context):
            done.put(known)

    for one in found.values():
        # Daemons: a server that drips an answer for ever keeps nobody from leaving.
        threading.Thread(target=ask, args=(one,), daemon=True).start()
    deadline = time.monotonic() + patience_s
    waiting = set(found)
    while waiting:
        try:
            one = done.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            break
        found[one.provider.alias] = one
        if one.reachable is not None or one.error:
            waiting.discard(one.provider.alias)
    for alias in waiting:
        found[alias].reachable, found[alias].error = False, f"no answer within {patience_s:g} s"
    return list(found.values())


def _asked(provider: Provider, context: ModelContext) -> Iterator[Found]:
    """What is known of it before it is asked, and then all."""
    from loom.models.listing import list_models

    one = Found(provider)
    try:
        if provider.dialect not in registry.DIALECTS:
            raise Usage(f"there is no dialect {provider.dialect!r}")
        key, one.key_from = keys.find_key_and_source(provider, context)
        proxy = proxies.proxy_for(provider.base_url, context.env)
    except LoomError as error:
        one.error = error.line()
        yield one
        return
    yield replace(one)
    started = time.monotonic()
    try:
        one.models = list_models(provider, key, proxy)
        one.reachable = True
    except Unavailable as error:
        one.reachable, one.error = False, error.line()
    except LoomError as error:  # it refused, so it is there
        one.reachable, one.error = True, error.line()
    one.ms = round((time.monotonic() - started) * 1000, 1)
    yield one


def _configured(loaded: Loaded, context: ModelContext) -> list[dict[str, Any]]:
    """The models that settings name, and whether they could be asked."""
    rows: list[dict[str, Any]] = []
    for key, name in sorted(loaded.values.items()):
        if name and (key == "model" or key.startswith("models.")):
            try:
                registry.check_model(name, context)
                error = ""
            except LoomError as wrong:
                error = wrong.line()
            rows.append({"setting": key, "model": name, "ok": not error, "error": error})
    return rows


def _as_json(one: Found) -> dict[str, Any]:
    provider = one.provider
    return {
        "provider": provider.alias,
        "dialect": provider.dialect,
        "base_url": provider.base_url,
        "key": {"needed": _needs_key(provider), "found": bool(one.key_from), "from": one.key_from},
        "context": provider.context,
        "price": _price_json(provider.price),
        "reachable": one.reachable,
        "ms": one.ms,
        "error": one.error,
        "models": [
            {
                "name": f"{provider.alias}/{m.name}",
                "context": m.context,
                "price": _price_json(m.price or provider.price),
            }
            for m in one.models
        ],
    }


def _price_json(price: Price | None) -> dict[str, float | None] | None:
    return None if price is None else {"input": price.input, "output": price.output, "cached": price.cached}


def _needs_key(provider: Provider) -> bool:
    return bool(provider.key or provider.key_file or provider.key_command)


def _row(one: Found, context: ModelContext) -> tuple[str, ...]:
    provider = one.provider
    key = one.key_from or ("none" if _needs_key(provider) else "not needed")
    if one.reachable is None:
        # Nobody has to have a key for everything that is built in.
        answers = f"not asked: {one.error}" if provider.alias in context.providers else "not asked"
    elif one.reachable:
        answers = one.error or f"{one.ms:g} ms"
    else:
        answers = f"no: {one.error}"
    return provider.alias, provider.dialect, provider.base_url, key, answers


def _model_rows(one: Found, most: int | None) -> list[tuple[str, str, str]]:
    alias = one.provider.alias
    rows = []
    for model in one.models[:most]:
        price = model.price or one.provider.price
        usd = "" if price is None else f"{price.input:g}, {price.output:g}"
        rows.append((f"{alias}/{model.name}", str(model.context or ""), usd))
    left = len(one.models) - len(rows)
    return [*rows, (f"{alias}: {left} more", f"loom model ls {alias}", "")] if left else rows


# test


@click.command("test")
@click.argument("name")
@click.option("--tools", is_flag=True, help="Ask a second time, for a call of a tool.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def test(name: str, tools: bool, as_json: bool) -> None:
    """Ask the model NAME for one word, once: a real call, which may cost a little.

    Ends with 0 when it answered, else with the status of what went wrong; it is not asked again.
    """
    context, _ = _context()
    model = registry.open_model(name, context)
    told = _word(model, context)
    if tools:
        told["tools"] = _tools(model)
    if as_json:
        printing.json_line(told)
        return
    usage = told["usage"]
    rows = [
        ("model", told["model"]),
        ("answered", told["answered_by"]),
        ("text", told["text"]),
        ("first text", f"{told['first_text_ms']:g} ms" if told["first_text_ms"] is not None else "none"),
        ("all", f"{told['ms']:g} ms"),
        ("tokens", f"{usage['input_tokens']} in ({usage['cached_tokens']} cached), {usage['output_tokens']} out"),
        ("cost", "unknown" if told["usd"] is None else f"{told['usd']:.6f} USD"),
    ]
    if tools:
        rows.append(("tools", told["tools"]["error"] or ("yes" if told["tools"]["called"] else "it did not call one")))
    for label, value in rows:
        printing.line(f"{label:<10}  {' '.join(str(value).split())}")


def _word(model: Model, context: ModelContext) -> dict[str, Any]:
    request = ChatRequest(model.name, (ChatMessage("user", "Answer with one word: ready"),))
    started = time.monotonic()
    first: float | None = None
    reply: ChatReply | None = None
    for chunk in model.stream(request):
        if isinstance(chunk, TextDelta) and first is None:
            first = time.monotonic()
        elif isinstance(chunk, Notice):
            printing.note(chunk.text)
        elif isinstance(chunk, ChatReply):
            reply = chunk
    ended = time.monotonic()
    if reply is None:
        raise Unavailable(f"{model.name} ended its stream without an answer", kind="broken_stream")
    if not reply.text and not reply.calls:
        raise BadInput(f"{model.name} gave an empty answer (stop: {reply.stop})", hint="try another model")
    # Of a chain the reply names the member that answered.
    answered = reply.model if "|" in model.name else model.name
    price = _price_of(answered, context)
    return {
        "v": 1,
        "model": model.name,
        "answered_by": reply.model or model.name,
        "text": reply.text,
        "stop": reply.stop,
        "first_text_ms": None if first is None else round((first - started) * 1000, 1),
        "ms": round((ended - started) * 1000, 1),
        "usage": usage_to_json(reply.usage),
        "usd": None if price is None else price.usd(reply.usage),
    }


def _price_of(name: str, context: ModelContext) -> Price | None:
    prefix, _ = registry.split_name(name, context)
    if prefix == _BUILTIN:
        return Price(0.0, 0.0)
    return registry.find_provider(prefix, context).price if registry.is_server(prefix) else None


_TOOL = ToolSpec(
    "say-word",
    "Says a word.",
    {"type": "object", "properties": {"word": {"type": "string"}}, "required": ["word"], "additionalProperties": False},
)


def _tools(model: Model) -> dict[str, Any]:
    """Whether the model calls a tool with arguments that fit, when it is asked to."""
    said = ChatMessage("user", "Call the tool say-word with the word ready.")
    try:
        *_, reply = model.stream(ChatRequest(model.name, (said,), (_TOOL,)))
    except LoomError as error:
        return {"called": False, "error": error.line()}
    calls = reply.calls if isinstance(reply, ChatReply) else ()
    fits = any(c.name == _TOOL.name and isinstance((c.input or {}).get("word"), str) for c in calls)
    return {"called": fits, "error": ""}
