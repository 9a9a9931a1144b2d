"""Text from outside: stdin, files and arguments, read whole and checked before anything is made of it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import BinaryIO

from loom.wire.errors import BadInput, NotFound, Usage

MAX_BYTES = 8 << 20
_CHUNK_BYTES = 1 << 20


def stdin_is_terminal() -> bool:
    """Whether a person types; a closed stdin is no terminal."""
    return sys.stdin is not None and sys.stdin.isatty()


def read_stdin(limit: int = MAX_BYTES, to: str = "answer") -> str:
    """All of stdin, which is there `to` be answered or sent. Raises BadInput: empty, no text, over the limit."""
    try:
        data = b"" if sys.stdin is None else _read(sys.stdin.buffer, limit + 1)
    except OSError as error:
        raise BadInput(f"stdin cannot be read: {error.strerror}") from None
    return decode(data, "stdin", limit, to)


def read_file(path: str, limit: int = MAX_BYTES, to: str = "answer") -> str:
    """All of a file. Raises NotFound, and BadInput as read_stdin does."""
    try:
        with Path(path).open("rb") as file:
            data = _read(file, limit + 1)
    except (FileNotFoundError, NotADirectoryError):
        raise NotFound(f"there is no file {path!r}") from None
    except OSError as error:
        raise BadInput(f"{path!r} cannot be read: {error.strerror}") from None
    return decode(data, repr(path), limit, to)


def _read(file: BinaryIO, size: int) -> bytes:
    """At most `size` bytes; memory is taken for what comes, not for what may come."""
    chunks: list[bytes] = []
    while size > 0:
        asked = min(size, _CHUNK_BYTES)
        chunk = file.read(asked)
        chunks.append(chunk)
        size -= len(chunk)
        if len(chunk) < asked:
            break  # the end: asked once more, a terminal would wait for a second Ctrl-D
    return b"".join(chunks)


def decode(data: bytes, what: str, limit: int, to: str = "answer") -> str:
    """Bytes as text that says something."""
    if len(data) > limit:
        raise BadInput(f"{what} holds more than {limit} bytes", hint="send less, or raise the limit with --max-input")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadInput(f"{what} is not text: no UTF-8 at byte {error.start}") from None
    return check(text, what, to)


def check(text: str, what: str, to: str = "answer") -> str:
    """The text itself. Raises BadInput when it is empty or could not be written to a file."""
    if "\0" in text:
        raise BadInput(f"{what} is not text: it holds a NUL character")
    if not text.isascii() and any("\ud800" <= char <= "\udfff" for char in text):
        raise BadInput(f"{what} is not text: it is no UTF-8")
    if not text.strip():
        raise BadInput(f"{what} is empty", hint=f"there is nothing to {to}")
    return text


def pairs(values: tuple[str, ...]) -> dict[str, str]:
    """`--env K=V` as a mapping. Raises Usage; LOOM_* is ours."""
    found = {}
    for value in values:
        key, equals, text = value.partition("=")
        if not equals or not key or not key.isprintable():
            raise Usage(f"--env {value!r} is not NAME=VALUE")
        if key.startswith("LOOM_"):
            raise Usage(f"--env {key} is set by loom itself", hint="the workspace is set with -w")
        check(text or "-", f"--env {key}")
        found[key] = text
    return found
