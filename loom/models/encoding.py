"""Answers that come compressed although nobody asked: gzip and deflate, undone piece by piece. Pure."""

from __future__ import annotations

import zlib
from collections.abc import Iterator

_PIECE_BYTES = 1 << 16  # so that a bomb is met by whoever counts, and not by memory
_GZIP_OR_ZLIB = zlib.MAX_WBITS | 32


class Undecodable(ValueError):
    """The bytes are not what Content-Encoding says."""


def is_plain(encoding: str) -> bool:
    """Whether this Content-Encoding means the bytes as they are."""
    return encoding.strip().lower() in ("", "identity")


def is_known(encoding: str) -> bool:
    """Whether Decoder can undo this Content-Encoding."""
    return encoding.strip().lower() in ("gzip", "x-gzip", "deflate")


def decoded(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """The content of gzip or deflate data, in pieces of at most 64 KiB. Raises Undecodable."""
    unpacker = zlib.decompressobj(_GZIP_OR_ZLIB)
    begun = False
    for piece in pieces:
        while piece:
            if unpacker.eof:  # gzip may be several files in a row
                unpacker = zlib.decompressobj(_GZIP_OR_ZLIB)
            try:
                out = unpacker.decompress(piece, _PIECE_BYTES)
            except zlib.error as error:
                if begun:
                    raise Undecodable(str(error)) from None
                # Some servers take "deflate" to mean the bare stream, without the zlib format around it.
                unpacker, begun = zlib.decompressobj(-zlib.MAX_WBITS), True
                continue
            begun = True
            piece = unpacker.unconsumed_tail or unpacker.unused_data
            if out:
                yield out
    while not unpacker.eof and (out := unpacker.decompress(b"", _PIECE_BYTES)):
        yield out
    if begun and not unpacker.eof:
        raise Undecodable("its end is missing")
