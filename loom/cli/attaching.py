"""Files that go with a message (--attach): images beside its text, other text as a part of it (docs/cli.md)."""

from __future__ import annotations

import re
import struct
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
        elif fault := _fault(kind, data):
            raise BadInput(f"{path!r} begins as {kind} and is none: {fault}", hint="attach it as a whole image")
        elif len(images) == MAX_IMAGES:
            raise BadInput(f"{path!r} is one image too many: a message holds at most {MAX_IMAGES}")
        else:
            images.append((kind, data))
    return images, "".join(parts)


def _fault(kind: str, data: bytes) -> str:
    """What in the first bytes behind the magic ones cannot be of such an image; empty when nothing is wrong there.

    A server would only say that it refuses the request, after the image was stored and sent.
    """
    try:
        match kind:
            case "image/png":
                size, name, width, height = struct.unpack_from(">I4sII", data, 8)
                if (size, name) != (13, b"IHDR"):
                    return f"its first chunk is {name!a} of {size} bytes, not IHDR of 13"
            case "image/jpeg":
                marker, size = struct.unpack_from(">BH", data, 3)
                if not 0xC0 <= marker <= 0xFE or 0xD0 <= marker <= 0xD9 or size < 2:
                    return f"its first segment has the marker ff{marker:02x} and {size} bytes"
                return ""
            case "image/gif":
                width, height, _ = struct.unpack_from("<HH3s", data, 6)
            case _:
                size, name, _ = struct.unpack_from("<I4x4sI", data, 4)
                if name not in (b"VP8 ", b"VP8L", b"VP8X"):
                    return f"its first chunk is {name!a}, not VP8, VP8L or VP8X"
                return f"it holds {len(data) - 8} bytes of {size}" if len(data) - 8 < size else ""
    except struct.error:
        return f"it ends after {len(data)} bytes"
    return "" if width and height else f"it is {width} x {height} pixels large"


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
