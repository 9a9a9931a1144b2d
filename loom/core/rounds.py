"""Whether a turn gets anywhere: the same calls again, by turns, or nothing new for many steps. Pure.

Two calls are the same when they say the same in other words: another order of arguments, other blanks and, of a tool
that only reads, capitals. They are repeated when their results are the same too; all failures of one call are.
An *artifact* is a result that is new in the turn: a file written, a page read for the first time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from loom.wire.chat import ToolCall, ToolSpec
from loom.wire.turn import Step

TIMES = 3
PERIODS = (1, 2, 3)  # steps after which it begins again


def period(steps: Sequence[Step], tools: Mapping[str, ToolSpec]) -> int:
    """After how many steps the last ones begin again, TIMES times over; 0 when they do not."""
    for length in PERIODS:
        last = steps[-length * TIMES :]
        if len(last) < length * TIMES or not all(step.reply is not None and step.reply.calls for step in last):
            return 0
        if all(_same(one, other, tools) for one, other in zip(last, last[length:], strict=False)):
            return length
    return 0


def is_barren(steps: Sequence[Step], count: int, tools: Mapping[str, ToolSpec]) -> bool:
    """Whether none of the last `count` steps has a result that was not there before."""
    if len(steps) < count:
        return False
    return not any(_has_new(steps, at, tools) for at in range(len(steps) - 1, len(steps) - count - 1, -1))


def _has_new(steps: Sequence[Step], at: int, tools: Mapping[str, ToolSpec]) -> bool:
    for call in _calls(steps[at]):
        result = steps[at].results.get(call.id, {})
        if result.get("status") == "ok" and not any(
            _outcome(step, known) == result and _is_like(known, call, tools)
            for step in steps[:at]
            for known in _calls(step)
        ):
            return True
    return False


def _same(one: Step, other: Step, tools: Mapping[str, ToolSpec]) -> bool:
    first, second = _calls(one), _calls(other)
    return len(first) == len(second) and all(
        _outcome(one, a) == _outcome(other, b) and _is_like(a, b, tools) for a, b in zip(first, second, strict=True)
    )


def _calls(step: Step) -> tuple[ToolCall, ...]:
    return step.reply.calls if step.reply is not None else ()


def _outcome(step: Step, call: ToolCall) -> Any:
    result = step.results.get(call.id, {})
    return result if result.get("status") == "ok" else "failed"


def _is_like(one: ToolCall, other: ToolCall, tools: Mapping[str, ToolSpec]) -> bool:
    """Whether two calls say the same. Capitals count where something is written: they may be what was mended."""
    if one.name != other.name:
        return False
    tool = tools.get(one.name)
    exact = tool is None or tool.writes
    return bool(
        _plain(one.input, exact) == _plain(other.input, exact) and _plain(one.raw, exact) == _plain(other.raw, exact)
    )


def _plain(value: Any, exact: bool) -> Any:
    match value:
        case str():
            text = " ".join(value.split())
            return text if exact else text.casefold()
        case Mapping():
            return {key: _plain(item, exact) for key, item in value.items()}
        case list() | tuple():
            return [_plain(item, exact) for item in value]
        case bool():
            return ("bool", value)  # True is 1 to ==
    return value
