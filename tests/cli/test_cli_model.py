"""`loom model`: what is there and whether it answers, seen by a user with one server and no key."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from cli_user import Loom
from far_side import HOLD, FarSide

from loom.cli import model
from loom.models.base import ModelContext
from loom.wire.provider import Provider

KEY = "sk-very-secret"


@pytest.fixture
def far() -> Iterator[FarSide]:
    with FarSide() as side:
        yield side


def body(data: Any, status: str = "200 OK") -> bytes:
    text = json.dumps(data).encode()
    return f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(text)}\r\n\r\n".encode() + text


def stream(*deltas: dict[str, Any], finish: str = "stop", usage: dict[str, int] | None = None) -> bytes:
    choices = [{"choices": [{"index": 0, "delta": d}]} for d in deltas]
    choices += [{"choices": [{"index": 0, "delta": {}, "finish_reason": finish}]}, {"choices": [], "usage": usage}]
    text = "".join(f"data: {json.dumps(c)}\n\n" for c in choices) + "data: [DONE]\n\n"
    return f"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: {len(text)}\r\n\r\n{text}".encode()


def settle(loom: Loom, far: FarSide, more: str = "") -> None:
    """A home whose provider `lab` is the far side, and whose Ollama is not there."""
    loom.home.mkdir()
    (loom.home / "config.yml").write_text(
        f"model: lab/m1\nproviders:\n  lab:\n    base_url: {far.url}\n    key: lab\n{more}"
        "  ollama:\n    base_url: http://127.0.0.1:9/v1\n"
    )
    loom.env["LAB_API_KEY"] = KEY


def test_ls_tells_what_is_there_and_what_is_not(loom: Loom, far: FarSide) -> None:
    settle(loom, far, "    price: {input: 2.5, output: 10}\n")
    far.answers += [[body({"data": [{"id": "m1", "max_model_len": 4096}, {"id": "m2"}]})]]
    said = loom("model", "ls", "--json")
    assert said.status == 0
    told = said.objects[0]
    found = {p["provider"]: p for p in told["providers"]}
    assert list(found) == ["anthropic", "lab", "ollama", "openai", "openrouter"]
    lab = found["lab"]
    assert lab["dialect"] == "openai" and lab["base_url"] == far.url
    assert lab["key"] == {"needed": True, "found": True, "from": "LAB_API_KEY"}
    assert lab["reachable"] is True and lab["ms"] > 0 and lab["error"] == ""
    price = {"input": 2.5, "output": 10.0, "cached": None}
    assert lab["models"] == [
        {"name": "lab/m1", "context": 4096, "price": price},
        {"name": "lab/m2", "context": None, "price": price},
    ]
    assert found["ollama"]["reachable"] is False and "ollama serve" in found["ollama"]["error"]
    assert found["openai"]["reachable"] is None and not found["openai"]["key"]["found"]
    assert "builtin/echo" in told["builtin"]
    assert told["configured"] == [{"setting": "model", "model": "lab/m1", "ok": True, "error": ""}]
    assert KEY not in said.out + said.err


def test_ls_for_people(loom: Loom, far: FarSide) -> None:
    settle(loom, far)
    many = {"data": [{"id": f"m{n:02}"} for n in range(30)]}
    far.answers += [[body(many)], [body(many)]]
    said = loom("model", "ls")
    assert said.status == 0 and KEY not in said.out + said.err
    rows = {line.split()[0]: line for line in said.out.splitlines() if line}
    assert "LAB_API_KEY" in rows["lab"] and " ms" in rows["lab"]
    assert "not asked" in rows["openai"]
    assert "lab/m19" in said.out and "lab/m20" not in said.out and "10 more" in said.out
    assert "lab/m29" in loom("model", "ls", "lab").out


def test_ls_of_a_server_that_refuses_the_key(loom: Loom, far: FarSide) -> None:
    settle(loom, far)
    far.answers += [[body({"error": f"wrong key {KEY}"}, "401 No")]]
    said = loom("model", "ls", "lab", "--json")
    (lab,) = said.objects[0]["providers"]
    assert said.status == 0 and lab["reachable"] is True and "refused the key" in lab["error"]
    assert KEY not in said.out + said.err


def test_a_server_that_stays_silent_has_its_key_all_the_same(loom: Loom, far: FarSide) -> None:
    provider = Provider("lab", "openai", far.url, key="lab")
    context = ModelContext(env={"LAB_API_KEY": KEY}, providers={"lab": provider})
    far.answers += [[b"HTTP/1.1 200 OK\r\n", HOLD]]
    (found,) = model._ask_all(["lab"], context, patience_s=1.0)
    assert found.reachable is False and "no answer within" in found.error
    assert found.key_from == "LAB_API_KEY"


def test_ls_of_what_is_built_in(loom: Loom) -> None:
    said = loom("model", "ls", "builtin")
    assert said.status == 0 and "builtin/echo" in said.out and "PROVIDER" not in said.out
    told = loom("model", "ls", "builtin", "--json").objects[0]
    assert "builtin/echo" in told["builtin"] and told["providers"] == []
    assert "did you mean 'builtin'" in loom("model", "ls", "bultin").err


def test_what_is_built_in_costs_nothing(loom: Loom) -> None:
    assert loom("model", "test", "builtin", "--json").objects[0]["usd"] == 0.0
    assert "0.000000 USD" in loom("model", "test", "builtin/echo").out


def test_ls_of_nobody_is_a_usage_error(loom: Loom) -> None:
    said = loom("model", "ls", "olama")
    assert said.status == 2 and "did you mean 'ollama'" in said.err


def test_one_real_call_with_its_time_tokens_and_cost(loom: Loom, far: FarSide) -> None:
    settle(loom, far, "    price: {input: 2, output: 10, cached: 1}\n")
    usage = {"prompt_tokens": 100, "completion_tokens": 10, "prompt_tokens_details": {"cached_tokens": 50}}
    call = {"index": 0, "id": "c", "function": {"name": "say-word", "arguments": '{"word": "ready"}'}}
    far.answers += [
        [stream({"content": "ready"}, usage=usage)],
        [stream({"tool_calls": [call]}, finish="tool_calls")],
        [stream({"content": "ready"}, usage=usage)],
    ]
    told = loom("model", "test", "lab/m1", "--tools", "--json").objects[0]
    assert (told["model"], told["text"], told["stop"]) == ("lab/m1", "ready", "end")
    assert told["usage"] == {"input_tokens": 100, "output_tokens": 10, "cached_tokens": 50}
    assert told["usd"] == pytest.approx(0.00025)
    assert 0 < told["first_text_ms"] <= told["ms"]
    assert told["tools"] == {"called": True, "error": ""}
    assert [len(a.json.get("tools", [])) for a in far.asked] == [0, 1]
    assert {a.connection for a in far.asked} == {0}
    said = loom("model", "test", "lab/m1")
    assert said.status == 0 and "0.000250 USD" in said.out and "ready" in said.out


@pytest.mark.parametrize(
    "answer, tools",
    [
        (stream({"content": "I cannot"}), "it did not call one"),
        (body({"error": {"message": "m1 does not support tools"}}, "400 Bad"), "does not support tools"),
    ],
)
def test_a_model_without_tools_is_no_failure(loom: Loom, far: FarSide, answer: bytes, tools: str) -> None:
    settle(loom, far)
    far.answers += [[stream({"content": "ready"})], [answer]]
    said = loom("model", "test", "lab/m1", "--tools")
    assert said.status == 0 and tools in said.out and "unknown" in said.out


@pytest.mark.parametrize(
    "answer, status",
    [
        (body({"error": "x"}, "400 Bad"), 65),
        (body({"error": "x"}, "401 No"), 78),
        (body({"error": "x"}, "404 No"), 78),
        (body({"error": "x"}, "429 Slow"), 75),
        (body({"error": "x"}, "500 Oh"), 69),
        (stream(), 65),  # an empty answer
    ],
)
def test_it_ends_with_the_status_of_what_went_wrong_and_asks_once(
    loom: Loom, far: FarSide, answer: bytes, status: int
) -> None:
    settle(loom, far)
    far.answers += [[answer]]
    said = loom("model", "test", "lab/m1", "--json")
    assert said.status == status == said.objects[-1]["error"]["exit_status"]
    assert len(far.asked) == 1


def test_models_without_a_server_are_tested_too(loom: Loom) -> None:
    program = loom.program("says", "print('a program')\n")
    names = ("builtin", f"exec/{program}", loom.script({"text": "a script"}))
    assert [loom("model", "test", name, "--json").objects[0]["text"] for name in names] == [
        "Answer with one word: ready",
        "a program\n",
        "a script",
    ]
    assert loom("model", "test", "exec/absent").status == 66


def test_a_chain_says_who_answered(loom: Loom, far: FarSide) -> None:
    settle(loom, far, "    price: {input: 1, output: 1}\n")
    far.answers += [[body({"error": "loading"}, "503 Wait")]]
    said = loom("model", "test", "lab/m1|builtin/echo", "--json")
    told = said.objects[0]
    assert (told["model"], told["answered_by"], told["usd"]) == ("lab/m1|builtin/echo", "builtin/echo", 0)
    assert "builtin/echo is asked instead" in said.err


def test_a_filter_tells_the_switch_and_logs_it(loom: Loom, far: FarSide) -> None:
    settle(loom, far)
    far.answers += [[body({"error": "loading"}, "503 Wait")]]
    said = loom("agent", "start", "x", "--model", "lab/m1|builtin/echo", "--prompt", "hi")
    assert (said.status, said.out) == (0, "hi\n")
    assert "503: loading; builtin/echo is asked instead" in said.err
    notice = next(r for r in loom.log("x") if r["event"] == "model_notice")
    assert notice["kind"] == "switched" and notice["model"] == "lab/m1|builtin/echo"
    reply = next(r for r in loom.log("x") if r["event"] == "model_reply")
    assert (reply["model"], reply["answered_by"]) == ("lab/m1|builtin/echo", "builtin/echo")


def test_a_detached_agent_may_have_a_chain(loom: Loom, far: FarSide) -> None:
    settle(loom, far)
    loom("secret", "set", "lab", stdin=KEY)
    far.answers += [[body({"error": "no"}, "401 No")]]
    script = loom.script({"text": "from the script"})
    started = loom("agent", "start", "x", "--detach", "--model", f"lab/m1 | script/./{script.rpartition('/')[2]}")
    assert started.status == 0, started
    assert json.loads((loom.home / "agents" / "x" / "agent.json").read_text())["model"] == f"lab/m1|{script}"
    assert loom("send", "x", "go", "--wait", "--timeout", "60").out == "from the script\n"


def test_a_chain_whose_member_cannot_work_is_refused_at_once(loom: Loom, far: FarSide) -> None:
    settle(loom, far)
    said = loom("agent", "start", "x", "--detach", "--model", "builtin|lab/m1")
    assert said.status == 78 and "loom secret set lab" in said.err
    assert loom("agent", "start", "x", "--model", "builtin||lab/m1", "--prompt", "x").status == 2


def test_a_goal_may_be_given_a_chain(loom: Loom, far: FarSide) -> None:
    settle(loom, far)
    loom("secret", "set", "lab", stdin=KEY)
    far.answers += [[body({"error": "no"}, "401 No")]] * 20
    documents = loom.place / "documents"
    documents.mkdir()
    (documents / "a.md").write_text("# Notes\nWeaving is old. It has been done by hand for long.\n")
    said = loom("run", "-w", str(documents), "--model", "lab/m1|builtin", "Write a digest of the documents")
    assert said.status == 0 and "Weaving is old." in said.out, said
    assert len(far.asked) >= 3  # planner, executor and verifier each tried it first
