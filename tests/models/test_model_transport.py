"""HTTP as model servers really speak it: kept connections, redirects, compression, and what is refused."""

from __future__ import annotations

import gzip
import itertools
import os
import re
import signal
import socket
import ssl
import threading
import time
import zlib
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
import trustme
from far_side import CUT, HOLD, RESET, FarSide, ProxySide
from hypothesis import given, settings
from hypothesis import strategies as st
from model_far_side import KEY, chat, collect, delta, sse

from loom.models import encoding, transport
from loom.models.classify import Endpoint, is_transient
from loom.models.openai import OpenAIModel
from loom.models.proxies import proxy_for, variables
from loom.models.transport import Client, Timeouts
from loom.wire import errors

QUICK = Timeouts(connect_s=5.0, first_byte_s=0.2, idle_s=0.2)
HELLO = sse(delta(content="hello"), delta("stop"))


def gzipped(data: bytes) -> bytes:
    """Without the time, so that each process that collects the tests gives them the same names."""
    return gzip.compress(data, mtime=0)


def head(status: str, lines: dict[str, str]) -> bytes:
    return "\r\n".join(
        [f"HTTP/1.1 {status}", *(f"{n.replace('_', '-')}: {v}" for n, v in lines.items()), "", ""]
    ).encode()


def sized(body: bytes = HELLO, status: str = "200 OK", **headers: str) -> bytes:
    """A whole response with a length: the connection can go on after it."""
    return head(status, {"Content_Type": "text/event-stream", "Content_Length": str(len(body)), **headers}) + body


def chunked(*pieces: bytes, trailer: bytes = b"", **headers: str) -> bytes:
    begin = head("200 OK", {"Content_Type": "text/event-stream", "Transfer_Encoding": "chunked", **headers})
    return begin + b"".join(b"%x\r\n%s\r\n" % (len(p), p) for p in pieces) + b"0\r\n" + trailer + b"\r\n"


@pytest.fixture
def far() -> Iterator[FarSide]:
    with FarSide() as side:
        yield side


def model(side: FarSide, timeouts: Timeouts = transport.DEFAULT, **more: Any) -> OpenAIModel:
    return OpenAIModel(Endpoint("lab", "m1", side.url, "LAB_API_KEY", KEY), timeouts, **more)


def said(model: OpenAIModel) -> str:
    return collect(model, chat())[0]


def connections(side: FarSide) -> list[int]:
    return [asked.connection for asked in side.asked]


# connections are kept


@pytest.mark.parametrize("answer", [sized(), chunked(HELLO), chunked(HELLO, trailer=b"X-Cost: 1\r\n")])
def test_a_connection_serves_one_request_after_the_other(far: FarSide, answer: bytes):
    far.answers += [[answer]] * 3
    asking = model(far)
    assert [said(asking) for _ in range(3)] == ["hello"] * 3
    assert connections(far) == [0, 0, 0]


def test_an_error_keeps_the_connection_too(far: FarSide):
    far.answers += [[sized(b'{"error": "slow down"}', "429 Slow Down")], [sized()]]
    asking = model(far)
    with pytest.raises(errors.TryLater):
        said(asking)
    assert said(asking) == "hello"
    assert connections(far) == [0, 0]


@pytest.mark.parametrize(
    "first",
    [
        [sized(Connection="close")],
        [sized().replace(b"HTTP/1.1", b"HTTP/1.0")],
        [b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n" + HELLO, CUT],
    ],
    ids=["close", "1.0", "until the end"],
)
def test_a_connection_whose_answer_ends_it_is_not_kept(far: FarSide, first: list[bytes]):
    far.answers += [first, [sized()]]
    asking = model(far)
    assert said(asking) == "hello"
    assert asking._client._kept is None
    assert said(asking) == "hello"
    assert connections(far) == [0, 1]


@pytest.mark.parametrize("then", [CUT, b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nforged"], ids=["over", "forged"])
def test_a_kept_connection_that_ended_or_spoke_unasked_is_not_used(far: FarSide, then: bytes):
    heard = threading.Event()

    def answer() -> Iterator[bytes]:
        yield sized()
        heard.wait(30)
        yield then

    far.answers += [answer(), [sized()]]
    asking = model(far)
    assert said(asking) == "hello"
    heard.set()
    kept = asking._client._kept
    assert kept is not None
    kept.sock.settimeout(30)
    kept.sock.recv(1, socket.MSG_PEEK)  # what it did has arrived
    assert said(asking) == "hello"
    assert connections(far) == [0, 1]


def test_a_server_that_never_ends_its_body_costs_a_moment_and_the_connection(far: FarSide):
    endless = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    far.answers += [[endless + b"%x\r\n%s\r\n" % (len(HELLO), HELLO), HOLD], [sized()]]
    asking = model(far)
    assert [said(asking), said(asking)] == ["hello", "hello"]
    assert connections(far) == [0, 1]


def test_an_answer_that_broke_after_its_last_word_is_one_and_costs_the_connection(far: FarSide):
    whole = sse(delta(content="hello"), delta("stop"), done=False)
    far.answers += [[chunked(whole)[:-5], b"zz\r\n"], [sized()]]
    asking = model(far)
    assert [said(asking), said(asking)] == ["hello", "hello"]
    assert connections(far) == [0, 1]


def test_an_answer_that_was_not_heard_to_its_end_takes_its_connection_with_it(far: FarSide):
    far.answers += [[chunked(sse(delta(content="one "), done=False)), HOLD], [sized()]]
    asking = model(far)
    stream = asking.stream(chat())
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert said(asking) == "hello"
    assert connections(far) == [0, 1]


@pytest.mark.parametrize("end", [CUT, RESET])
def test_a_kept_connection_that_dies_before_a_byte_of_an_answer_came_is_replaced_once(far: FarSide, end: bytes):
    far.answers += [[sized()], [end], [sized()]]
    asking = model(far)
    assert [said(asking), said(asking)] == ["hello", "hello"]
    assert connections(far) == [0, 0, 1]
    assert far.asked[1].body == far.asked[2].body


@pytest.mark.parametrize("end", [CUT, RESET])
def test_but_not_when_a_byte_of_an_answer_came(far: FarSide, end: bytes):
    far.answers += [[sized()], [b"H", end]]
    asking = model(far)
    said(asking)
    with pytest.raises(errors.Unavailable):
        said(asking)
    assert connections(far) == [0, 0]


@pytest.mark.parametrize("end", [CUT, RESET])
def test_nor_when_the_connection_is_new(far: FarSide, end: bytes):
    far.answers += [[end]]
    with pytest.raises(errors.Unavailable, match="no proper answer"):
        said(model(far))
    assert connections(far) == [0]


def test_silence_on_a_kept_connection_is_not_asked_again(far: FarSide):
    far.answers += [[sized()], [HOLD]]
    asking = model(far, QUICK)
    said(asking)
    with pytest.raises(errors.Unavailable, match="stayed silent"):
        said(asking)
    assert connections(far) == [0, 0]


def test_the_second_death_in_a_row_is_told(far: FarSide):
    far.answers += [[sized()], [CUT], [CUT]]
    asking = model(far)
    said(asking)
    with pytest.raises(errors.Unavailable, match="no proper answer"):
        said(asking)
    assert connections(far) == [0, 0, 1]


def test_a_connection_that_rested_long_is_not_used(far: FarSide):
    far.answers += [[sized()]] * 2
    asking = model(far, Timeouts(kept_s=0.0))
    said(asking)
    said(asking)
    assert connections(far) == [0, 1]


def test_a_forked_process_does_not_speak_on_its_parents_connection(far: FarSide):
    far.answers += [[sized()]] * 3
    asking = model(far)
    said(asking)
    pid = os.fork()
    if pid == 0:
        ok = False
        try:
            ok = said(asking) == "hello"
        finally:
            os._exit(0 if ok else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert said(asking) == "hello"  # and the child did not close it for us
    assert connections(far) == [0, 1, 0]


def test_two_answers_at_a_time_use_two_connections(far: FarSide):
    first = chunked(sse(delta(content="a"), done=False), sse(delta(content="b"), delta("stop")))
    far.answers += [[first], [sized()], [sized()]]
    asking = model(far)
    stream = asking.stream(chat())
    assert next(stream).text == "a"  # type: ignore[union-attr]
    assert said(asking) == "hello"
    assert [getattr(chunk, "text", "") for chunk in stream] == ["b", "ab"]
    assert said(asking) == "hello"
    assert connections(far)[:2] == [0, 1]


# heads and bodies


@pytest.mark.parametrize("status", ["100 Continue", "102 Processing", "103 Early Hints"])
def test_what_comes_before_the_answer_is_skipped(far: FarSide, status: str):
    early = f"HTTP/1.1 {status}\r\nLink: </style.css>\r\n\r\n".encode()
    far.answers += [[early, early + sized()], [sized()]]
    asking = model(far)
    assert [said(asking), said(asking)] == ["hello", "hello"]
    assert connections(far) == [0, 0]


@pytest.mark.parametrize("status", ["100 Continue", "102 Processing", "103 Early Hints"])
def test_nothing_but_early_answers_is_no_answer(far: FarSide, status: str):
    early = f"HTTP/1.1 {status}\r\n\r\n".encode()
    far.answers += [itertools.repeat(early)]
    with pytest.raises(errors.Unavailable, match="16 interim answers") as caught:
        said(model(far))
    assert is_transient(caught.value)
    assert far.ended.acquire(timeout=30), "the connection was left open"


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 200 OK\r\nX: " + b"y" * 70_000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 200 + b"\r\n",
        b"HTTP/1.1 200 " + b"O" * 70_000,
        b"HTTP/9.9 200 OK\r\n\r\n",
        b"HTTP/1.1 2x0 OK\r\n\r\n",
        b"\x16\x03\x01\x00",
    ],
)
def test_a_head_that_is_none_is_told(far: FarSide, head: bytes):
    far.answers += [[head, CUT]]
    with pytest.raises(errors.Unavailable, match="no proper answer"):
        said(model(far))


@pytest.mark.parametrize("size", [b"zz\r\n", b"-5\r\n", b"ffffffffffffffffff\r\n", b"5"])
def test_chunks_that_are_none_are_a_broken_stream(far: FarSide, size: bytes):
    far.answers += [[chunked(sse(delta(content="x"), done=False))[:-5] + size + b"data", CUT]]
    with pytest.raises(errors.BrokenStream):
        said(model(far))


def test_a_body_over_the_limit_is_given_up(far: FarSide):
    far.answers += [[sized(b"x" * 5000)]]
    with (
        pytest.raises(errors.BrokenStream, match="over 4000 bytes"),
        Client().request("GET", far.url, {}, max_body_bytes=4000) as response,
    ):
        list(response.chunks)


@pytest.mark.parametrize(
    "name, value", [("X", "a\r\nY: b"), ("X", "a\nb"), ("X\r\nY", "b"), ("Authorization", "Bearer geheim\r\n")]
)
def test_a_header_with_a_line_end_is_never_sent_and_never_shown(far: FarSide, name: str, value: str):
    with pytest.raises(errors.Config, match="header") as caught, Client().request("GET", far.url, {name: value}):
        pass
    assert "geheim" not in caught.value.line()
    assert far.asked == []


@pytest.mark.parametrize("path", ["/v1\r\nX: y", "/v1 HTTP/1.1", "/v1\x00"])
def test_an_address_with_a_line_end_is_never_sent(far: FarSide, path: str):
    with (
        pytest.raises(errors.Config, match="base_url"),
        Client().request("GET", f"http://127.0.0.1:{far.port}{path}", {}),
    ):
        pass
    assert far.asked == []


def test_a_slow_first_byte_is_waited_for(far: FarSide):
    def slow() -> Iterator[bytes]:
        time.sleep(0.3)
        yield sized()

    far.answers += [slow()]
    assert said(model(far, Timeouts(first_byte_s=5.0, idle_s=0.1))) == "hello"


# compression nobody asked for


def bare_deflate(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return packer.compress(data) + packer.flush()


@pytest.mark.parametrize("name, packed", [
    ("gzip", gzipped(HELLO)), ("x-gzip", gzipped(HELLO)), ("GZIP", gzipped(HELLO)),
    ("deflate", zlib.compress(HELLO)), ("deflate", bare_deflate(HELLO)), ("identity", HELLO),
    ("gzip", gzipped(HELLO[:20]) + gzipped(HELLO[20:])),
])  # fmt: skip
def test_an_answer_that_was_compressed_unasked_is_read(far: FarSide, name: str, packed: bytes):
    far.answers += [[chunked(*[packed[i : i + 3] for i in range(0, len(packed), 3)], Content_Encoding=name)], [sized()]]
    asking = model(far)
    assert [said(asking), said(asking)] == ["hello", "hello"]
    assert far.asked[0].headers["accept-encoding"] == "identity"
    assert connections(far) == [0, 0]


def test_text_in_a_compressed_stream_comes_as_it_is_spoken(far: FarSide):
    packer = zlib.compressobj(wbits=31)
    first = packer.compress(sse(delta(content="first"), done=False)) + packer.flush(zlib.Z_SYNC_FLUSH)
    head = chunked(Content_Encoding="gzip")[:-5]
    far.answers += [[head + b"%x\r\n%s\r\n" % (len(first), first), HOLD]]
    stream = model(far).stream(chat())
    assert next(stream).text == "first"  # type: ignore[union-attr]
    stream.close()  # type: ignore[attr-defined]


def test_a_compressed_error_is_read(far: FarSide):
    far.answers += [[sized(gzipped(b'{"error": "no such field"}'), "400 Bad", Content_Encoding="gzip")]]
    with pytest.raises(errors.BadInput, match="no such field"):
        said(model(far))


@pytest.mark.parametrize("packed", [gzipped(HELLO)[:20], b"\x1f\x8bnonsense", b"plain text", gzipped(b"")[:4]])
def test_what_cannot_be_unpacked_is_a_broken_stream(far: FarSide, packed: bytes):
    far.answers += [[sized(packed, Content_Encoding="gzip")]]
    with pytest.raises(errors.BrokenStream):
        said(model(far))


def test_a_bomb_is_given_up_at_the_limit(far: FarSide):
    bomb = gzipped(b"\0" * (30 << 20))
    far.answers += [[sized(bomb, Content_Encoding="gzip")]]
    seen = 0
    with (
        pytest.raises(errors.BrokenStream, match="over 1048576 bytes"),
        Client().request("GET", far.url, {}, max_body_bytes=1 << 20) as response,
    ):
        for piece in response.chunks:
            seen += len(piece)
    assert seen <= 1 << 20


def test_an_encoding_nobody_asked_for_and_nobody_knows_is_named(far: FarSide):
    far.answers += [[sized(b"\x1b", Content_Encoding="br")]]
    with pytest.raises(errors.Config, match="'br'"):
        said(model(far))


@given(st.binary(max_size=300), st.lists(st.integers(1, 50), max_size=5), st.sampled_from(["gzip", "zlib", "bare"]))
def test_unpacking_does_not_depend_on_how_the_bytes_are_cut(data: bytes, sizes: list[int], kind: str):
    packed = {"gzip": gzipped, "zlib": zlib.compress, "bare": bare_deflate}[kind](data)
    pieces, at = [], 0
    for size in [*sizes, len(packed)]:
        pieces.append(packed[at : at + size])
        at += size
    # A bare stream may by chance begin like a packed one, when it is cut after its first byte or two.
    if kind != "bare" or len(pieces[0]) > 2:
        assert b"".join(encoding.decoded(iter(pieces))) == data


@pytest.mark.parametrize("packed", [gzipped(HELLO), zlib.compress(HELLO), bare_deflate(HELLO)])
def test_data_without_its_end_is_refused(packed: bytes):
    for at in range(3, len(packed)):
        with pytest.raises(encoding.Undecodable):
            list(encoding.decoded(iter([packed[:at]])))


def test_a_bomb_comes_out_in_small_pieces():
    sizes = [len(piece) for piece in encoding.decoded(iter([gzipped(b"\0" * (10 << 20))]))]
    assert sum(sizes) == 10 << 20 and max(sizes) <= 1 << 16


@given(st.lists(st.binary(max_size=40), max_size=6))
def test_any_bytes_are_unpacked_or_refused(pieces: list[bytes]):
    try:
        b"".join(encoding.decoded(iter(pieces)))
    except encoding.Undecodable:
        pass


# redirects


def moved(to: str, status: str = "307 Temporary Redirect") -> bytes:
    return sized(b"over there", status, Location=to)


@pytest.mark.parametrize("status", ["307 Temporary Redirect", "308 Permanent Redirect"])
@pytest.mark.parametrize("to", ["/v2/chat?x=1", "{url}/v2/chat?x=1#part"])
def test_a_redirect_within_the_server_is_followed_with_all_that_was_sent(far: FarSide, status: str, to: str):
    far.answers += [[moved(to.format(url=f"http://127.0.0.1:{far.port}"), status)], [sized()]]
    assert said(model(far)) == "hello"
    assert [a.target for a in far.asked] == ["/v1/chat/completions", "/v2/chat?x=1"]
    assert far.asked[0].body == far.asked[1].body
    assert far.asked[1].headers["authorization"] == f"Bearer {KEY}"
    assert connections(far) == [0, 0]


@pytest.mark.parametrize(
    "to, status",
    [
        ("http://elsewhere.example/v1", "307 X"),
        ("//elsewhere.example/v1", "308 X"),
        ("https://127.0.0.1:{port}/v1", "308 X"),
        ("http://127.0.0.1:1/v1", "307 X"),
        ("http://localhost:{port}/v1", "307 X"),
        ("http://me:geheim@127.0.0.1:{port}/v1", "307 X"),
        ("/v2", "301 X"),
        ("/v2", "302 X"),
        ("/v2", "303 X"),
        ("http://[", "307 X"),
    ],
)
def test_the_key_goes_nowhere_else_and_the_error_names_the_place(far: FarSide, to: str, status: str):
    to = to.format(port=far.port)
    far.answers += [[moved(to, status)]]
    with pytest.raises(errors.Config) as caught:
        said(model(far))
    assert to in caught.value.line()
    assert "base_url" in caught.value.line()
    assert len(far.asked) == 1


def test_three_redirects_are_followed_and_no_more(far: FarSide):
    far.answers += [[moved(f"/{n}")] for n in range(4)]
    with pytest.raises(errors.Config, match="/3"):
        said(model(far))
    assert len(far.asked) == 4


# TLS and proxies


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def safe(authority: trustme.CA, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[FarSide]:
    """An https server called lab.test and 127.0.0.1, whose authority SSL_CERT_FILE names."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("lab.test", "127.0.0.1").configure_cert(context)
    context.set_alpn_protocols(["h2", "http/1.1"])
    pem = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(pem))
    monkeypatch.setenv("SSL_CERT_FILE", str(pem))
    with FarSide(context) as side:
        yield side


def test_https_with_an_authority_of_ones_own(safe: FarSide):
    safe.answers += [[sized()]] * 2
    asking = model(safe)
    assert [said(asking), said(asking)] == ["hello", "hello"]
    assert connections(safe) == [0, 0]


@pytest.mark.parametrize("end", [CUT, RESET])
def test_a_kept_connection_under_tls_that_died_is_replaced_too(safe: FarSide, end: bytes):
    safe.answers += [[sized()], [end], [sized()]]
    asking = model(safe)
    assert [said(asking), said(asking)] == ["hello", "hello"]
    assert connections(safe) == [0, 0, 1]


def test_an_authority_nobody_knows_is_told(safe: FarSide, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("SSL_CERT_FILE")
    with pytest.raises(errors.Unavailable, match="TLS") as caught:
        said(model(safe))
    assert "SSL_CERT_FILE" in caught.value.line()
    assert safe.asked == []


def test_a_certificate_for_another_name_is_told(safe: FarSide):
    asking = OpenAIModel(Endpoint("lab", "m1", f"https://localhost:{safe.port}/v1", "LAB_API_KEY", KEY))
    with pytest.raises(errors.Unavailable, match=r"TLS.*localhost"):
        said(asking)
    assert safe.asked == []


def through(proxy: ProxySide, url: str, user: str = "", timeouts: Timeouts = transport.DEFAULT) -> OpenAIModel:
    """A model at lab.test, which no name server knows: only the proxy finds it."""
    env = {"ALL_PROXY": f"http://{user}{'@' if user else ''}127.0.0.1:{proxy.port}"}
    return OpenAIModel(Endpoint("lab", "m1", url, "LAB_API_KEY", KEY), timeouts, proxy=proxy_for(url, env))


def test_http_goes_through_a_proxy_by_its_whole_address(far: FarSide):
    far.answers += [[sized()]] * 2
    with ProxySide(far.port) as proxy:
        asking = through(proxy, "http://lab.test:8000/v1")
        assert said(asking) == "hello"
    assert proxy.asked[0].target == "http://lab.test:8000/v1/chat/completions"
    assert proxy.asked[0].headers["host"] == "lab.test:8000"
    assert far.asked[0].target == "/v1/chat/completions"


def test_https_goes_through_a_tunnel_that_learns_nothing(safe: FarSide):
    safe.answers += [[sized()]] * 2
    with ProxySide(safe.port) as proxy:
        asking = through(proxy, "https://lab.test/v1")
        assert [said(asking), said(asking)] == ["hello", "hello"]
    assert [a.target for a in proxy.asked] == ["lab.test:443"]  # one tunnel for both
    assert "authorization" not in proxy.asked[0].headers
    assert safe.asked[0].headers["host"] == "lab.test"
    assert safe.asked[0].headers["authorization"] == f"Bearer {KEY}"


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_user_is_told_to_the_proxy_and_to_nobody_else(safe: FarSide, far: FarSide, scheme: str):
    side = safe if scheme == "https" else far
    side.answers += [[sized()]]
    with ProxySide(side.port, "Basic bWU6c2Vjcmk6dA==") as proxy:
        assert said(through(proxy, f"{scheme}://lab.test/v1", "me:secri%3At")) == "hello"
    assert "proxy-authorization" not in side.asked[0].headers


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("user, what", [("", "wants a user"), ("me:geheim", "refused the user")])
def test_a_proxy_that_does_not_know_us_is_named(far: FarSide, scheme: str, user: str, what: str):
    with ProxySide(far.port, "Basic other") as proxy:
        with pytest.raises(errors.Config, match=what) as caught:
            said(through(proxy, f"{scheme}://lab.test/v1", user))
        assert f"127.0.0.1:{proxy.port}" in caught.value.line() and "ALL_PROXY" in caught.value.line()
        assert "geheim" not in caught.value.line()
    assert far.asked == []


@pytest.mark.parametrize(
    "answer, kind, match",
    [
        ([b"HTTP/1.1 403 Not \x1b[31mthis way\r\n\r\n"], errors.Config, r"403 Not \[31mthis way.*NO_PROXY"),
        ([b"HTTP/1.1 502 Bad\r\n\r\n"], errors.Unavailable, "did not connect us with lab.test:443: 502 Bad"),
        ([b"SSH-2.0\r\n", CUT], errors.Unavailable, "no proper answer"),
        (itertools.repeat(b"HTTP/1.1 100 Continue\r\n\r\n"), errors.Unavailable, "proxy.*16 interim answers"),
        ([CUT], errors.Unavailable, "no proper answer"),
        ([b"HTTP/1.1 200 OK\r\n\r\n", CUT], errors.Unavailable, "TLS"),
        ([HOLD], errors.Unavailable, "stayed silent"),
    ],
)
def test_a_tunnel_that_fails_says_where(answer: Iterable[bytes], kind: type, match: str):
    with ProxySide(0) as proxy:
        proxy.answers.append(answer)
        with pytest.raises(errors.LoomError) as caught:
            said(through(proxy, "https://lab.test/v1", timeouts=Timeouts(connect_s=0.3)))
        assert type(caught.value) is kind
        assert re.search(match, caught.value.line())


def test_a_proxy_that_is_not_there_is_named():
    with ProxySide(0) as proxy:
        asking = through(proxy, "https://lab.test/v1")
    with pytest.raises(errors.Unavailable, match=r"the proxy 127\.0\.0\.1") as caught:
        said(asking)
    assert "ALL_PROXY" in caught.value.line()
    assert is_transient(caught.value)


LAB = "https://lab.example/v1"


@pytest.mark.parametrize(
    "url, env, where",
    [
        (LAB, {}, None),
        (LAB, {"HTTPS_PROXY": "http://p:3128"}, "p:3128"),
        (LAB, {"https_proxy": "p:3128", "HTTPS_PROXY": "http://other"}, "p:3128"),
        (LAB, {"HTTPS_PROXY": "http://p"}, "p:80"),
        (LAB, {"HTTPS_PROXY": "http://[::1]:8"}, "[::1]:8"),
        (LAB, {"HTTP_PROXY": "http://p"}, None),
        (LAB, {"ALL_PROXY": "http://p"}, "p:80"),
        (LAB, {"ALL_PROXY": "http://p", "HTTPS_PROXY": " "}, "p:80"),
        ("http://lab.example", {"HTTP_PROXY": "http://p", "HTTPS_PROXY": "http://q"}, "p:80"),
        (LAB, {"ALL_PROXY": "http://p", "NO_PROXY": "*"}, None),
        (LAB, {"ALL_PROXY": "http://p", "NO_PROXY": "a, lab.example"}, None),
        (LAB, {"ALL_PROXY": "http://p", "NO_PROXY": "example"}, None),
        (LAB, {"ALL_PROXY": "http://p", "NO_PROXY": ".example"}, None),
        (LAB, {"ALL_PROXY": "http://p", "NO_PROXY": "*.example"}, None),
        (LAB, {"ALL_PROXY": "http://p", "NO_PROXY": "ab.example,b.example"}, "p:80"),
        (LAB, {"ALL_PROXY": "http://p", "NO_PROXY": "LAB.Example:443"}, None),
        (LAB, {"ALL_PROXY": "http://p", "NO_PROXY": "lab.example:8443"}, "p:80"),
        (LAB, {"ALL_PROXY": "http://p", "no_proxy": "x", "NO_PROXY": "*"}, "p:80"),
        ("http://10.1.2.3:8000", {"ALL_PROXY": "http://p", "NO_PROXY": "10.0.0.0/8"}, None),
        ("http://11.1.2.3:8000", {"ALL_PROXY": "http://p", "NO_PROXY": "10.0.0.0/8"}, "p:80"),
        ("http://10.1.2.3", {"ALL_PROXY": "http://p", "NO_PROXY": "2.3"}, "p:80"),
        ("http://[fd00::1]:80", {"ALL_PROXY": "http://p", "NO_PROXY": "fd00::1"}, None),
        ("http://[fd00::1]:80", {"ALL_PROXY": "http://p", "NO_PROXY": "[fd00::1]:80"}, None),
        ("http://localhost:11434/v1", {"ALL_PROXY": "http://p"}, None),
        ("http://127.1.2.3", {"ALL_PROXY": "http://p"}, None),
        ("http://[::1]:8000", {"ALL_PROXY": "http://p"}, None),
        ("http://127.evil.example", {"ALL_PROXY": "http://p"}, "p:80"),
    ],
)
def test_which_proxy(url: str, env: dict[str, str], where: str | None):
    found = proxy_for(url, env)
    assert (found and found.where) == where
    assert bool(variables(url, env)) == (where is not None)


@pytest.mark.parametrize(
    "value", ["socks5://me:geheim@p:1080", "https://me:geheim@p", "http://", "http://p:99999", "http://a b"]
)
def test_a_proxy_that_cannot_be_used_is_refused_without_showing_it(value: str):
    with pytest.raises(errors.Config, match="HTTPS_PROXY") as caught:
        proxy_for(LAB, {"HTTPS_PROXY": value})
    assert "geheim" not in caught.value.line()


def test_a_proxys_password_is_no_way_for_other_processes():
    env = {"HTTPS_PROXY": "http://me:geheim@p", "NO_PROXY": "x"}
    with pytest.raises(errors.Config, match="HTTPS_PROXY") as caught:
        variables(LAB, env)
    assert "geheim" not in caught.value.line() and "geheim" not in repr(proxy_for(LAB, env))
    assert variables(LAB, {"HTTPS_PROXY": "http://p", "NO_PROXY": "x", "PATH": "y"}) == {
        "HTTPS_PROXY": "http://p",
        "NO_PROXY": "x",
    }


# half-open connections


def test_a_peer_that_vanishes_is_probed_for(far: FarSide):
    far.answers += [[sized()]]
    asking = model(far)
    said(asking)
    kept = asking._client._kept
    assert kept is not None
    assert kept.sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
    if hasattr(socket, "TCP_KEEPIDLE"):
        options = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
        assert [kept.sock.getsockopt(socket.IPPROTO_TCP, o) for o in options] == [30, 10, 3]


def test_a_signal_ends_the_waiting_at_once(far: FarSide):
    class Enough(Exception):
        pass

    def enough(signum: int, frame: object) -> None:
        raise Enough

    far.answers += [[HOLD]]
    before = signal.signal(signal.SIGALRM, enough)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        with pytest.raises(Enough):
            said(model(far))
    finally:
        signal.signal(signal.SIGALRM, before)


# whatever it is

LINES = st.sampled_from([
    b"Content-Length: 5", b"Content-Length: -5", b"Content-Length: 99999999999999999999", b"Content-Length: five",
    b"Transfer-Encoding: chunked", b"Transfer-Encoding: gzip, chunked", b"Content-Encoding: gzip",
    b"Content-Encoding: deflate", b"Content-Encoding: \xff", b"Content-Type: application/json",
    b"Location: /elsewhere", b"Location: http://[", b"Location: //\x00", b"Retry-After: never", b"Connection: close",
    b"Connection: keep-alive", b"no colon here", b": no name", b" folded", b"",
])  # fmt: skip
HEADS = st.builds(
    lambda version, status, lines: b"\r\n".join([b"HTTP/%s %s X" % (version, status), *lines, b"", b""]),
    st.sampled_from([b"1.1", b"1.0", b"0.9", b"2", b"x"]),
    st.sampled_from(
        [b"200", b"204", b"100", b"101", b"103", b"206", b"304", b"307", b"400", b"407", b"429", b"503", b"999"]
    ),
    st.lists(LINES, max_size=4),
)
BODIES = st.one_of(
    st.binary(max_size=40),
    st.sampled_from([HELLO, b"5\r\nhello\r\n0\r\n\r\n", b"5\r\nhel", gzipped(HELLO), bare_deflate(HELLO), b"{}"]),
)


@settings(max_examples=150, deadline=None)
@given(answers=st.lists(st.tuples(HEADS, BODIES, st.booleans()), min_size=1, max_size=3))
def test_whatever_a_server_says_the_outcome_is_an_answer_or_an_error_of_ours(
    answers: list[tuple[bytes, bytes, bool]],
):
    with FarSide() as side:
        # More than can be asked for: a redirect is followed, and a kept connection that died is replaced.
        side.answers += [[h + b, *([CUT] if cut else [])] for h, b, cut in answers] + [[sized(), CUT]] * 30
        asking = model(side, Timeouts(connect_s=5.0, first_byte_s=0.05, idle_s=0.05))
        for _ in answers:
            try:
                said(asking)
            except errors.LoomError as error:
                assert KEY not in error.line() and error.line().isprintable()
