"""Chains of models: who is asked when one cannot answer, and what is said of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from model_far_side import KEY, STREAM, chat, delta, response, sse

from loom.models.base import ModelContext
from loom.models.chain import REST_S, ChainModel
from loom.models.registry import MAX_MEMBERS, check_model, members, open_model
from loom.wire import errors
from loom.wire.chat import ChatMessage, ChatReply, ChatRequest, Chunk, Notice, TextDelta
from loom.wire.provider import Provider


class Member:
    """A model that does what the test says: each step is a reply's text, an error, or a list of what it yields."""

    def __init__(self, name: str, *steps: Any) -> None:
        self.name = name
        self.asked: list[ChatRequest] = []
        self._steps = list(steps)

    def stream(self, request: ChatRequest) -> Iterator[Chunk]:
        self.asked.append(request)
        step = self._steps.pop(0)
        for item in step if isinstance(step, list) else [step]:
            if isinstance(item, Exception):
                raise item
            if isinstance(item, str):
                yield TextDelta(item)
                yield ChatReply(item, model="what the server calls it")
            else:
                yield item


def told(chain: ChainModel, request: ChatRequest | None = None) -> list[Chunk]:
    return list(chain.stream(request or chat()))


def answer(chain: ChainModel) -> ChatReply:
    reply = told(chain)[-1]
    assert isinstance(reply, ChatReply)
    return reply


DOWN = errors.Unavailable("a is down")
BUSY = errors.TryLater("a is busy", retry_after_s=5.0)
NO_KEY = errors.Config("a refused the key")


@pytest.mark.parametrize(
    "error",
    [
        DOWN,
        BUSY,
        NO_KEY,
        errors.BrokenStream("a said nothing"),
        errors.ModelNotFound("a does not know it"),
    ],
)
def test_the_next_one_is_asked_where_one_cannot_answer_and_the_switch_is_told(error: errors.LoomError):
    a, b = Member("p/a", error), Member("p/b", "yes")
    notice, *rest = told(ChainModel([a, b]))
    assert notice == Notice("switched", f"{error}; p/b is asked instead")
    assert rest == [TextDelta("yes"), ChatReply("yes", model="p/b")]


@pytest.mark.parametrize(
    "error",
    [errors.BadInput("x"), errors.ContextOverflow("x"), errors.WorkFailed("x"), errors.NotFound("x")],
)
def test_an_error_another_model_cannot_mend_ends_it(error: errors.LoomError):
    b = Member("p/b", "yes")
    with pytest.raises(type(error)):
        told(ChainModel([Member("p/a", error), b]))
    assert b.asked == []


def test_a_refusal_is_an_answer():
    refused = [TextDelta("No."), ChatReply("No.", stop="refusal")]
    b = Member("p/b")
    assert answer(ChainModel([Member("p/a", refused), b])).stop == "refusal"
    assert b.asked == []


def test_nobody_is_asked_again_for_an_answer_that_was_shown_and_the_next_stream_begins_elsewhere():
    broken = [TextDelta("half an"), errors.BrokenStream("it broke off")]
    a, b = Member("p/a", broken), Member("p/b", "whole")
    chain = ChainModel([a, b])
    stream = chain.stream(chat())
    assert next(stream) == TextDelta("half an")
    with pytest.raises(errors.BrokenStream, match=r"^it broke off$"):
        next(stream)
    assert told(chain) == [TextDelta("whole"), ChatReply("whole", model="p/b")]
    assert len(a.asked) == 1


def test_one_that_failed_is_asked_last_for_a_minute_and_first_again_then():
    now = [1000.0]
    a, b = Member("p/a", DOWN, "back"), Member("p/b", "one", "two")
    chain = ChainModel([a, b], clock=lambda: now[0])
    assert answer(chain).model == "p/b"
    now[0] += REST_S - 1
    assert [type(chunk) for chunk in told(chain)] == [TextDelta, ChatReply]  # b at once, nothing to tell
    now[0] += 2
    assert answer(chain).model == "p/a"


def test_one_that_asks_for_more_rest_gets_it():
    now = [0.0]
    a = Member("p/a", errors.TryLater("busy", retry_after_s=600.0), "back")
    chain = ChainModel([a, Member("p/b", "one", "two")], clock=lambda: now[0])
    told(chain)
    now[0] = 599.0
    assert answer(chain).model == "p/b"
    now[0] = 601.0
    assert answer(chain).model == "p/a"


def test_when_all_rest_the_one_that_rests_longest_is_asked_first():
    now = [0.0]
    a, b = Member("p/a", DOWN, "a again"), Member("p/b", [TextDelta("x"), errors.BrokenStream("x")])
    chain = ChainModel([a, b], clock=lambda: now[0])
    with pytest.raises(errors.BrokenStream):
        now_told = chain.stream(chat())
        next(now_told)
        now[0] += 1
        list(now_told)
    assert answer(chain).text == "a again"


@pytest.mark.parametrize(
    "failures, kind, wait_s",
    [
        ([NO_KEY, DOWN], errors.Unavailable, None),
        ([DOWN, NO_KEY], errors.Unavailable, None),  # the down one may come back, the key does not
        ([BUSY, DOWN], errors.TryLater, None),  # the other may be back before five seconds have passed
        ([BUSY, NO_KEY], errors.TryLater, 5.0),
        ([BUSY, errors.TryLater("x", retry_after_s=2.0)], errors.TryLater, 2.0),
        ([NO_KEY, errors.ModelNotFound("gone")], errors.ModelNotFound, None),
    ],
)
def test_when_none_answers_the_error_says_most_and_names_all(failures, kind, wait_s):
    chain = ChainModel([Member(f"p/{n}", error) for n, error in enumerate(failures)])
    with pytest.raises(errors.LoomError) as caught:
        told(chain)
    assert type(caught.value) is kind
    assert caught.value.retry_after_s == wait_s
    assert caught.value.exit_status == kind.exit_status
    for n, error in enumerate(failures):
        assert f"p/{n} ({error.kind})" in str(caught.value)


def test_each_member_sees_its_own_name_and_its_own_thoughts():
    mine, yours = ({"dialect": "openai", "model": f"p/{name}", "value": name} for name in "ab")
    said = (ChatMessage("user", "go"), ChatMessage("assistant", "", thoughts=(mine, yours)))
    a, b = Member("p/a", DOWN), Member("p/b", [ChatReply("", thoughts=({"dialect": "openai", "value": "new"},))])
    reply = told(ChainModel([a, b]), ChatRequest("p/a|p/b", said))[-1]
    assert [m.asked[0].model for m in (a, b)] == ["p/a", "p/b"]
    assert [m.asked[0].messages[1].thoughts for m in (a, b)] == [(mine,), (yours,)]
    assert isinstance(reply, ChatReply)
    assert reply.thoughts == ({"dialect": "openai", "value": "new", "model": "p/b"},)


def test_closing_the_stream_closes_the_members():
    closed: list[str] = []

    class Endless(Member):
        def stream(self, request: ChatRequest) -> Iterator[Chunk]:
            try:
                while True:
                    yield TextDelta("on and ")
            finally:
                closed.append(self.name)

    stream = ChainModel([Endless("p/a"), Member("p/b")]).stream(chat())
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert closed == ["p/a"]


# names


def context(env: dict[str, str] | None = None, **more: Any) -> ModelContext:
    return ModelContext(env=env or {}, **more)


def test_a_chain_is_written_with_bars_and_blanks_do_not_count():
    assert members("a/x | b/y|c") == ["a/x", "b/y", "c"]
    model = open_model("llama3 | builtin|ollama/b", context(), role="planner")
    assert model.name == "ollama/llama3|builtin/planner|ollama/b"


@pytest.mark.parametrize(
    "name, said",
    [
        ("a/x|", "empty member"),
        ("|", "empty member"),
        ("a/x||b/y", "empty member"),
        ("|".join(["builtin"] * (MAX_MEMBERS + 1)), "8 are the most"),
        ("builtin|opnai/x", "did you mean 'openai'"),
    ],
)
def test_a_chain_that_is_none_is_a_usage_error(name, said):
    for tried in (open_model, check_model):
        with pytest.raises(errors.Usage, match=said):
            tried(name, context())


def test_all_members_are_checked_at_the_start():
    with pytest.raises(errors.Config, match="OPENAI_API_KEY"):
        check_model("builtin|openai/gpt", context())
    with pytest.raises(errors.NotFound):
        check_model("builtin|exec/./absent", context())


def test_a_server_a_program_and_a_script_in_one_chain(server, tmp_path: Path):
    (tmp_path / "fails").write_text("#!/bin/sh\necho 'no machine' >&2\nexit 69\n")
    (tmp_path / "fails").chmod(0o755)
    (tmp_path / "last").write_text(json.dumps({"text": "from the script"}) + "\n")
    lab = Provider("lab", "openai", server.url, key="lab")
    given = context({"PATH": "/bin:/usr/bin", "LAB_API_KEY": KEY}, providers={"lab": lab}, cwd=str(tmp_path))
    server.answers += [[response(503, b'{"error": "loading"}')], [STREAM + sse(delta(content="up"), delta("stop"))]]
    chain = open_model("exec/./fails|lab/m1|script/last", given)
    chunks = list(chain.stream(chat()))
    assert [c.text for c in chunks if isinstance(c, Notice)] == [
        "exec/./fails ended with status 69: no machine; lab/m1 is asked instead",
        "lab/m1 answered 503: loading; script/last is asked instead",
    ]
    assert chunks[-1] == ChatReply("from the script", model="script/last")
