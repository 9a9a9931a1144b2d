"""Stored keys: `secrets/<name>`, 0600, one value a file, until a broker holds them (docs/protocol.md section 1)."""

from __future__ import annotations

import os

from loom.spool import fs
from loom.spool.layout import Home
from loom.wire import ids
from loom.wire.errors import BadInput, NotFound, Usage

MAX_BYTES = 64 << 10


def check_name(name: str) -> str:
    if not ids.is_agent(name):
        raise Usage(
            f"secret name {name!a} is not valid: a lower-case letter, then letters, digits and '-', at most 64",
            hint="for a provider's key, the provider's name: loom secret set openai",
        )
    return name


def put(home: Home, name: str, value: str) -> None:
    """Store a value durably. Raises BadInput for an empty, huge or multi-line one."""
    path = home.secret(check_name(name))
    value = value.strip()
    try:
        data = value.encode()
    except UnicodeEncodeError:
        data = b""
    if not data or len(data) > MAX_BYTES or any(char < " " or char == "\x7f" for char in value):
        raise BadInput(f"the value for {name!r} must be one non-empty line of text, at most {MAX_BYTES} bytes")
    fs.ensure_dir(home.secrets)
    fs.replace(path, data + b"\n")


def get(home: Home, name: str) -> str | None:
    """The stored value, or None. Refuses to follow links."""
    if not ids.is_agent(name):
        return None
    try:
        return fs.read(home.secret(name), MAX_BYTES + 1).decode("utf-8").strip() or None
    except (FileNotFoundError, fs.NotRegular, fs.TooLarge, UnicodeDecodeError):
        return None


def names(home: Home) -> list[str]:
    try:
        return sorted(n for n in os.listdir(home.secrets) if ids.is_agent(n))
    except FileNotFoundError:
        return []


def remove(home: Home, name: str) -> None:
    """Raises NotFound."""
    if not fs.remove(home.secret(check_name(name))):
        raise NotFound(f"there is no stored secret {name!r}", hint="list them with: loom secret ls")
    fs.calls.fsync_dir(str(home.secrets))  # a key that was withdrawn must not come back after a power cut
