"""Content-addressed bytes: `blobs/<aa>/<sha256>` (docs/protocol.md section 1)."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

from loom.spool import fs


class BlobDamaged(Exception):
    """A blob's bytes are not those its name promises."""


def path_of(blobs: Path, digest: str) -> Path:
    if len(digest) != 64 or not all(c in "0123456789abcdef" for c in digest):
        raise ValueError(f"not a digest: {digest!r}")
    return blobs / digest[:2] / digest


def put(blobs: Path, data: bytes) -> str:
    """Store `data` durably and give its digest. Storing the same bytes again costs a look and two syncs."""
    digest = sha256(data).hexdigest()
    path = path_of(blobs, digest)
    if path.exists():
        fs.settle(path)
    else:
        fs.ensure_dir(path.parent)
        fs.publish(path, data)
    return digest


def get(blobs: Path, digest: str) -> bytes:
    """The bytes of a digest. Raises FileNotFoundError, and BlobDamaged when they are not what was stored."""
    data = fs.read(path_of(blobs, digest))
    if sha256(data).hexdigest() != digest:
        raise BlobDamaged(f"blob {digest} does not hold the bytes it is named after")
    return data
