"""What a message refers to instead of holding it: it lies in blobs (docs/protocol.md section 2).

    {"body": "the beginning … [the whole text of N bytes is blob DIGEST]", "data": {"body_blob": DIGEST, …}}
    {"body": "What is this?", "data": {"images": [{"media_type": "image/png", "blob": DIGEST}, …]}}

A reader that knows nothing of the first still has a body that says where the rest is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from loom.spool import blobs as store
from loom.spool import fs
from loom.wire import message as wire
from loom.wire.chat import IMAGE_TYPES, MAX_IMAGES, Image
from loom.wire.errors import BadInput
from loom.wire.message import Message
from loom.wire.record import replace

FIELD = "body_blob"
IMAGES = "images"
_BEGINNING = 1000  # characters of the text that stay in the message
_SMALLEST = 1 << 16  # a message that is too large with a shorter body is so for another reason


def encode(blobs: Path, message: Message) -> bytes:
    """The bytes of a `.msg` file; the body goes to a blob when they would be too many. Raises ValueError, OSError."""
    return wire.encode(fit(blobs, message))


def fit(blobs: Path, message: Message) -> Message:
    """The message itself, or one that refers to its body. Raises ValueError for text that is not Unicode."""
    data = message.body.encode()
    if len(data) < _SMALLEST:
        return message
    try:
        wire.encode(message)
        return message
    except ValueError:
        digest = store.put(blobs, data)
    body = f"{message.body[:_BEGINNING]} … [the whole text of {len(data)} bytes is blob {digest}]"
    return replace(message, body=body, data={**(message.data or {}), FIELD: digest})


def text(blobs: Path, message: Message) -> str:
    """The whole body. Raises BadInput when it refers to a blob that is not there or not what it should be."""
    digest = (message.data or {}).get(FIELD)
    if digest is None:
        return message.body
    try:
        return store.get(blobs, str(digest)).decode("utf-8")
    except (FileNotFoundError, ValueError, fs.NotRegular, store.BlobDamaged) as error:
        raise BadInput(
            f"the body of message {message.id} is blob {str(digest)[:64]!a}, which is lost: {error}"
        ) from None


def attach(blobs: Path, images: Sequence[tuple[str, bytes]]) -> dict[str, Any] | None:
    """The `data` of a message with these images, (media type, bytes) each, stored durably; None without any."""
    if not images:
        return None
    return {IMAGES: [{"media_type": kind, "blob": store.put(blobs, data)} for kind, data in images]}


def images(blobs: Path, message: Message) -> tuple[Image, ...]:
    """The images of a message. Raises BadInput when the field is not what it should be, or a blob is not there."""
    listed = (message.data or {}).get(IMAGES, [])
    if not isinstance(listed, list) or len(listed) > MAX_IMAGES:
        raise BadInput(f"message {message.id}: data.images is no list of at most {MAX_IMAGES} images")
    return tuple(_image(blobs, message, entry) for entry in listed)


def _image(blobs: Path, message: Message, entry: object) -> Image:
    kind = entry.get("media_type") if isinstance(entry, Mapping) else None
    digest = entry.get("blob") if isinstance(entry, Mapping) else None
    if kind not in IMAGE_TYPES or not isinstance(digest, str):
        raise BadInput(f"message {message.id}: an entry of data.images lacks a media_type that loom knows, or a blob")
    if not store.is_there(blobs, digest):
        raise BadInput(f"an image of message {message.id} is blob {digest[:64]!a}, which is lost")
    return Image(kind, digest)
