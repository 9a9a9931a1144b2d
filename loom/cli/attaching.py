"""Files that go with a message (--attach): images beside its text, other text as a part of it (docs/cli.md)."""

from __future__ import annotations

import re
from pathlib import Path

from loom.cli import input as texts
from loom.wire.chat import MAX_IMAGE_BYTES, MAX_IMAGES
from loom.wire.errors import BadInput, NotFound

Image = tuple[str, bytes]  # media type, bytes

_MAGIC = (
    ("image/png", re.compile(rb"\x89PNG\r\n\x1a\n")),
    ("image/jpeg", re.compile(rb"\xff\xd8\xff")),
    ("image/gif", re.compile(rb"GIF8[79]a")),
    ("image/webp", re.compile(rb"RIFF....WEBP", re.DOTALL)),
)


def read(paths: tuple[str, ...], limit: int) -> tuple[list[Image], str]:
    """(the images, the text files as they stand in the message), in the order of the command line.

    limit  bytes of a text file
    Raises NotFound, and BadInput for a file that is neither, is too large, or is an image too many.
    """
    images: list[Image] = []
    parts: list[str] = []
    for path in paths:
        data = _bytes(path, max(limit, MAX_IMAGE_BYTES) + 1)
        kind = next((kind for kind, magic in _MAGIC if magic.match(data)), None)
        if kind is None:
            parts.append(_quoted(Path(path).name, _text(path, data, limit)))
        elif len(data) > MAX_IMAGE_BYTES:
            raise BadInput(f"{path!r} holds more than {MAX_IMAGE_BYTES} bytes, the limit of an image")
        elif len(images) == MAX_IMAGES:
            raise BadInput(f"{path!r} is one image too many: a message holds at most {MAX_IMAGES}")
        else:
            images.append((kind, data))
    return images, "".join(parts)


def _bytes(path: str, limit: int) -> bytes:
    try:
        with Path(path).open("rb") as file:
            return file.read(limit)
    except (FileNotFoundError, NotADirectoryError):
        raise NotFound(f"there is no file {path!r}") from None
    except OSError as error:
        raise BadInput(f"{path!r} cannot be read: {error.strerror}") from None


def _text(path: str, data: bytes, limit: int) -> str:
    if b"\0" in data or _is_no_text(data):
        raise BadInput(
            f"{path!r} is neither an image (png, jpeg, gif, webp) nor text", hint="attach it as one of these"
        )
    return texts.decode(data, repr(path), limit)


def _is_no_text(data: bytes) -> bool:
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return True
    return False


def _quoted(name: str, text: str) -> str:
    """A text file in a fence longer than any in it, under its name."""
    ticks = "`" * max(3, max((len(run) for run in re.findall("`+", text)), default=0) + 1)
    end = "" if text.endswith("\n") else "\n"
    shown = name if name.isprintable() else ascii(name)[1:-1]
    return f"\n\n{shown}:\n{ticks}\n{text}{end}{ticks}"
