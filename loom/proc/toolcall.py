"""One tool call: JSON in, one result out, whatever the tool does.

A tool is other people's code, so its misbehaviour is an answer for the model (`status: error`), never an exception.
Only our own lack of descriptors or memory is raised, because the caller must stop with it and leave everything in
place. The process itself is loom/proc/toolchild.py's business.
"""

from __future__ import annotations

import json
import math
import signal
from collections.abc import Callable, Mapping
from typing import Any, Literal

from loom.proc import toolchild
from loom.proc.toolbox import Tool, argv
from loom.wire import hang
from loom.wire.record import record, replace

MAX_OUTPUT_BYTES = 1024 * 1024
ERROR_CHARS = 2000
MAX_LEVELS = 64  # as deep as a message may be (docs/protocol.md, messages)
LEAST_INT, MOST_INT = -(2**63), 2**64 - 1  # what every JSON reader of ours can hold


@record
class ToolResult:
    """What came of a call. `result` is JSON data when status is ok; `error` is one line when it is not.

    An error that is a hang begins with its shape (loom.wire.hang), and so does `warning`, when a call went well
    all the same.
    """

    status: Literal["ok", "error"]
    result: Any = None
    error: str = ""
    retry_after_s: float | None = None
    warning: str = ""


class _Garbage(Exception):
    """A line is not what the protocol asks for."""


def call_tool(
    tool: Tool,
    input: Mapping[str, Any],
    *,
    env: Mapping[str, str],
    cwd: str,
    timeout_s: float = 300.0,
    max_output_bytes: int = MAX_OUTPUT_BYTES,
    on_progress: Callable[[dict[str, Any]], None] | None = None,
) -> ToolResult:
    """Run `tool invoke` on `input`; when this returns, no process of the call is left.

    A call that somebody else killed is made again when the tool is idempotent, three times at most.

    env          all the tool sees besides PATH, LANG, LC_ALL, TMPDIR and HOME
    on_progress  gets each JSON object the tool prints before its last
    Raises errors.Disk when we lack descriptors, memory or processes, and what on_progress raises.
    """

    def on_line(line: bytes) -> str:
        try:
            progress = _record(line)
        except _Garbage as error:
            return f"it printed a line that {error} before its result"
        if on_progress:
            on_progress(progress)
        return ""

    name = tool.spec.name
    try:
        command = argv(tool.path, "invoke")
    except OSError as error:
        return _failed(f"{name} could not be started: {error.strerror}: {tool.path}")
    try:
        ended = toolchild.run(
            command,
            _input_bytes(input),
            env=toolchild.environment(env),
            cwd=cwd,
            timeout_s=timeout_s,
            max_output_bytes=max_output_bytes,
            on_line=on_line,
            starts=toolchild.MAX_STARTS if tool.spec.idempotent else 1,
        )
    except toolchild.NotStarted as error:
        return _failed(f"{name} could not be started: {error}")
    if ended.timed_out:
        shape, how = ("tool_deaf", ", ignored SIGTERM") if ended.deaf else ("tool_overdue", "")
        text = f"{name} did not finish within {timeout_s:g} s{how} and was killed{_last_words(ended)}"
        return _failed(hang.line(shape, text))
    if ended.fault:
        return _failed(f"{name} was stopped: {ended.fault}{_last_words(ended)}")
    answer = _answer(name, ended)
    if ended.held and answer.status == "ok":
        return replace(answer, warning=hang.line("pipe_held", f"{name} left a process that held its output"))
    return answer


def _answer(name: str, ended: toolchild.Ended) -> ToolResult:
    """The result of a tool that ended by itself."""
    try:
        reply = _reply(ended.last_line)
    except _Garbage as error:
        if ended.exit_code:
            return _failed(f"{name} {_how(ended.exit_code)}{_last_words(ended)}")
        return _failed(f"{name} printed a result that {error}{_last_words(ended)}")
    if reply.status == "ok" and ended.exit_code:
        return _failed(f"{name} printed a result but {_how(ended.exit_code)}{_last_words(ended)}")
    return reply


def _input_bytes(value: Mapping[str, Any]) -> bytes:
    try:
        return json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:  # half a surrogate pair: escaped, so that the tool can say what it thinks of it
        return json.dumps(value).encode()


def _reply(line: bytes | None) -> ToolResult:
    if line is None:
        raise _Garbage("is empty")
    reply = _record(line)
    if reply.get("status") == "ok":
        return ToolResult("ok", reply.get("result"))
    if reply.get("status") != "error":
        raise _Garbage("has no status 'ok' or 'error'")
    error = reply.get("error")
    text = error if isinstance(error, str) else json.dumps(error)
    after = reply.get("retry_after")
    if not isinstance(after, int | float) or isinstance(after, bool) or after < 0:
        after = None
    return ToolResult("error", None, _one_line(text) or "the tool gave no reason", after and float(after))


def _record(line: bytes) -> dict[str, Any]:
    """The JSON object on a line, of a kind that can be recorded and sent on."""
    try:
        value = json.loads(line.decode(), parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise _Garbage(f"is not JSON ({_one_line(line[:80].decode(errors='replace'))!r})") from None
    if not isinstance(value, dict):
        raise _Garbage("is not a JSON object")
    _must_be_storable(value, MAX_LEVELS)
    return value


def _no_constant(text: str) -> None:
    raise ValueError(text)


def _must_be_storable(value: Any, levels: int) -> None:
    """Refuses what Python reads but other readers of JSON do not."""
    if levels == 0:
        raise _Garbage(f"has more than {MAX_LEVELS} levels")
    match value:
        case dict():
            for key, item in value.items():
                _must_be_storable(key, levels - 1)
                _must_be_storable(item, levels - 1)
        case list():
            for item in value:
                _must_be_storable(item, levels - 1)
        case str():
            if not value.isascii() and any("\ud800" <= c <= "\udfff" for c in value):
                raise _Garbage("holds half of a surrogate pair, which is not text")
        case int():
            if not LEAST_INT <= value <= MOST_INT:
                raise _Garbage("holds an integer of more than 64 bits")
        case float():
            if not math.isfinite(value):
                raise _Garbage("holds a number that is not finite")


def _how(exit_code: int) -> str:
    if exit_code >= 0:
        return f"exited with {exit_code}"
    try:
        return f"was killed by {signal.Signals(-exit_code).name}"
    except ValueError:
        return f"was killed by signal {-exit_code}"


def _last_words(ended: toolchild.Ended) -> str:
    """The last line of stderr, to stand behind an error."""
    lines = [_one_line(line) for line in ended.stderr.decode(errors="replace").split("\n")]
    said = [line for line in lines if line]
    return f"; its last words: {said[-1][:500]}" if said else ""


def _failed(error: str) -> ToolResult:
    return ToolResult("error", None, _one_line(error))


def _one_line(text: str) -> str:
    """Text from a tool without control characters and line breaks."""
    plain = "".join(c if c.isprintable() else " " for c in text)
    return " ".join(plain.split())[:ERROR_CHARS]
