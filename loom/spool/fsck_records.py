"""fsck of what is written line by line: turn records and conversations."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

from loom.spool import blobs, fs, locks, ndjson, threads
from loom.spool.findings import Check, Findings, person
from loom.spool.fs import TMP
from loom.spool.layout import AgentDir
from loom.wire import ids

_TURN = re.compile(r"(.{40})\.(\d+)\.ndjson(\.torn\.\d+(\.[0-9a-f]+)?)?")
_CONVERSATION = re.compile(r"(.+)\.(ndjson(\.torn\.\d+(\.[0-9a-f]+)?)?|lock)")


def check_turns(check: Check, agent: AgentDir) -> Findings:
    for name in fs.names(agent.turns):
        path = agent.turns / name
        found = _TURN.fullmatch(name)
        if name == TMP:
            continue
        if found is None or not ids.is_stem(found[1]):
            yield person(path, "is no turn record", "move it away")
        elif not found[3]:
            yield from _lines(check, path, partial(_mend_lines, path))
            for line in ndjson.read_objects(path):
                digest = line.get("blob")
                if isinstance(digest, str) and not blobs.is_there(check.home.blobs, digest):
                    yield person(
                        path, f"a record of it is missing: blob {digest[:64]}", "its message will fail; retry it"
                    )


def check_conversations(check: Check, agent: AgentDir) -> Findings:
    directory = agent.path / "conversations"
    for name in fs.names(directory):
        path = directory / name
        found = _CONVERSATION.fullmatch(name)
        if name == TMP:
            continue
        if found is None or not ids.is_thread(found[1]):
            yield person(path, "is no conversation", "move it away")
        elif name == f"{found[1]}.ndjson" and not locks.is_held(path.with_suffix(".lock")):
            yield from _lines(check, path, partial(_mend_conversation, agent, found[1]))


def _mend_lines(path: Path) -> None:
    ndjson.Appender(path).close()


def _mend_conversation(agent: AgentDir, thread: str) -> None:
    held = threads.hold(agent, thread)
    if held is not None:
        held.close()


def _lines(check: Check, path: Path, act: Callable[[], object]) -> Findings:
    """A torn end, which opening the file cuts off and keeps beside it; or damage that nothing cuts off."""
    try:
        torn = ndjson.torn_bytes(path)
    except FileNotFoundError:
        return
    except ndjson.Damaged as error:
        yield person(path, str(error), "mend that line or move the file away")
        return
    except fs.NotRegular as error:
        if error.kind == "directory":  # all other kinds are told among the special files
            yield person(path, f"is {error}", "move it away")
        return
    if torn:
        yield check.mend(path, f"its last {torn} bytes are torn", "cut off and kept beside it", act)
