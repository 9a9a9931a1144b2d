"""Carrying a turn out: ask, run tools, record each step before the next (docs/protocol.md section 5, ADR-0004).

What is to be done next is decided by loom.core.turn from the record alone. Used by runners and by filters alike.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from loom.core import turn as core
from loom.models.base import Model
from loom.proc.stopping import OutOfTime, Stopping, Unwanted
from loom.spool.heartbeat import Heartbeat
from loom.spool.logs import Log
from loom.spool.turns import Turn
from loom.wire.chat import ChatReply, ChatRequest, Notice, TextDelta, ToolCall, ToolSpec, Usage, usage_to_json
from loom.wire.errors import BadInput, Deadline, LoomError, TryLater, Unavailable, WorkFailed
from loom.wire.record import field, record

_FAILURES = (
    "refusal",
    "repeats",
    "alternates",
    "no_artifact",
    "step_limit",
    "repetition",
)  # of the work; others are of the request

Emit = Callable[[dict[str, Any]], None]


@record
class Tools:
    """The granted tools and how one call of them is made: (call) -> {"status": …}; raises OSError or Disk only.

    longest_s   after so many seconds a call is over, whatever the tool does
    """

    specs: Mapping[str, ToolSpec] = field(default_factory=dict)
    run: Callable[[ToolCall], Mapping[str, Any]] | None = None
    longest_s: float = 0.0


@record
class Patience:
    """How long a turn is borne, and who is shown that it goes on.

    max_steps        how often the model may be asked
    artifact_steps   steps without a new result: see loom.core.turn.decide
    model_s          for so long at most a model gives no sign
    """

    max_steps: int = core.MAX_STEPS
    artifact_steps: int = core.ARTIFACT_STEPS
    model_s: float = 0.0
    heartbeat: Heartbeat = field(default_factory=Heartbeat)


@record
class Outcome:
    """What a turn came to: the last answer's text and the tokens of all its calls, of earlier incarnations too."""

    text: str
    usage: Usage
    steps: int
    failed_calls: int


def run(
    turn: Turn,
    first: ChatRequest,
    model: Model,
    tools: Tools,
    stopping: Stopping,
    log: Log,
    *,
    emit: Emit = lambda event: None,
    streaming: bool = False,
    patience: Patience | None = None,
    deadline_ms: int | None = None,
    abandoned: Callable[[], bool] | None = None,
) -> Outcome:
    """Go on with a turn until it has an answer.

    emit       gets {"event": "text"|"tool_call"|"tool_result"|"usage"|"asked_again"|"retry"|"notice", …}
    abandoned  whether nobody waits for the answer any longer; asked before each step, and while a model is at it
    streaming  text is shown as it comes, so a request that broke after its first words is not sent again
    Raises LoomError when there will be no answer, proc.stopping.Leaving when asked to leave (all is recorded),
    OSError when the disk refuses.
    """
    try:
        with stopping.limit(None if deadline_ms is None else deadline_ms / 1000 - time.time(), abandoned):
            bears = patience or Patience()
            return _run(turn, first, model, tools, stopping, log, emit, streaming, bears, deadline_ms)
    except OutOfTime:
        raise Deadline("the deadline has passed", hint="what was done is recorded") from None
    except Unwanted:
        raise WorkFailed("nobody waits for the answer any longer", kind="abandoned") from None


def _run(
    turn: Turn,
    first: ChatRequest,
    model: Model,
    tools: Tools,
    stopping: Stopping,
    log: Log,
    emit: Emit,
    streaming: bool,
    bears: Patience,
    deadline_ms: int | None,
) -> Outcome:
    heartbeat = bears.heartbeat
    while True:
        action = core.decide(turn.steps, first, tools.specs, bears.max_steps, bears.artifact_steps)
        if not isinstance(action, core.Answer | core.Stop):  # what is decided already needs no more time
            stopping.check()
        match action:
            case core.Ask(request, recorded, why):
                if why:
                    log.warning("asked_again", why=why)
                    emit({"event": "asked_again", "why": why})
                    _hung(heartbeat, why)
                if not recorded:
                    turn.request(request)
                if not model.name.startswith("builtin/"):  # those have no far side that could be silent
                    heartbeat.expect(bears.model_s, f"model {model.name}")
                reply = _ask(model, request, len(turn.steps), stopping, log, emit, streaming, deadline_ms, heartbeat)
                turn.reply(reply)
                log.info(
                    "model_reply",
                    model=model.name,
                    answered_by=reply.model or model.name,  # of a chain its member
                    step=len(turn.steps) - 1,
                    stop=reply.stop,
                    calls=[c.name for c in reply.calls],
                    **usage_to_json(reply.usage),
                )
                emit({"event": "usage", **usage_to_json(reply.usage)})
            case core.Run(call, again):
                emit({"event": "tool_call", "id": call.id, "name": call.name, "input": call.input})
                if not again:
                    turn.intent(call)
                assert tools.run is not None
                heartbeat.expect(tools.longest_s, f"tool {call.name}")
                started = time.monotonic()
                result = tools.run(call)
                _hung(heartbeat, str(result.get("error") or result.get("warning") or ""))
                _record(turn, call, result, log, emit, time.monotonic() - started)
            case core.Report(call, error):
                emit({"event": "tool_call", "id": call.id, "name": call.name, "input": call.input})
                _record(turn, call, {"status": "error", "error": error}, log, emit, 0.0)
            case core.Stop(kind, why):
                wrong = WorkFailed if kind in _FAILURES else BadInput
                raise wrong(why, kind=kind)
            case core.Answer(text):
                return Outcome(text, _usage(turn), len(turn.steps), _failed_calls(turn))


def _hung(heartbeat: Heartbeat, reason: str) -> None:
    """Show a reason that names a hang."""
    if reason:
        from loom.wire import hang  # here, because most turns meet none

        if hang.shape_of(reason):
            heartbeat.why(reason)


def _record(turn: Turn, call: ToolCall, result: Mapping[str, Any], log: Log, emit: Emit, took_s: float) -> None:
    turn.result(call.id, result)
    status = result.get("status")
    log.info(
        "tool_result",
        tool=call.name,
        status=status,
        ms=round(took_s * 1000, 1),
        **({"error": result.get("error")} if status != "ok" else {}),
        **({"warning": result["warning"]} if "warning" in result else {}),
    )
    emit({"event": "tool_result", "id": call.id, "name": call.name, **result})


def _ask(
    model: Model,
    request: ChatRequest,
    steps: int,
    stopping: Stopping,
    log: Log,
    emit: Emit,
    streaming: bool,
    deadline_ms: int | None,
    heartbeat: Heartbeat,
) -> ChatReply:
    """One whole answer, asked for up to five times as long as the errors are passing ones."""
    for tries in range(1, core.MAX_TRIES + 1):
        shown = False
        try:
            with stopping.interruptible():
                for chunk in model.stream(request):
                    if isinstance(chunk, TextDelta):
                        shown = shown or bool(chunk.text)
                        emit({"event": "text", "text": chunk.text})
                    elif isinstance(chunk, Notice):
                        _notice(chunk, model, log, emit)
                    else:
                        return core.tidy(chunk, steps - 1)
            raise Unavailable(f"{model.name} ended its stream without an answer", kind="broken_stream")
        except (Unavailable, TryLater) as error:
            wait_s = core.retry_wait_s(tries, error.retry_after_s)
            log.warning(
                "model_error", model=model.name, error_type=error.kind, error=str(error), tries=tries, wait_s=wait_s
            )
            then = "given up" if wait_s is None else f"asked again in {wait_s:.0f} s"
            _hung(heartbeat, f"{error.kind}: {error}; tried {tries} of {core.MAX_TRIES} times, {then}")
            if wait_s is None or (streaming and shown) or _past(deadline_ms, wait_s):
                raise
            emit({"event": "retry", "error": error.line(), "wait_s": wait_s})
        with stopping.interruptible():
            stopping.wait(wait_s)
        heartbeat.beat()
    raise AssertionError("retry_wait_s gives up before the tries run out")


def _notice(notice: Notice, model: Model, log: Log, emit: Emit) -> None:
    log.warning("model_notice", model=model.name, kind=notice.kind, text=notice.text)
    emit({"event": "notice", "text": notice.text})


def _past(deadline_ms: int | None, wait_s: float) -> bool:
    return deadline_ms is not None and time.time() + wait_s > deadline_ms / 1000


def _usage(turn: Turn) -> Usage:
    total = Usage()
    for step in turn.steps:
        if step.reply is not None:
            total = total + step.reply.usage
    return total


def _failed_calls(turn: Turn) -> int:
    return sum(1 for step in turn.steps for result in step.results.values() if result.get("status") != "ok")


def is_passing(error: LoomError) -> bool:
    """Whether another try, later, may help."""
    return isinstance(error, Unavailable | TryLater)
