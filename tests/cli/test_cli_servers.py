"""A filter and an agent at a model server: when it is asked again, how long is waited, and over which connection."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from cli_user import Loom
from far_side import CUT, HOLD, FarSide, ProxySide


@pytest.fixture
def far() -> Iterator[FarSide]:
    with FarSide() as side:
        yield side


@pytest.fixture
def lab(loom: Loom, far: FarSide) -> Loom:
    """A home whose provider `lab` is the far side."""
    loom.home.mkdir()
    (loom.home / "config.yml").write_text(f"model: lab/m1\nproviders:\n  lab:\n    base_url: {far.url}\n")
    return loom


def refused(status: int, **headers: str) -> list[bytes]:
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
    return [f"HTTP/1.1 {status} X\r\nContent-Length: 4\r\n{lines}\r\nbusy".encode()]


def chunks(*choices: dict[str, Any]) -> bytes:
    return b"".join(b"data: " + json.dumps({"choices": [c]}).encode() + b"\n\n" for c in choices)


def stream(*choices: dict[str, Any]) -> bytes:
    text = chunks(*choices) + b"data: [DONE]\n\n"
    return b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: %d\r\n\r\n%s" % (len(text), text)


def says(text: str) -> list[bytes]:
    return [stream({"delta": {"content": text}, "finish_reason": "stop"})]


ASK = ("agent", "start", "x", "--prompt", "hi")


def test_it_is_asked_again_when_the_server_said_over_the_same_connection(lab: Loom, far: FarSide) -> None:
    far.answers += [
        refused(429, Retry_After="1"),
        refused(529, retry_after_ms="10"),
        refused(500, Retry_After="0"),
        says("yes"),
    ]
    said = lab(*ASK)
    assert (said.status, said.out) == (0, "yes\n")
    assert [f"trying again in {s} s" in said.err for s in ("1", "0.01", "0")] == [True] * 3
    assert [a.connection for a in far.asked] == [0] * 4


def test_five_times_and_no_more(lab: Loom, far: FarSide) -> None:
    far.answers += [refused(503, Retry_After="0")] * 6
    assert lab(*ASK).status == 75
    assert len(far.asked) == 5


@pytest.mark.parametrize("headers", [{"Retry_After": "30"}, {"Retry_After": "Fri, 31 Dec 9999 23:59:59 GMT"}])
def test_nobody_waits_beyond_the_deadline(lab: Loom, far: FarSide, headers: dict[str, str]) -> None:
    far.answers += [refused(429, **headers)]
    said = lab(*ASK, "--timeout", "20")
    assert said.status == 75 and "busy" in said.err
    assert len(far.asked) == 1


@pytest.mark.parametrize("answer", [[HOLD], [b"HTTP/1.1 200 OK\r\n", HOLD]], ids=["no head", "half a head"])
def test_a_deadline_ends_the_waiting_for_a_silent_server(lab: Loom, far: FarSide, answer: list[bytes]) -> None:
    far.answers += [answer]
    assert lab(*ASK, "--timeout", "1").status == 124
    assert len(far.asked) == 1


def test_an_answer_that_broke_after_its_first_words_is_not_asked_for_again(lab: Loom, far: FarSide) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"
    far.answers += [[head + chunks({"delta": {"content": "half an\n"}}), CUT]]
    said = lab(*ASK)
    assert said.status == 69 and said.out == "half an\n"
    assert len(far.asked) == 1


def test_the_steps_of_a_turn_share_a_connection_though_tools_run_between(lab: Loom, far: FarSide) -> None:
    call = {"index": 0, "id": "c1", "function": {"name": "list-files", "arguments": "{}"}}
    far.answers += [[stream({"delta": {"tool_calls": [call]}, "finish_reason": "tool_calls"})], says("two files")]
    said = lab(*ASK, "--tools", "list-files")
    assert (said.status, said.out) == (0, "two files\n"), said
    assert [a.connection for a in far.asked] == [0, 0]
    assert [m["role"] for m in far.asked[1].json["messages"]] == ["user", "assistant", "tool"]


def test_the_messages_of_an_agent_share_a_connection(lab: Loom, far: FarSide) -> None:
    far.answers += [says("one"), [*says("two"), CUT], says("three")]
    assert lab("agent", "start", "x", "--detach").status == 0
    for n, text in enumerate(("one", "two", "three")):
        assert lab("send", "x", f"message {n}", "--wait", "--timeout", "60").out == f"{text}\n"
    assert [a.connection for a in far.asked] == [0, 0, 1]  # the server had ended the first


def test_a_chain_waits_for_nobody_and_its_members_are_tried_again_together(lab: Loom, far: FarSide) -> None:
    down = {"error": "unavailable", "retry_after": 0}
    script = lab.script(down, down, {"text": "back"})
    far.answers += [refused(503, Retry_After="0")] * 3
    said = lab(*ASK, "--model", f"lab/m1|{script}")
    assert (said.status, said.out) == (0, "back\n"), said
    assert said.err.count("is asked instead") == 3 and said.err.count("no model of the chain answered") == 2


# -- what a detached agent is told of the way ----------------------------------------------------------------------


def elsewhere(loom: Loom) -> None:
    """A home whose provider `lab` is at a name that only a proxy knows."""
    loom.home.mkdir()
    (loom.home / "config.yml").write_text("model: lab/m1\nproviders:\n  lab:\n    base_url: http://lab.test/v1\n")


def test_a_filter_and_a_detached_agent_go_through_the_proxy(loom: Loom, far: FarSide) -> None:
    elsewhere(loom)
    far.answers += [says("yes")] * 2
    with ProxySide(far.port) as proxy:
        loom.env |= {"HTTP_PROXY": f"http://127.0.0.1:{proxy.port}", "NO_PROXY": "example.com"}
        assert loom(*ASK).out == "yes\n"
        assert loom("agent", "start", "y", "--detach").status == 0
        assert loom("send", "y", "hi", "--wait", "--timeout", "60").out == "yes\n"
        loom("supervisor", "stop")
    env = json.loads((loom.home / "agents" / "y" / "agent.json").read_text())["env"]
    assert env == {"HTTP_PROXY": f"http://127.0.0.1:{proxy.port}", "NO_PROXY": "example.com"}
    assert [a.target for a in proxy.asked] == ["http://lab.test/v1/chat/completions"] * 2


def test_a_proxy_with_a_password_is_handed_on_by_hand_only(loom: Loom, far: FarSide) -> None:
    elsewhere(loom)
    far.answers += [says("yes")]
    with ProxySide(far.port, "Basic bWU6Z2VoZWlt") as proxy:
        address = f"http://me:geheim@127.0.0.1:{proxy.port}"
        loom.env["HTTP_PROXY"] = address
        said = loom("agent", "start", "x", "--detach")
        assert said.status == 78 and "--env HTTP_PROXY" in said.err and "geheim" not in said.err
        assert loom("agent", "start", "x", "--detach", "--env", f"HTTP_PROXY={address}").status == 0
        assert loom("send", "x", "hi", "--wait", "--timeout", "60").out == "yes\n"
        loom("supervisor", "stop")


def test_a_proxy_that_cannot_be_used_is_told_before_any_work(loom: Loom) -> None:
    elsewhere(loom)
    for words in (ASK, ("agent", "start", "x", "--detach"), ("model", "test", "lab/m1")):
        said = loom(*words, HTTP_PROXY="socks5://me:geheim@127.0.0.1:1080")
        assert said.status == 78 and "HTTP_PROXY names a socks5:// proxy" in said.err and "geheim" not in said.err
