"""Content-addressed bytes: `blobs/<aa>/<sha256>` (docs/protocol.md section 1)."""

from __future__ import annotations

from pathlib import Path

from loom.spool import fs


class BlobDamaged(Exception):
    """A blob's bytes are not those its name promises."""


def path_of(blobs: Path, digest: str) -> Path:
    if len(digest) != 64 or not all(c in "0123456789abcdef" for c in digest):
        raise ValueError(f"not a digest: {digest!r}")
    return blobs / digest[:2] / digest


def aside_of(blobs: Path, digest: str) -> Path:
    """Where gc puts a blob to which nobody referred, before it goes: it is found there too (ADR-0016)."""
    path = path_of(blobs, digest)
    return path.parent / fs.TMP / digest


def is_there(blobs: Path, digest: str) -> bool:
    """Whether a blob can be fetched, set aside or not. False also for what is no digest."""
    try:
        return path_of(blobs, digest).exists() or aside_of(blobs, digest).exists()
    except ValueError:
        return False


def digest_of(data: bytes) -> str:
    """The name of these bytes."""
    from hashlib import sha256  # here, because most messages have no blobs

    return sha256(data).hexdigest()


def put(blobs: Path, data: bytes) -> str:
    """Store `data` durably and give its digest. Storing the same bytes again costs a look and two syncs.

    Nothing may refer to the blob yet, and gc may set it aside at this very moment: then it is found there, long enough
    for the caller to write down its reference.
    """
    digest = digest_of(data)
    path = path_of(blobs, digest)
    try:
        fs.settle(path)
    except FileNotFoundError:
        fs.ensure_dir(path.parent)
        fs.publish(path, data)
    return digest


def get(blobs: Path, digest: str) -> bytes:
    """The bytes of a digest. Raises FileNotFoundError, and BlobDamaged when they are not what was stored."""
    data = _read(blobs, digest)
    if digest_of(data) != digest:
        raise BlobDamaged(f"blob {digest} does not hold the bytes it is named after")
    return data


def _read(blobs: Path, digest: str) -> bytes:
    path = path_of(blobs, digest)
    for place in (path, aside_of(blobs, digest)):
        try:
            return fs.read(place)
        except FileNotFoundError:
            continue
    return fs.read(path)  # it came back between our two looks
