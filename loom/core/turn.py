"""What a turn must do next, decided from what its record holds (docs/protocol.md section 5, ADR-0004).

Enters: recorded steps, the tools granted, limits. Leaves: one action. Stays out: models, tools, files, clocks.
The loop that carries actions out and records them: loom/daemons/turnloop.py. After a crash the same function on
the same record gives the same action, which is all that recovery is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from loom.core import first_aid
from loom.wire.chat import ChatMessage, ChatReply, ChatRequest, ToolCall, ToolSpec
from loom.wire.jsontext import dumps
from loom.wire.record import record, replace
from loom.wire.turn import Step

MAX_STEPS = 60
MAX_TRIES = 5
MAX_RETRY_AFTER_S = 60.0
ARTIFACT_STEPS = 12

# What a model is told once in a turn, and people as {"event": "asked_again", "why": …}.
_EMPTY = "Your last answer was empty. Answer the request, or call a tool."
_WRITTEN = "You wrote a tool call as text, and nothing was run. Call the tool through the tool interface, or answer \
without it."
_ROUND = "You have made the same tool calls three times in a row with the same results. Do something else, or answer \
with what you have."
_CYCLE = "You have made the same few tool calls by turns, three times over, with the same results. Do something else, \
or answer with what you have."
_BARREN = "None of your last tool calls has brought anything new. Do something else, or answer with what you have."

INTERRUPTED = (
    "interrupted: loom stopped while this call was running; whether it took effect is unknown and it was not repeated"
)


@record
class Ask:
    """Send this request.

    recorded  it stands in the record already and is sent exactly as it is there
    why       the reason, when the last answer was not taken
    """

    request: ChatRequest
    recorded: bool
    why: str = ""


@record
class Run:
    """Run this tool. `again`: its intent is recorded already (an idempotent tool, interrupted)."""

    call: ToolCall
    again: bool


@record
class Report:
    """Give the model this result without running anything."""

    call: ToolCall
    error: str


@record
class Answer:
    """The turn is done; this is its text, one line of JSON when there is a schema."""

    text: str


@record
class Stop:
    """The turn ends without an answer. `kind` is the error type, `why` one line."""

    kind: str
    why: str


Action = Ask | Run | Report | Answer | Stop


def decide(
    steps: Sequence[Step],
    first: ChatRequest,
    tools: Mapping[str, ToolSpec],
    max_steps: int = MAX_STEPS,
    artifact_steps: int = ARTIFACT_STEPS,
) -> Action:
    """The next action. `first` is the request of step 0 and is used only when nothing is recorded yet.

    artifact_steps   after so many steps in a row without a new result the model is told, after as many more the turn
                     ends; 0: never
    """
    if not steps:
        return Ask(first, recorded=False)
    last = steps[-1]
    if last.reply is None:
        return Ask(last.request, recorded=True)
    for call in last.reply.calls:
        if call.id not in last.results:
            return _call(call, last, tools)
    if not last.reply.calls:
        return _finish(steps, last.request, last.reply, tools, max_steps)
    if len(steps) >= max_steps:
        return Stop("step_limit", f"no answer after {max_steps} steps")
    return _go_on(steps, _continued(last, last.reply), tools, artifact_steps)


def _go_on(steps: Sequence[Step], request: ChatRequest, tools: Mapping[str, ToolSpec], artifact_steps: int) -> Action:
    """Ask the next step, with a remark when the turn gets nowhere; end it when that was said before."""
    from loom.core import rounds  # here, because most turns have no calls
    from loom.wire import hang

    if length := rounds.period(steps, tools):
        shape, said = ("repeats", _ROUND) if length == 1 else ("alternates", _CYCLE)
        what = f"the same {_times(length, 'step')} had the same results again and again: {_names(steps[-length:])}"
        if _told(steps, _ROUND) or _told(steps, _CYCLE):
            return Stop(shape, f"{what}; also when it was told")
        return Ask(_with(request, said), recorded=False, why=hang.line(shape, what))
    if artifact_steps and rounds.is_barren(steps, artifact_steps, tools):
        what = f"nothing new in {_times(artifact_steps, 'step')}: {_names(steps[-artifact_steps:])}"
        told = _steps_since(steps, _BARREN)
        if told >= artifact_steps:
            return Stop("no_artifact", f"{what}; also when it was told")
        if not told:
            return Ask(_with(request, _BARREN), recorded=False, why=hang.line("no_artifact", what))
    return Ask(request, recorded=False)


def _times(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def _names(steps: Sequence[Step]) -> str:
    """The tools that these steps called, each once."""
    called = (call.name for step in steps if step.reply is not None for call in step.reply.calls)
    return ", ".join(ascii(name)[1:-1][:40] for name in list(dict.fromkeys(called))[:5])


def _call(call: ToolCall, step: Step, tools: Mapping[str, ToolSpec]) -> Action:
    tool = tools.get(call.name)
    if call.id in step.intents:
        if tool is not None and tool.idempotent:
            return Run(call, again=True)
        return Report(call, INTERRUPTED)
    if tool is None:
        return Report(call, _unknown_tool(call.name, tools))
    if call.input is None:
        return Report(call, f"the arguments of {call.name} were not one JSON object; send them again as an object")
    return Run(call, again=False)


def _unknown_tool(name: str, tools: Mapping[str, ToolSpec]) -> str:
    import difflib  # here, because most tools that are called exist

    close = difflib.get_close_matches(name, list(tools), 1)
    known = f"did you mean {close[0]!r}?" if close else f"tools: {', '.join(sorted(tools)) or 'none'}"
    return f"there is no tool named {ascii(name)[:80]}; {known}"


def _finish(
    steps: Sequence[Step], request: ChatRequest, reply: ChatReply, tools: Mapping[str, ToolSpec], max_steps: int
) -> Action:
    """What becomes of an answer without calls."""
    if reply.stop == "refusal":
        return Stop("refusal", f"the model refused: {reply.text.strip()[:200] or 'no reason given'}")
    if phrase := first_aid.endless(reply.text, (m.text for m in request.messages if m.role != "assistant")):
        return Stop("repetition", f"the answer repeats itself without end: {ascii(phrase)[:80]}")
    if reply.stop == "length":
        return Stop("cut_off", "the answer was cut off at the model's output limit")
    more = len(steps) < max_steps
    if not reply.text.strip():
        if _told(steps, _EMPTY) or not more:
            return Stop("empty_answer", "the model answered nothing, also when asked again")
        return Ask(_with(request, _EMPTY), recorded=False, why="the answer was empty")
    text, faults = _read(request, reply.text)
    said = _with(request, ChatMessage("assistant", reply.text))
    if faults or request.schema is None:  # JSON that is what was asked for is no call
        named = first_aid.written_call(reply.text, tools)
        if named and more and not _told(steps, _WRITTEN):
            return Ask(_with(said, _WRITTEN), recorded=False, why=f"the answer is a call of {named} written as text")
    return _not_fitting(steps, said, faults, more) if faults else Answer(text)


def _read(request: ChatRequest, text: str) -> tuple[str, list[str]]:
    """(the answer, []), or ('', what is wrong with it)."""
    if request.schema is None:
        return text, []
    from loom.core import answer  # here, because most turns have no schema

    return answer.read(request.schema, text)


def _not_fitting(steps: Sequence[Step], said: ChatRequest, faults: Sequence[str], more: bool) -> Action:
    from loom.core import answer

    tries = 1 + _times_told(steps, answer.AGAIN)
    if tries >= answer.MAX_ANSWERS or not more:
        after = f", also after {tries} tries" if tries > 1 else ""
        return Stop("schema", f"the answer does not fit the schema{after}: {'; '.join(faults[:5])}")
    return Ask(
        _with(said, answer.ask_again(faults)), recorded=False, why=f"the answer does not fit the schema: {faults[0]}"
    )


def _with(request: ChatRequest, *said: str | ChatMessage) -> ChatRequest:
    """The request with more messages at its end; a text is said by the user."""
    added = (ChatMessage("user", one) if isinstance(one, str) else one for one in said)
    return replace(request, messages=(*request.messages, *added))


def _told(steps: Sequence[Step], text: str) -> bool:
    return _times_told(steps, text) > 0


def _times_told(steps: Sequence[Step], text: str) -> int:
    """How often this turn told the model a text that begins so. What the user said before it does not count."""
    added = steps[-1].request.messages[len(steps[0].request.messages) :]
    return sum(1 for message in added if message.role == "user" and message.text.startswith(text))


def _steps_since(steps: Sequence[Step], text: str) -> int:
    """How many steps this turn has asked since it told the model this text; 0: it has not."""
    begun = len(steps[0].request.messages)
    told = (any(m.role == "user" and m.text == text for m in step.request.messages[begun:]) for step in steps)
    return sum(told)


def _continued(step: Step, reply: ChatReply) -> ChatRequest:
    added = [ChatMessage("assistant", reply.text, reply.calls, thoughts=reply.thoughts)]
    for call in reply.calls:
        result = step.results[call.id]
        added.append(ChatMessage("tool", result_text(result), call_id=call.id, is_error=result.get("status") != "ok"))
    return replace(step.request, messages=(*step.request.messages, *added))


def result_text(result: Mapping[str, Any]) -> str:
    """A tool's result as the model reads it: the JSON the tool printed."""
    return dumps(dict(result)).decode()


def tidy(reply: ChatReply, step: int) -> ChatReply:
    """The reply with call ids that are present and unique within it: models forget and repeat them."""
    seen: set[str] = set()
    said = {call.id for call in reply.calls}
    calls = []
    for number, call in enumerate(reply.calls):
        unique = call.id
        if not unique or unique in seen:
            unique = f"call-{step}-{number}"
            while unique in said:  # another call of this reply may bear that very name
                unique += "-"
        seen.add(unique)
        calls.append(replace(call, id=unique))
    return replace(reply, calls=tuple(calls)) if reply.calls else reply


def retry_wait_s(tries: int, retry_after_s: float | None) -> float | None:
    """How long to wait before asking again after `tries` failed requests, or None to give up: 1, 2, 4, 8 s."""
    if tries >= MAX_TRIES:
        return None
    if retry_after_s is not None:
        return min(max(retry_after_s, 0.0), MAX_RETRY_AFTER_S)
    return float(2 ** (tries - 1))
