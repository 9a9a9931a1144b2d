"""Bodies too large for a message: they lie in blobs and the message refers to them (docs/protocol.md section 2).

    {"body": "the beginning … [the whole text of N bytes is blob DIGEST]", "data": {"body_blob": DIGEST, …}}

A reader that knows nothing of this still has a body that says where the rest is.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from loom.spool import blobs as store
from loom.spool import fs
from loom.wire import message as wire
from loom.wire.errors import BadInput
from loom.wire.message import Message

FIELD = "body_blob"
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
