"""From a model's name to the model: one table, and a module is imported when its name is chosen.

    openai/M  openrouter/M  ollama/M      built-in providers
    ALIAS/M                               a provider of config.yml
    M                                     a bare name: the default provider's
    exec/PROGRAM  script/FILE             a program; answers from a file
    builtin  builtin/NAME                 deterministic models without weights
    A|B|C                                 a chain: the next one is asked where one cannot answer (loom.models.chain)

A dialect is one module that speaks to servers; a new one is a line in DIALECTS.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from typing import Protocol, cast

from loom.models.base import Model, ModelContext
from loom.wire import errors
from loom.wire.provider import Provider
from loom.wire.record import replace

DIALECTS = {
    "openai": "loom.models.openai",
    "anthropic": "loom.models.anthropic",
    "ollama": "loom.models.ollama",
}

PROVIDERS = {
    "openai": Provider("openai", "openai", "https://api.openai.com/v1", key="openai"),
    "openrouter": Provider("openrouter", "openai", "https://openrouter.ai/api/v1", key="openrouter"),
    "ollama": Provider("ollama", "openai", "http://127.0.0.1:11434/v1"),
    "anthropic": Provider("anthropic", "anthropic", "https://api.anthropic.com", key="anthropic"),
}

# Variables that say where a provider is. They are no secrets.
SERVERS_BY_VARIABLE = {"openai": "OPENAI_BASE_URL", "anthropic": "ANTHROPIC_BASE_URL", "ollama": "OLLAMA_HOST"}

# Kinds of models that are no servers. Their modules have open_model(rest, context) and check(rest, context).
LOCAL = {"exec": "loom.models.exec", "script": "loom.models.script"}

MAX_MEMBERS = 8  # of a chain

BUILTINS = ("echo", "extract", "planner", "executor", "verifier")
_BUILTIN_OF_ROLE = {"planner": "planner", "executor": "executor", "verifier": "verifier"}

# No alias of config.yml may be one of these: it could never be reached.
RESERVED_ALIASES = frozenset({*LOCAL, "builtin"})


class _Local(Protocol):
    def open_model(self, rest: str, context: ModelContext) -> Model: ...

    def check(self, rest: str, context: ModelContext) -> None: ...


class _Builtin(Protocol):
    def open(self, name: str) -> Model: ...


def open_model(name: str, context: ModelContext, role: str = "chat") -> Model:
    """The model of this name, ready to be asked; of a chain all members are opened.

    role  what it is wanted for: chat, planner, executor, verifier; only plain `builtin` makes a difference
    Raises Usage for a name nobody knows, Config for a missing key or a provider that cannot work, NotFound for a
    missing program or file. No server is asked: whether it has the model shows when it is used.
    """
    names = members(name)
    if len(names) > 1:
        from loom.models.chain import ChainModel

        return ChainModel([open_model(member, context, role) for member in names])
    prefix, rest = split_name(name, context)
    if prefix == "builtin":
        return _open_builtin(rest, role)
    if prefix in LOCAL:
        return cast(_Local, import_module(LOCAL[prefix])).open_model(rest, context)
    return _open_server(prefix, rest, context)


def check_model(name: str, context: ModelContext) -> None:
    """Raise what open_model would raise, and what a local model's file or program has wrong. Asks no server."""
    names = members(name)
    if len(names) > 1:
        for member in names:
            check_model(member, context)
        return
    prefix, rest = split_name(name, context)
    if prefix == "builtin":
        _builtin_name(rest, "chat")
    elif prefix in LOCAL:
        cast(_Local, import_module(LOCAL[prefix])).check(rest, context)
    else:
        from loom.models import keys, proxies
        from loom.models.address import split_url

        provider = find_provider(prefix, context)
        _dialect(provider)
        split_url(provider.base_url)
        proxies.proxy_for(provider.base_url, context.env)
        keys.find_key(provider, context)


def members(name: str) -> list[str]:
    """The names a chain `a|b|c` is made of, in the order in which they are asked; a plain name is a chain of one.

    Blanks around the bars do not count. Raises Usage for an empty member and for too many.
    """
    if "|" not in name:
        return [name]
    names = [part.strip() for part in name.split("|")]
    if not all(names):
        raise errors.Usage(f"the chain of models {name!r} has an empty member; write for example a/x|b/y")
    if len(names) > MAX_MEMBERS:
        raise errors.Usage(f"the chain of models {name!r} has {len(names)} members; {MAX_MEMBERS} are the most")
    return names


def split_name(name: str, context: ModelContext) -> tuple[str, str]:
    """(prefix, the rest) of one model, both known to make sense. A bare name gets the default provider as prefix."""
    if not name or not name.isprintable() or name != name.strip():
        raise errors.Usage(f"{name!r} is no model name; write PROVIDER/MODEL, for example ollama/llama3.2")
    prefix, slash, rest = name.partition("/")
    known = _known(context)
    if not slash and prefix == "builtin":
        return prefix, ""
    if not slash and prefix not in known:
        if _is_like_builtin(name):
            raise errors.Usage(f"no model {name!r}; did you mean 'builtin'?", hint=f"for Ollama's write ollama/{name}")
        return _default_provider(context), name
    if prefix not in known:
        hint = f"for a model of Ollama with a slash in its name write ollama/{name}"
        raise errors.Usage(f"no provider {prefix!r} for model {name!r}{did_you_mean(prefix, known)}", hint=hint)
    if not rest:
        raise errors.Usage(f"{name!r} names no model; write {prefix}/{_EXAMPLE.get(prefix, 'MODEL')}")
    return prefix, rest


_EXAMPLE = {"exec": "PROGRAM", "script": "FILE", "builtin": "echo"}


def _is_like_builtin(name: str) -> bool:
    if not name.startswith("b"):
        return False  # most names: they need not pay for the import
    from difflib import get_close_matches

    return bool(get_close_matches(name, ["builtin"], 1, 0.8))


def find_provider(alias: str, context: ModelContext) -> Provider:
    """The provider of this alias: environment over config.yml over what is built in. `alias` must be a known one."""
    built_in, configured = PROVIDERS.get(alias), context.providers.get(alias)
    if built_in is None:
        other = context.providers[alias]
        return other if other.dialect else replace(other, dialect="openai")
    provider = built_in if configured is None else _merged(built_in, configured)
    moved = context.env.get(SERVERS_BY_VARIABLE.get(alias, ""), "").strip()
    if moved:
        provider = replace(provider, base_url=moved)
    if alias == "ollama":
        from loom.models.address import ollama_url

        provider = replace(provider, base_url=ollama_url(provider.base_url))
        if provider.context and provider.dialect == "openai":
            # How much it is to hold can be said in Ollama's own dialect alone; in the other it cuts in silence.
            provider = replace(provider, dialect="ollama")
    return provider


def is_server(prefix: str) -> bool:
    """Whether this known prefix names a provider, and neither a program, a script nor a built-in model."""
    return prefix not in RESERVED_ALIASES


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """` (did you mean …?)`, or the list of what is known."""
    from difflib import get_close_matches

    names = sorted(known)
    close = get_close_matches(word, names, n=1)
    return f" (did you mean {close[0]!r}?)" if close else f" (known: {', '.join(names)})"


def _known(context: ModelContext) -> set[str]:
    return {*PROVIDERS, *LOCAL, "builtin", *context.providers}


def _default_provider(context: ModelContext) -> str:
    chosen = context.default_provider or context.env.get("LOOM_DEFAULT_PROVIDER", "").strip() or "ollama"
    servers = {*PROVIDERS, *context.providers} - RESERVED_ALIASES
    if chosen not in servers:
        raise errors.Config(
            f"the default provider {chosen!r} is unknown{did_you_mean(chosen, servers)}; "
            "correct LOOM_DEFAULT_PROVIDER or config.yml"
        )
    return chosen


def _merged(built_in: Provider, configured: Provider) -> Provider:
    """What config.yml says of a built-in provider; what it leaves open stays."""
    return replace(
        configured,
        dialect=configured.dialect or built_in.dialect,
        base_url=configured.base_url or built_in.base_url,
        key=configured.key or built_in.key,
    )


def _dialect(provider: Provider) -> str:
    """The module that speaks this provider's dialect."""
    module = DIALECTS.get(provider.dialect)
    if module is None:
        raise errors.Config(
            f"providers.{provider.alias} wants the dialect {provider.dialect!r}"
            f"{did_you_mean(provider.dialect, DIALECTS)}; correct it in config.yml"
        )
    return module


def _open_server(alias: str, model: str, context: ModelContext) -> Model:
    from loom.models import keys, proxies
    from loom.models.classify import Endpoint

    provider = find_provider(alias, context)
    module = import_module(_dialect(provider))
    key = keys.find_key(provider, context)
    endpoint = Endpoint(alias, model, provider.base_url, keys.described(provider), key, provider.context or 0)
    return cast(Model, module.open_model(endpoint, context, proxies.proxy_for(provider.base_url, context.env)))


def _builtin_name(rest: str, role: str) -> str:
    chosen = rest or _BUILTIN_OF_ROLE.get(role, "extract")
    if chosen not in BUILTINS:
        raise errors.Usage(f"no model builtin/{chosen}{did_you_mean(chosen, BUILTINS)}")
    return chosen


def _open_builtin(rest: str, role: str) -> Model:
    chosen = _builtin_name(rest, role)
    return cast(_Builtin, import_module(f"loom.models.builtin.{chosen}")).open(f"builtin/{chosen}")
