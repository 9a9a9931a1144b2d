"""Answers in HTTP/1.1, whatever the pieces they arrive in."""

from __future__ import annotations

import http.client
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loom.models import http1


class Pieces:
    """A stream that gives what it holds piece by piece, and then ends."""

    def __init__(self, *pieces: bytes) -> None:
        self.pieces = [p for p in pieces if p]

    def recv(self, bufsize: int, /) -> bytes:
        return self.pieces.pop(0) if self.pieces else b""


class Sock:
    """What http.client reads from."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def makefile(self, mode: str) -> io.BytesIO:
        return io.BytesIO(self.data)


def answer(*pieces: bytes) -> http1.Answer:
    found = http1.Answer(Pieces(*pieces))
    found.head()
    return found


def body(found: http1.Answer) -> bytes:
    got = b""
    while piece := found.read(1 << 16):
        got += piece
    return got


WHOLE = (
    b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
    b"HTTP/1.1 200\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello",
    b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\nConnection: Keep-Alive\r\n\r\nhello",
    b"HTTP/1.0 200 OK\nContent-Length: 5\n\nhello",
    b"HTTP/1.1 200 OK\r\n\r\nhello",
    b"HTTP/1.1 200 OK\r\nContent-Length: none\r\n\r\nhello",
    b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\nhello",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3;x=y\r\nllo\r\n0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\nContent-Length: 9\r\n\r\n05\r\nhello\r\n00\r\nX-Cost: 1\r\n\r\n",
)
BARE = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\nhello\n0\n"  # which http.client does not read
EMPTY = (
    b"HTTP/1.1 204 No Content\r\n\r\n",
    b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
)


@pytest.mark.parametrize("data", WHOLE + EMPTY)
def test_the_standard_library_reads_the_same(data: bytes):
    ours = answer(data)
    theirs = http.client.HTTPResponse(Sock(data))  # type: ignore[arg-type]
    theirs.begin()
    assert (ours.status, ours.closes) == (theirs.status, bool(theirs.will_close))
    assert ours.headers == {name.lower(): value for name, value in theirs.getheaders()}
    assert body(ours) == theirs.read() == (b"" if data in EMPTY else b"hello")


@given(st.sampled_from((*WHOLE, BARE)), st.data())
def test_it_may_be_cut_anywhere(data: bytes, draw: st.DataObject):
    cuts = sorted(draw.draw(st.sets(st.integers(0, len(data)))))
    pieces = [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]
    assert body(answer(*pieces)) == b"hello"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"HTTP/1.1 200 OK\r\nContent-Len",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n",
        b"HTTP/2 200\r\n\r\n",
        b"HTTP/1.1 2000 OK\r\n\r\n",
        b"SSH-2.0-x\r\n",
    ],
)
def test_what_is_no_head_is_refused(data: bytes):
    with pytest.raises(http1.Malformed):
        answer(data)


@pytest.mark.parametrize(
    "chunks",
    [b"5\r\nhel", b"5\r\nhello", b"5\r\nhello\r\n", b"zz\r\nhello\r\n", b"-1\r\n", b"\r\n", b"2\r\nhello\r\n0\r\n\r\n"],
)
def test_chunks_that_end_early_or_are_none_are_refused(chunks: bytes):
    found = answer(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks)
    with pytest.raises(http1.Malformed):
        body(found)


def test_what_is_missing_of_a_length_is_counted():
    found = answer(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhe")
    assert (body(found), found.left) == (b"he", 3)


def test_what_comes_after_an_answer_is_no_part_of_it():
    found = answer(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhelloHTTP/1.1 200 OK\r\n")
    assert body(found) == b"hello"
    assert found.overlong


def test_a_header_line_that_is_none_is_skipped_and_a_folded_one_joined():
    found = answer(b"HTTP/1.1 200 OK\r\nA: one\r\n two\r\nnonsense\r\nB: 2\r\n\r\n")
    assert found.headers == {"a": "one two", "b": "2"}


@pytest.mark.parametrize("header", [{"A": "1\r\nB: 2"}, {"A": "1\n"}, {"A: 1\r\nB": "2"}, {"": "1"}, {"A": "\0"}])
def test_a_request_is_one_request(header: dict[str, str]):
    with pytest.raises(ValueError):
        http1.request("POST", "/", header, b"")


@pytest.mark.parametrize("target", ["/a b", "/a\r\nX: y", "/ä"])
def test_a_target_is_one_word(target: str):
    with pytest.raises(ValueError):
        http1.request("GET", target, {}, b"")


def test_the_length_goes_with_a_body_and_with_every_post():
    assert b"Content-Length: 2\r\n\r\nhi" in http1.request("POST", "/", {"Host": "x"}, b"hi")
    assert b"Content-Length: 0" in http1.request("POST", "/", {}, b"")
    assert b"Content-Length" not in http1.request("GET", "/", {}, b"")
