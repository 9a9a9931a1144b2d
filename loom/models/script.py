"""Answers from a file (script/FILE): a model for tests, demos and rehearsals that says exactly what it was told to.

The file holds one JSON object a line (blank lines are skipped), or one JSON list of such objects:

    {"text": "Hello."}                                            an answer
    {"calls": [{"name": "read", "input": {"path": "a.txt"}}]}     tool calls; may have a text too
    {"error": "try_later", "message": "busy", "retry_after": 2}   an error; see ERRORS for the words
    {"match": "weather", "text": "Sunny."}                        only where the last user text matches the regex
    {"delay_s": 0.5, "text": "Well …"}                            wait before answering

and, where wanted, "stop" (end, tool_calls, length, refusal) and "usage" ({"input_tokens", "output_tokens"}). An error
with a text streams the text first and then breaks off.

Which entry answers depends on the request alone, so a process that is killed and started again goes on as if
nothing had happened:

1.  If the `match` of any entry is found in the last user message, the entries whose match is found are the candidates,
    and n is the number of assistant messages after that user message.
2.  Otherwise the entries without `match` are the candidates, and n is the number of all assistant messages.
3.  Candidate answers are numbered from 0 in file order, errors not counted; number n is the answer.
4.  Errors that stand directly before answer n are raised first, one a request and each once in the life of the opened
    model: so a retry gets past them. Errors after the last answer are for good: the last of them is raised
    every time.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

from loom.models import decode
from loom.models.base import ModelContext
from loom.wire import errors, jsontext
from loom.wire.chat import ChatReply, ChatRequest, Chunk, StopReason, TextDelta, ToolCall, Usage
from loom.wire.record import field, record

ERRORS: dict[str, type[errors.LoomError]] = {
    "unavailable": errors.Unavailable,
    "broken_stream": errors.BrokenStream,
    "try_later": errors.TryLater,
    "bad_input": errors.BadInput,
    "context_overflow": errors.ContextOverflow,
    "config": errors.Config,
    "model_not_found": errors.ModelNotFound,
}
_FIELDS = frozenset({"text", "calls", "error", "message", "retry_after", "delay_s", "match", "stop", "usage"})
_MAX_FILE_BYTES = 64 << 20
_MAX_SECONDS = 3600.0


@record
class Entry:
    """One entry of a script. `step` counts from 1, in file order; `error` is '' for an answer."""

    step: int
    text: str = ""
    calls: tuple[ToolCall, ...] = ()
    error: str = ""
    message: str = ""
    retry_after_s: float | None = None
    delay_s: float = 0.0
    match: re.Pattern[str] | None = None
    stop: StopReason | None = None
    usage: Usage = field(default_factory=Usage)


class ScriptModel:
    """A script that has been read. It remembers nothing but which errors it has raised."""

    def __init__(self, name: str, path: str, entries: Sequence[Entry]) -> None:
        self.name = name
        self._path = path
        self._entries = tuple(entries)
        self._raised: set[int] = set()

    def stream(self, request: ChatRequest) -> Iterator[Chunk]:
        """Yield the answer word by word, or raise the error that stands before it."""
        entry = choose(self._entries, request, self._raised, self._path)
        if entry.delay_s:
            time.sleep(entry.delay_s)
        for word in re.findall(r"\s*\S+\s*|\s+", entry.text):
            yield TextDelta(word)
        if entry.error:
            self._raised.add(entry.step)
            message = entry.message or f"script {self._path}, entry {entry.step}: {entry.error}"
            raise ERRORS[entry.error](message, retry_after_s=entry.retry_after_s)
        prefix = decode.call_prefix(request.messages)
        calls = tuple(
            ToolCall(c.id or f"{prefix}{index}", c.name, c.input, c.raw) for index, c in enumerate(entry.calls)
        )
        stop: StopReason = entry.stop or ("tool_calls" if calls else "end")
        yield ChatReply(entry.text, calls, stop, entry.usage, self.name)


def choose(entries: Sequence[Entry], request: ChatRequest, raised: set[int], path: str) -> Entry:
    """The entry for this request, by the rules at the top of this module. Raises BadInput past the end."""
    messages = request.messages
    last_user = max((i for i, m in enumerate(messages) if m.role == "user"), default=-1)
    user_text = messages[last_user].text if last_user >= 0 else ""
    candidates = [e for e in entries if e.match is not None and e.match.search(user_text)]
    since = messages[last_user + 1 :] if candidates else messages
    candidates = candidates or [e for e in entries if e.match is None]
    wanted = decode.assistant_turns(since)
    answers = 0
    before: list[Entry] = []  # errors since the last answer
    for entry in candidates:
        if entry.error:
            before.append(entry)
        elif answers == wanted:
            return next((e for e in before if e.step not in raised), entry)
        else:
            answers += 1
            before = []
    if before:
        return next((e for e in before if e.step not in raised), before[-1])
    raise errors.BadInput(
        f"script {path} has no answer for step {wanted + 1}: {answers} entries fit this request; "
        "add one, or give the agent a new thread"
    )


def open_model(rest: str, context: ModelContext) -> ScriptModel:
    """The registry's way in. Raises NotFound when there is no such file, Config when it is no script."""
    path = str(Path(context.cwd, rest))
    try:
        with Path(path).open("rb") as file:
            data = file.read(_MAX_FILE_BYTES + 1)
    except FileNotFoundError:
        raise errors.NotFound(f"script/{rest}: no such file {path}; check the path") from None
    except (OSError, ValueError) as error:
        errors.raise_lack(error, f"script/{rest}: cannot read {path}")
        reason = getattr(error, "strerror", None) or str(error)
        raise errors.Config(f"script/{rest}: cannot read {path}: {reason}") from None
    if len(data) > _MAX_FILE_BYTES:
        raise errors.Config(f"script/{rest}: {path} is larger than {_MAX_FILE_BYTES} bytes; this is no script")
    return ScriptModel(f"script/{rest}", rest, parse(data, path))


def check(rest: str, context: ModelContext) -> None:
    """Raise what open_model would raise."""
    open_model(rest, context)


def parse(data: bytes, path: str) -> list[Entry]:
    """The entries of a script. Raises Config, which names file and line, or for a list the entry."""
    if data.lstrip().startswith(b"["):
        try:
            items = jsontext.loads(data)
        except jsontext.Malformed as error:
            found = re.search(r"line (\d+)", str(error))
            raise errors.Config(f"{path}:{found.group(1) if found else 1}: {error}; a script is a JSON list") from None
        assert isinstance(items, list)
        return [_entry(item, n, f"{path}: entry {n}") for n, item in enumerate(items, 1)]
    entries: list[Entry] = []
    for number, line in enumerate(data.split(b"\n"), 1):
        if line.strip():
            try:
                item = jsontext.loads(line)
            except jsontext.Malformed as error:
                raise errors.Config(f"{path}:{number}: {error}; a script has one JSON object a line") from None
            entries.append(_entry(item, len(entries) + 1, f"{path}:{number}"))
    return entries


def _entry(item: object, step: int, where: str) -> Entry:
    if not isinstance(item, dict):
        raise errors.Config(f'{where}: not a JSON object; write for example {{"text": "Hello."}}')
    for name in item.keys() - _FIELDS:
        from loom.models.registry import did_you_mean

        raise errors.Config(f"{where}: unknown field {name!r}{did_you_mean(name, _FIELDS)}")
    error = _string(item, "error", where)
    if error and error not in ERRORS:
        raise errors.Config(f"{where}: unknown error {error!r}; one of {', '.join(ERRORS)}")
    if not error and "text" not in item and "calls" not in item:
        raise errors.Config(f'{where}: says nothing; it needs "text", "calls" or "error"')
    calls = decode.calls(item.get("calls", []), None)
    if calls is None:
        raise errors.Config(f'{where}: "calls" must be a list of {{"name": …, "input": {{…}}}}')
    return Entry(
        step=step,
        text=_string(item, "text", where),
        calls=calls,
        error=error,
        message=_string(item, "message", where),
        retry_after_s=_seconds(item, "retry_after", where),
        delay_s=_seconds(item, "delay_s", where) or 0.0,
        match=_pattern(item, where),
        stop=_stop(item, where),
        usage=decode.usage(item.get("usage")),
    )


def _string(item: dict[str, Any], name: str, where: str) -> str:
    value = item.get(name, "")
    if not isinstance(value, str):
        raise errors.Config(f'{where}: "{name}" must be a string')
    return value


def _seconds(item: dict[str, Any], name: str, where: str) -> float | None:
    if name not in item:
        return None
    value = item[name]
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= _MAX_SECONDS:
        raise errors.Config(f'{where}: "{name}" must be a number of seconds from 0 to {_MAX_SECONDS:g}')
    return float(value)


def _pattern(item: dict[str, Any], where: str) -> re.Pattern[str] | None:
    if "match" not in item:
        return None
    try:
        return re.compile(_string(item, "match", where))
    except (re.error, RecursionError, OverflowError) as error:
        raise errors.Config(f'{where}: "match" is no regular expression: {error}') from None


def _stop(item: dict[str, Any], where: str) -> StopReason | None:
    value = item.get("stop")
    if value is not None and value not in get_args(StopReason):
        raise errors.Config(f'{where}: "stop" must be one of {", ".join(get_args(StopReason))}')
    return value
