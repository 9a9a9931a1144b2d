"""Where a provider's key comes from: the environment, a file, a command, the secret store, in this order.

A key is looked for when a model is opened, so that a missing one is known before any work is done. It is never
part of a record, a message or a log.
"""

from __future__ import annotations

import os
from pathlib import Path

from loom.models.base import ModelContext
from loom.wire import errors
from loom.wire.provider import Provider

COMMAND_TIMEOUT_S = 10.0
_MAX_KEY_BYTES = 1 << 16


def variable(provider: Provider) -> str:
    """The variable a provider's key is looked for in; '' when it needs none."""
    return provider.key.upper().replace("-", "_").replace(".", "_") + "_API_KEY" if provider.key else ""


def find_key(provider: Provider, context: ModelContext) -> str:
    """The key, or '' when the provider needs none. Raises Config, which names every way to set it."""
    return find_key_and_source(provider, context)[0]


def find_key_and_source(provider: Provider, context: ModelContext) -> tuple[str, str]:
    """The key and where it was found, as a person may see it; both '' when the provider needs none."""
    name = variable(provider)
    if name and context.env.get(name, "").strip():
        return _usable(context.env[name], f"the variable {name}"), name
    if provider.key_file:
        return _from_file(provider, context), f"the file {provider.key_file}"
    if provider.key_command:
        return _from_command(provider, context), f"the command {provider.key_command[0]}"
    if not provider.key:
        return "", ""
    stored = context.secret(provider.key)
    if stored and stored.strip():
        return _usable(stored, f"the secret {provider.key!r}"), f"the secret {provider.key}"
    raise errors.Config(
        f"{provider.alias} needs a key and none was found: set {name}, or run: loom secret set {provider.key}, "
        f"or set providers.{provider.alias}.key_file in config.yml"
    )


def described(provider: Provider) -> str:
    """Where a person looks when the key is refused; '' when there is none."""
    ways = [variable(provider)] if provider.key else []
    if provider.key_file:
        ways.append(f"the file {provider.key_file}")
    if provider.key_command:
        ways.append(f"the command {provider.key_command[0]}")
    if provider.key:
        ways.append(f"`loom secret set {provider.key}`")
    return " or ".join(ways)


def _from_file(provider: Provider, context: ModelContext) -> str:
    path = provider.key_file
    if path == "~" or path.startswith("~/"):
        path = context.env.get("HOME", "~") + path[1:]
    where = f"providers.{provider.alias}.key_file"
    try:
        with Path(context.cwd, path).open("rb") as file:
            data = file.read(_MAX_KEY_BYTES)
    except (OSError, ValueError) as error:
        errors.raise_lack(error, f"cannot read the key of {provider.alias} from {path}")
        reason = getattr(error, "strerror", None) or str(error)
        raise errors.Config(
            f"cannot read the key of {provider.alias} from {path}: {reason}; correct {where} in config.yml"
        ) from None
    return _usable(data.decode("utf-8", "replace"), f"{path} ({where})")


def _from_command(provider: Provider, context: ModelContext) -> str:
    import subprocess

    where = f"providers.{provider.alias}.key_command"
    try:
        done = subprocess.run(
            list(provider.key_command),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # it may hold the key
            env=dict(context.env) | {"PATH": context.env.get("PATH", os.defpath)},
            cwd=context.cwd,
            timeout=COMMAND_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise errors.Config(
            f"{provider.key_command[0]} gave no key of {provider.alias} within {COMMAND_TIMEOUT_S:g} s; check {where}"
        ) from None
    except (OSError, ValueError) as error:
        errors.raise_lack(error, f"cannot run {provider.key_command[0]} for the key of {provider.alias}")
        reason = getattr(error, "strerror", None) or str(error)
        raise errors.Config(
            f"cannot run {provider.key_command[0]} for the key of {provider.alias}: {reason}; correct {where}"
        ) from None
    if done.returncode != 0:
        raise errors.Config(
            f"{provider.key_command[0]} ended with status {done.returncode} when asked for the key of "
            f"{provider.alias}; run it by hand, or correct {where}"
        )
    return _usable(done.stdout[:_MAX_KEY_BYTES].decode("utf-8", "replace"), f"the output of {where}")


def _usable(value: str, source: str) -> str:
    """The key without the line end around it. A key goes into a header: one line of visible ASCII."""
    key = value.strip()
    if not key:
        raise errors.Config(f"{source} is empty; put the key there")
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise errors.Config(f"{source} is no key: it has blanks, line ends or characters outside ASCII; set it again")
    return key
