"""What loom speaks with and does not own: models, tool processes, standard streams. Doubled here, nowhere else.

No two answers of a model are alike, so an answer that was bought twice is seen; every question is noted before it is
answered; a tool counts its effects. What an answer is used for is told by the records of the turns: `asked_as_agreed`
compares the two.
"""

from __future__ import annotations

import contextlib
import io
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from harness import crashes, note, noted

from loom.daemons import filter as filters
from loom.daemons import programs, runner, service
from loom.models.base import ModelContext
from loom.proc import toolbox, toolcall
from loom.proc.toolbox import Tool
from loom.proc.toolcall import ToolResult
from loom.spool import fs, mailbox, ndjson
from loom.spool.layout import AgentDir
from loom.spool.turns import Turn
from loom.wire import exits
from loom.wire.chat import ChatReply, ChatRequest, Chunk, TextDelta, ToolCall, ToolSpec, Usage
from loom.wire.errors import BadInput

Answer = Callable[[int, int, ChatRequest, AgentDir, str], "str | tuple[str, dict[str, Any]]"]
programs.preload(programs.RUNNERS)  # once here, or each trial would import it anew
_ANYTHING = {"type": "object"}
_REPEATABLE = ("read-file", "write-file", "list-files", "search-files")  # they declare themselves idempotent


@contextlib.contextmanager
def swapped(module: Any, name: str, bad: Any) -> Iterator[None]:
    """Another thing under this name for a while."""
    good = getattr(module, name)
    setattr(module, name, bad)
    try:
        yield
    finally:
        setattr(module, name, good)


class FarModel:
    """`answer(number, step, request, box, stem)`: a text or (tool, input). `number` counts all questions."""

    name = "test/model"

    def __init__(self, root: Path, context: ModelContext, answer: Answer) -> None:
        self.root, self.answer = root, answer
        self.box = AgentDir(Path(context.extra_env["LOOM_AGENT_DIR"]))

    def stream(self, request: ChatRequest) -> Iterator[Chunk]:
        stem, attempt = self._working()
        step = sum(1 for m in request.messages if m.role == "assistant" and m.calls)
        number = len(noted(self.root, "asked")) + 1
        try:
            said = self.answer(number, step, request, self.box, stem)
        except BadInput:
            said = ""
        calls: tuple[ToolCall, ...] = ()
        text = said if isinstance(said, str) else f"calling, answer {number}"
        if not isinstance(said, str):
            calls = (ToolCall(f"call-{number}", said[0], said[1]),)
        note(self.root, "asked", {"agent": self.box.name, "stem": stem, "attempt": attempt, "step": step, "text": text})
        if not text:
            raise BadInput("this cannot be answered")
        yield TextDelta(text)
        yield ChatReply(text, calls, "tool_calls" if calls else "end", Usage(1, 1))

    def _working(self) -> tuple[str, int]:
        """The message that is worked on: the one claimed, or that of the filter's turn."""
        claimed = mailbox.in_progress(self.box) if self.box.in_progress.is_dir() else []
        if claimed:
            (name,) = claimed
            stem = name.removesuffix(".msg")
            return stem, mailbox.attempts(self.box, stem)
        return "filter", 0


def _far_tool(root: Path) -> Callable[..., ToolResult]:
    """In place of the process of a tool: its effect, counted."""

    def call(tool: Tool, input: Mapping[str, Any], *, env: Mapping[str, str], cwd: str, **_: Any) -> ToolResult:
        name = tool.spec.name
        if name != "read-file":
            note(root, "effects", {"id": f"{name} {json.dumps(input, sort_keys=True)}", "again": tool.spec.idempotent})
        if name == "write-file":
            target = Path(cwd) / input["path"]
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(input["content"])
        return ToolResult("ok", {"path": input.get("path", "")})

    return call


def _find_tools(names: tuple[str, ...], dirs: list[Path]) -> dict[str, Tool]:
    return {n: Tool(Path(n), ToolSpec(n, n, _ANYTHING, idempotent=n in _REPEATABLE)) for n in names}


@contextlib.contextmanager
def far_side(root: Path, answer: Answer) -> Iterator[None]:
    """Models answer as `answer` says; tools are counted. What is said on stderr goes nowhere."""

    def opened(address: str, context: ModelContext, role: str = "") -> FarModel:
        return FarModel(root, context, answer)

    with (
        swapped(runner, "open_model", opened),
        swapped(filters, "open_model", opened),
        swapped(toolbox, "find_tools", _find_tools),
        swapped(toolcall, "call_tool", _far_tool(root)),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        yield


def one_life(agent_dir: Path, make_worker: service.WorkerMaker) -> None:
    """A runner from its start to the end of its work, as the supervisor runs it. Raises OSError for 75."""
    status = service.serve(agent_dir, make_worker, drain=True)
    if status == exits.TRY_LATER:
        raise OSError(f"{agent_dir.name} left with 75")
    assert status == exits.DONE, f"{agent_dir.name} ended with {status}"


# -- oracles ---------------------------------------------------------------------------------------------------


def asked_as_agreed(root: Path, boxes: list[AgentDir], blob_dir: Path) -> None:
    """No question was asked oftener than answers were used and processes died, in any turn and over all.

    Of each step one reply is recorded; it is what was answered last; a tool that must not act twice did not, and one
    that may did so no oftener than processes died.
    """
    asked = noted(root, "asked")
    deaths = crashes(root)
    used = 0
    by_turn: dict[tuple[str, str, int], list[dict[str, Any]]] = {}
    for a in asked:
        by_turn.setdefault((a["agent"], a["stem"], a["attempt"]), []).append(a)
    for (agent, stem, attempt), questions in by_turn.items():
        (box,) = [b for b in boxes if b.name == agent]
        path = box.turn(stem, attempt)
        kept = Counter(r["step"] for r in ndjson.read_objects(path) if r["t"] == "reply")
        assert set(kept.values()) <= {1}, f"replies recorded by step of {path.name}: {dict(kept)}"
        turn = Turn(path, blob_dir)
        turn.close()
        for number, step in enumerate(turn.steps):
            answers = [q["text"] for q in questions if q["step"] == number]
            if step.reply is not None:
                used += 1
                assert answers[-1] == step.reply.text, f"asked again after {step.reply.text!r} was recorded: {answers}"
        failed = sum(1 for q in questions if not q["text"])
        assert len(questions) <= len(kept) + failed + deaths, f"{len(questions)} questions, {dict(kept)} used"
        used += failed
    assert len(asked) <= used + deaths, f"{len(asked)} questions, {used} answers used, {deaths} deaths"
    effects = Counter((e["id"], e["again"]) for e in noted(root, "effects"))
    for (what, repeatable), count in effects.items():
        assert count <= (1 + deaths if repeatable else 1), f"a tool acted {count} times: {what}"


def make_note(number: int) -> tuple[str, dict[str, Any]]:
    """A call of a tool that must not act twice."""
    return "note", {"text": f"note {number}"}


def plain_files(directory: Path) -> None:
    """No FIFO, socket or device in what people copy and search."""
    for path in directory.rglob("*"):
        assert path.is_dir() or path.is_symlink() or path.is_file(), f"no plain file: {path}"


__all__ = [
    "FarModel",
    "asked_as_agreed",
    "far_side",
    "fs",
    "make_note",
    "one_life",
    "plain_files",
    "swapped",
]
