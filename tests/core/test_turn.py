"""One turn, decided from its record alone; which is why a turn that was cut off anywhere goes on as it would have."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loom.core.turn import (
    INTERRUPTED,
    MAX_TRIES,
    Answer,
    Ask,
    Report,
    Run,
    Stop,
    decide,
    result_text,
    retry_wait_s,
    tidy,
)
from loom.wire.chat import ChatMessage, ChatReply, ChatRequest, ToolCall, ToolSpec
from loom.wire.turn import Step

FIRST = ChatRequest("m", (ChatMessage("user", "Do it."),))
TOOLS = {
    "read-file": ToolSpec("read-file", "reads", {}, idempotent=True),
    "write-file": ToolSpec("write-file", "writes", {}, idempotent=False),
}
OK: dict[str, Any] = {"status": "ok", "result": 1}
BAD: dict[str, Any] = {"status": "error", "error": "no"}


def call(name: str = "read-file", id: str = "1", **given: Any) -> ToolCall:
    return ToolCall(id, name, given, "")


def says(*calls: ToolCall, text: str = "", stop: str = "end") -> ChatReply:
    return ChatReply(text, calls, stop="tools" if calls and stop == "end" else stop)  # type: ignore[arg-type]


def step(reply: ChatReply | None = None, request: ChatRequest = FIRST, **results: dict[str, Any]) -> Step:
    """A step in which these calls are done: results by call id without its `c`."""
    done = {name.removeprefix("c"): result for name, result in results.items()}
    intents = {c.id: c for c in (reply.calls if reply else ()) if c.id in done}
    return Step(request, reply, intents, dict(done))


def test_a_turn_begins_with_its_first_request():
    assert decide([], FIRST, TOOLS) == Ask(FIRST, recorded=False)


def test_a_request_without_a_reply_is_sent_as_it_stands_in_the_record():
    other = dataclasses.replace(FIRST, model="recorded")
    assert decide([Step(other)], FIRST, TOOLS) == Ask(other, recorded=True)


def test_calls_are_run_one_after_the_other():
    first, second = call(id="1"), call(id="2")
    assert decide([step(says(first, second))], FIRST, TOOLS) == Run(first, again=False)
    assert decide([step(says(first, second), c1=OK)], FIRST, TOOLS) == Run(second, again=False)


def test_an_interrupted_call_is_run_again_only_when_that_does_no_harm():
    for name, expected in (("read-file", Run), ("write-file", Report), ("gone", Report)):
        one = call(name)
        begun = Step(FIRST, says(one), {"1": one})
        action = decide([begun], FIRST, TOOLS)
        assert isinstance(action, expected)
        if isinstance(action, Run):
            assert action.again
        elif isinstance(action, Report):
            assert action.error == INTERRUPTED


@pytest.mark.parametrize("name, hint", [("read_file", "did you mean 'read-file'"), ("qqq", "tools: read-file, write")])
def test_an_unknown_tool_is_reported_with_the_nearest(name: str, hint: str):
    action = decide([step(says(call(name)))], FIRST, TOOLS)
    assert isinstance(action, Report) and hint in action.error


def test_arguments_that_are_no_object_are_reported():
    action = decide([step(says(ToolCall("1", "read-file", None, "[1")))], FIRST, TOOLS)
    assert isinstance(action, Report) and "not one JSON object" in action.error


def test_results_go_back_to_the_model_with_what_it_said():
    one, two = call(id="1"), call(id="2")
    action = decide([step(says(one, two, text="I read"), c1=OK, c2=BAD)], FIRST, TOOLS)
    assert isinstance(action, Ask) and not action.recorded
    assert action.request.messages[1:] == (
        ChatMessage("assistant", "I read", (one, two)),
        ChatMessage("tool", result_text(OK), call_id="1", is_error=False),
        ChatMessage("tool", result_text(BAD), call_id="2", is_error=True),
    )


@pytest.mark.parametrize("reply, action", [
    (says(text="done"), Answer("done")),
    (says(text=" x ", stop="length"), Stop("cut_off", "the answer was cut off at the model's output limit")),
    (says(text="no way", stop="refusal"), Stop("refusal", "the model refused: no way")),
    (says(stop="refusal"), Stop("refusal", "the model refused: no reason given")),
])  # fmt: skip
def test_how_a_turn_ends(reply: ChatReply, action: Any):
    assert decide([step(reply)], FIRST, TOOLS) == action


def test_an_empty_answer_is_asked_about_once():
    action = decide([step(says(text=" \n"))], FIRST, TOOLS)
    assert isinstance(action, Ask) and "empty" in action.request.messages[-1].text
    again = decide([step(says()), step(says(), request=action.request)], FIRST, TOOLS)
    assert isinstance(again, Stop) and again.kind == "empty_answer"


@pytest.mark.parametrize("steps, limit, kind", [(3, 3, "step_limit"), (3, 4, None)])
def test_a_turn_has_so_many_steps(steps: int, limit: int, kind: str | None):
    record = [step(says(call(path=str(n))), c1=OK) for n in range(steps)]
    action = decide(record, FIRST, TOOLS, max_steps=limit)
    assert (action.kind if isinstance(action, Stop) else None) == kind


def test_an_empty_answer_does_not_go_beyond_the_steps_either():
    record = [step(says(call()), c1=OK), step(says())]
    assert isinstance(decide(record, FIRST, TOOLS, max_steps=3), Ask)
    assert isinstance(decide(record, FIRST, TOOLS, max_steps=2), Stop)


def answered(*replies: ChatReply, first: ChatRequest = FIRST, **results: dict[str, Any]) -> list[Step]:
    """The record after these replies, each to the request that `decide` made of those before it."""
    steps: list[Step] = []
    for reply in replies:
        action = decide(steps, first, TOOLS)
        assert isinstance(action, Ask), action
        steps.append(step(reply, action.request, **(results if reply.calls else {})))
    return steps


@pytest.mark.parametrize("result", [OK, BAD])
def test_the_same_calls_three_times_are_told_and_then_end_the_turn(result: dict[str, Any]):
    round = says(call(path="x"))
    assert not decide(answered(round, round, c1=result), FIRST, TOOLS).why
    told = decide(answered(round, round, round, c1=result), FIRST, TOOLS)
    assert isinstance(told, Ask) and told.why
    assert [m.role for m in told.request.messages[-2:]] == ["tool", "user"]
    assert "three times" in told.request.messages[-1].text
    stop = decide(answered(round, round, round, round, c1=result), FIRST, TOOLS)
    assert isinstance(stop, Stop) and stop.kind == "repeats"
    other = says(call(path="y"))
    on = decide(answered(round, round, round, other, c1=result), FIRST, TOOLS)
    assert isinstance(on, Ask) and not on.why


def test_other_calls_and_other_results_are_progress():
    failing = step(says(call(path="x")), c1=BAD)
    other = step(says(call(path="y")), c1=BAD)
    fine = step(says(call(path="x")), c1=OK)
    for record in (
        [failing, other, failing],
        [failing, fine, failing],
        [failing, failing, other],
        [fine, failing, fine],
    ):
        action = decide(record, FIRST, TOOLS)
        assert isinstance(action, Ask) and not action.why
    counted = [step(says(call(path="x")), c1={"status": "ok", "result": n}) for n in range(3)]
    assert not decide(counted, FIRST, TOOLS).why
    differently = [step(says(call(path="x")), c1={"status": "error", "error": str(n)}) for n in range(3)]
    assert decide(differently, FIRST, TOOLS).why  # a failure is a failure, whatever its words


WRITTEN = '{"name": "read-file", "arguments": {"path": "a"}}'


def test_a_call_written_as_text_is_not_run_but_told_once():
    told = decide(answered(says(text=WRITTEN)), FIRST, TOOLS)
    assert isinstance(told, Ask) and "read-file" in told.why
    assert [(m.role, m.text) for m in told.request.messages[1:-1]] == [("assistant", WRITTEN)]
    assert "through the tool interface" in told.request.messages[-1].text
    assert decide(answered(says(text=WRITTEN), says(text=WRITTEN)), FIRST, TOOLS) == Answer(WRITTEN)
    assert isinstance(decide(answered(says(text=WRITTEN), says(call())), FIRST, TOOLS), Run)
    assert decide(answered(says(text=WRITTEN)), FIRST, {}) == Answer(WRITTEN)
    assert decide(answered(says(text=WRITTEN)), FIRST, TOOLS, max_steps=1) == Answer(WRITTEN)


def test_what_repeats_itself_without_end_is_no_answer():
    for stop in ("end", "length"):
        action = decide(answered(says(text="and then\n" * 60, stop=stop)), FIRST, TOOLS)
        assert isinstance(action, Stop) and (action.kind, "and then" in action.why) == ("repetition", True)
    quoted = dataclasses.replace(FIRST, messages=(ChatMessage("user", "and then\n" * 60),))
    assert decide([step(says(text="and then\n" * 60), quoted)], quoted, TOOLS) == Answer("and then\n" * 60)


# -- with a schema ----------------------------------------------------------------------------------------------------

WANTED = dataclasses.replace(
    FIRST, schema={"type": "object", "required": ["n"], "properties": {"n": {"type": "integer"}}}
)


def test_an_answer_that_fits_is_the_answer_as_one_line_of_json():
    assert decide(answered(says(text='So: {"n": 1,\n}'), first=WANTED), WANTED, TOOLS) == Answer('{"n":1}')


def test_one_that_does_not_is_sent_back_with_its_faults_twice():
    bad, worse = says(text='{"n": "1"}'), says(text="one")
    first = decide(answered(bad, first=WANTED), WANTED, TOOLS)
    assert isinstance(first, Ask) and first.request.schema == WANTED.schema
    assert [m.role for m in first.request.messages] == ["user", "assistant", "user"]
    assert "- $.n must be of type integer, not string ('1')" in first.request.messages[-1].text
    assert first.why.endswith("$.n must be of type integer, not string ('1')")
    assert isinstance(decide(answered(bad, worse, first=WANTED), WANTED, TOOLS), Ask)
    assert decide(answered(bad, worse, says(text='{"n": 2}'), first=WANTED), WANTED, TOOLS) == Answer('{"n":2}')
    stop = decide(answered(bad, worse, bad, first=WANTED), WANTED, TOOLS)
    assert isinstance(stop, Stop) and stop.kind == "schema" and "3 tries" in stop.why and "$.n must be" in stop.why


def test_only_the_last_answer_of_a_turn_with_tools_is_held_against_the_schema():
    record = answered(says(call(), text="I look"), says(text='{"n": 1}'), first=WANTED, c1=OK)
    assert decide(record, WANTED, TOOLS) == Answer('{"n":1}')
    between = answered(says(text="bad"), says(call()), says(text="bad"), says(text="bad"), first=WANTED, c1=OK)
    assert isinstance(decide(between, WANTED, TOOLS), Stop)  # three answers, whatever stands between them


def test_what_the_user_says_like_us_does_not_count():
    user = ChatMessage("user", "Your answer does not fit the schema:\n" * 3)
    quoting = dataclasses.replace(WANTED, messages=(user,))
    assert isinstance(decide(answered(says(text="bad"), first=quoting), quoting, TOOLS), Ask)


def test_json_that_was_asked_for_is_no_call():
    open = dataclasses.replace(FIRST, schema={"type": "object"})
    assert decide(answered(says(text=WRITTEN), first=open), open, TOOLS) == Answer(
        '{"name":"read-file","arguments":{"path":"a"}}'
    )
    told = decide(answered(says(text=WRITTEN), first=WANTED), WANTED, TOOLS)
    assert isinstance(told, Ask) and "read-file" in told.why


@pytest.mark.parametrize("reply, kind", [
    (says(text='{"n": 1}', stop="length"), "cut_off"), (says(text='{"n": 1}', stop="refusal"), "refusal"),
])  # fmt: skip
def test_a_cut_off_or_refused_answer_is_none_even_when_it_fits(reply: ChatReply, kind: str):
    action = decide(answered(reply, first=WANTED), WANTED, TOOLS)
    assert isinstance(action, Stop) and action.kind == kind


# -- recovery -------------------------------------------------------------------------------------------------------

ids = st.sampled_from(["1", "2", "3"])
calls = st.builds(
    ToolCall,
    ids,
    st.sampled_from(["read-file", "write-file", "ghost"]),
    st.sampled_from([None, {}, {"path": "a"}]),
    st.just("raw"),
)
replies = st.builds(
    says,
    text=st.sampled_from(["", "well", " ", '{"n": 1}', '{"n": "1"}', WRITTEN, "again\n" * 50]),
    stop=st.sampled_from(["end", "end", "length", "refusal"]),
) | st.lists(calls, min_size=1, max_size=3).map(lambda found: says(*found))


class Recorder:
    """A turn with a model and tools that chance plays: what was recorded, and which action came before each record."""

    def __init__(self, first: ChatRequest) -> None:
        self.first = first
        self.records: list[tuple[Any, tuple[Any, ...]]] = []

    def run(self, data: st.DataObject) -> None:
        while True:
            steps = self.replay(len(self.records))
            action = decide(steps, self.first, TOOLS, max_steps=8)
            match action:
                case Answer() | Stop():
                    self.records.append((action, ()))
                    return
                case Ask(request, recorded):
                    if not recorded:
                        self.records.append((action, ("request", request)))
                    else:
                        reply = tidy(data.draw(replies), len(steps) - 1)
                        self.records.append((action, ("reply", reply)))
                case Run(call, again):
                    if not again:
                        self.records.append((action, ("intent", call)))
                    # The result is recorded without asking again, as the loop does it.
                    self.records.append(
                        (Run(call, again=True), ("result", call.id, data.draw(st.sampled_from([OK, BAD]))))
                    )
                case Report(call, error):
                    self.records.append((action, ("result", call.id, {"status": "error", "error": error})))

    def replay(self, count: int) -> list[Step]:
        steps: list[Step] = []
        for _, record in self.records[:count]:
            match record:
                case ("request", request):
                    steps.append(Step(request))
                case ("reply", reply):
                    steps[-1].reply = reply
                case ("intent", call):
                    steps[-1].intents[call.id] = call
                case ("result", id, result):
                    steps[-1].results[id] = result
        return steps


@given(st.data())
@settings(max_examples=300, derandomize=True, deadline=None)
def test_from_any_prefix_of_its_record_a_turn_goes_on_as_the_whole_one_did(data: st.DataObject):
    turn = Recorder(data.draw(st.sampled_from([FIRST, WANTED])))
    turn.run(data)
    for count, (action, record) in enumerate(turn.records):
        now = decide(turn.replay(count), turn.first, TOOLS, max_steps=8)
        if record[:1] == ("result",) and isinstance(action, Run) and not TOOLS[action.call.name].idempotent:
            assert now == Report(action.call, INTERRUPTED)  # the one place where it cannot be known
        else:
            assert now == action


@given(st.lists(st.builds(ToolCall, st.sampled_from(["", "1", "call-0-0", "call-0-1", "call-0-2"]), st.just("t"),
                          st.just({}), st.just("")), max_size=4))  # fmt: skip
def test_after_tidying_every_call_has_a_name_of_its_own(found: list[ToolCall]):
    tidied = tidy(ChatReply("", tuple(found)), 0).calls
    names = [c.id for c in tidied]
    assert len(set(names)) == len(found) and all(names)
    first = {c.id: n for n, c in reversed(list(enumerate(found))) if c.id}
    assert all(tidied[n].id == id for id, n in first.items())


@pytest.mark.parametrize("tries, said, wait", [
    (1, None, 1.0), (2, None, 2.0), (4, None, 8.0), (MAX_TRIES, None, None), (MAX_TRIES, 1.0, None),
    (1, 7.5, 7.5), (1, -3.0, 0.0), (1, 1e9, 60.0), (1, 0.0, 0.0),
])  # fmt: skip
def test_how_long_to_wait_before_asking_again(tries: int, said: float | None, wait: float | None):
    assert retry_wait_s(tries, said) == wait
