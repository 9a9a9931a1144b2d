"""What a turn must do next, decided from what its record holds (docs/protocol.md section 5, ADR-0004).

Enters: recorded steps, the tools granted, limits. Leaves: one action. Stays out: models, tools, files, clocks.
The loop that carries actions out and records them: loom/daemons/turnloop.py. After a crash the same function on
the same record gives the same action, which is all that recovery is.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from loom.wire.chat import ChatMessage, ChatReply, ChatRequest, ToolCall, ToolSpec
from loom.wire.jsontext import dumps
from loom.wire.turn import Step

MAX_STEPS = 60
MAX_TRIES = 5
MAX_RETRY_AFTER_S = 60.0
_SAME_FAILURES = 3
_EMPTY_NUDGE = "Your last answer was empty. Answer the request, or call a tool."

INTERRUPTED = (
    "interrupted: loom stopped while this call was running; whether it took effect is unknown and it was not repeated"
)


@dataclass(frozen=True, slots=True)
class Ask:
    """Send this request. `recorded`: it stands in the record already and is sent exactly as it is there."""

    request: ChatRequest
    recorded: bool


@dataclass(frozen=True, slots=True)
class Run:
    """Run this tool. `again`: its intent is recorded already (an idempotent tool, interrupted)."""

    call: ToolCall
    again: bool


@dataclass(frozen=True, slots=True)
class Report:
    """Give the model this result without running anything."""

    call: ToolCall
    error: str


@dataclass(frozen=True, slots=True)
class Answer:
    """The turn is done; this is its text."""

    text: str


@dataclass(frozen=True, slots=True)
class Stop:
    """The turn ends without an answer. `kind` is the error type, `why` one line."""

    kind: str
    why: str


Action = Ask | Run | Report | Answer | Stop


def decide(
    steps: Sequence[Step], first: ChatRequest, tools: Mapping[str, ToolSpec], max_steps: int = MAX_STEPS
) -> Action:
    """The next action. `first` is the request of step 0 and is used only when nothing is recorded yet."""
    if not steps:
        return Ask(first, recorded=False)
    last = steps[-1]
    if last.reply is None:
        return Ask(last.request, recorded=True)
    for call in last.reply.calls:
        if call.id not in last.results:
            return _call(call, last, tools)
    if not last.reply.calls:
        return _finish(steps, last, last.reply, max_steps)
    if _no_progress(steps):
        return Stop("no_progress", f"the same tool calls failed {_SAME_FAILURES} times in a row")
    if len(steps) >= max_steps:
        return Stop("step_limit", f"no answer after {max_steps} steps")
    return Ask(_continued(last, last.reply), recorded=False)


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
    close = difflib.get_close_matches(name, list(tools), 1)
    known = f"did you mean {close[0]!r}?" if close else f"tools: {', '.join(sorted(tools)) or 'none'}"
    return f"there is no tool named {ascii(name)[:80]}; {known}"


def _finish(steps: Sequence[Step], last: Step, reply: ChatReply, max_steps: int) -> Action:
    if reply.stop == "length":
        return Stop("cut_off", "the answer was cut off at the model's output limit")
    if reply.stop == "refusal":
        return Stop("refusal", f"the model refused: {reply.text.strip()[:200] or 'no reason given'}")
    if reply.text.strip():
        return Answer(reply.text)
    nudged = any(m.role == "user" and m.text == _EMPTY_NUDGE for m in last.request.messages)
    if nudged or len(steps) >= max_steps:
        return Stop("empty_answer", "the model answered nothing, also when asked again")
    messages = (*last.request.messages, ChatMessage("user", _EMPTY_NUDGE))
    return Ask(replace(last.request, messages=messages), recorded=False)


def _continued(step: Step, reply: ChatReply) -> ChatRequest:
    added = [ChatMessage("assistant", reply.text, reply.calls, thoughts=reply.thoughts)]
    for call in reply.calls:
        result = step.results[call.id]
        added.append(ChatMessage("tool", result_text(result), call_id=call.id, is_error=result.get("status") != "ok"))
    return replace(step.request, messages=(*step.request.messages, *added))


def result_text(result: Mapping[str, Any]) -> str:
    """A tool's result as the model reads it: the JSON the tool printed."""
    return dumps(dict(result)).decode()


def _no_progress(steps: Sequence[Step]) -> bool:
    if len(steps) < _SAME_FAILURES:
        return False
    seen = [_failures(step) for step in steps[-_SAME_FAILURES:]]
    return seen[0] is not None and all(s == seen[0] for s in seen)


def _failures(step: Step) -> list[tuple[str, bytes]] | None:
    """The calls of a step in which every call failed, else None."""
    if step.reply is None or any(r.get("status") == "ok" for r in step.results.values()):
        return None
    return [(c.name, dumps(dict(c.input or {"raw": c.raw}))) for c in step.reply.calls]


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
