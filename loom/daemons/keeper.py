"""The keeper: trees, differences and deterministic checks, without a model (docs/goals.md sections 1, 3 and 4).

Its orders: snapshot {source}, prepare {}, inspect {subtask, kept}, apply {changes}, land {source, base}. Each may be
carried out again after a crash and then finds its work done.
"""

from __future__ import annotations

import difflib
import errno
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from loom.core import checks
from loom.core.goal.state import spec_from_json
from loom.core.plan import covers
from loom.daemons import service
from loom.daemons.service import Agent, Done
from loom.spool import blobs, differences, fs, goals, trees
from loom.spool.differences import Change
from loom.spool.layout import GoalDir
from loom.spool.mailbox import Claimed
from loom.spool.turns import Turn
from loom.wire import ids
from loom.wire import order as orders
from loom.wire.errors import BadInput, WorkFailed
from loom.wire.jsontext import dumps, loads_object
from loom.wire.plan import is_workspace_path

MAX_LISTED = 2_000
MAX_LISTED_BYTES = 300_000
MAX_DIFF_BYTES = 200_000
_BEGIN = "manifest.json"


def serve_keeper(agent_dir: Path, drain: bool = False) -> int:
    """A keeper of the pool (runners/keeper)."""
    return service.serve(agent_dir, KeeperWorker, drain)


class KeeperWorker:
    """One order, one deed."""

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        self._deeds: dict[str, Callable[[GoalDir, Mapping[str, Any]], dict[str, Any]]] = {
            "snapshot": self.snapshot,
            "prepare": self.prepare,
            "inspect": self.inspect,
            "apply": self.apply,
            "land": self.land,
        }

    def work(self, claimed: Claimed, turn: Turn) -> Done:
        message = claimed.message
        order = orders.decode(message.kind, message.data or {})
        deed = self._deeds.get(order.kind)
        if deed is None or not ids.is_goal(message.goal):
            raise BadInput(f"{order.kind!r} is no order for a keeper", kind="bad_order")
        if message.deadline_ms is not None:  # large trees take their time, and the order says how much there is
            self.agent.heartbeat.expect(max(0.0, message.deadline_ms / 1000 - time.time()), f"order {order.kind}")
        data = deed(self.agent.home.goal(message.goal), order.payload)
        return Done(f"{order.kind} done", data)

    def snapshot(self, goal: GoalDir, payload: Mapping[str, Any]) -> dict[str, Any]:
        """Copy the source into the goal's workspace; {base: manifest blob, files: list blob for the planner}."""
        if not goal.workspace.exists():
            building = goal.path / fs.TMP / "workspace"
            fs.remove_tree(building)
            source = str(payload["source"])
            if source:
                _copy(Path(source), building, without=self.agent.home.path)
            else:
                fs.ensure_dir(building)
            fs.sync_tree(building)
            fs.calls.rename_noreplace(str(building), str(goal.workspace))
        fs.calls.fsync_dir(str(goal.path))  # also when a killed keeper had moved it there
        manifest = trees.scan(goal.workspace)
        # A name that no plan could say is not shown to those who make plans.
        listed = [[p, e.size] for p, e in manifest.items() if e.mode != trees.LINK and is_workspace_path(p)]
        return {
            "base": self._put({"files": trees.manifest_to_json(manifest)}),
            "files": self._put({"files": _shown(listed), "total": len(listed)}),
        }

    def prepare(self, goal: GoalDir, payload: Mapping[str, Any]) -> dict[str, Any]:
        """A copy of the workspace for one attempt, and the manifest it began with. Earlier attempts' copies go."""
        for earlier in range(payload["attempt"]):
            fs.remove_tree(goal.tree(payload["subtask"], earlier))
        attempt = goal.attempt(payload["subtask"], payload["attempt"])
        tree = attempt / "tree"
        if not tree.exists():
            building = attempt / fs.TMP / "tree"
            fs.remove_tree(building)
            manifest = trees.copy(goal.workspace, building)
            fs.replace(attempt / _BEGIN, dumps({"files": trees.manifest_to_json(manifest)}))
            fs.sync_tree(building)  # or a power cut would leave an attempt whose files are not what it began with
            fs.calls.rename_noreplace(str(building), str(tree))
        fs.calls.fsync_dir(str(attempt))
        return {}

    def inspect(self, goal: GoalDir, payload: Mapping[str, Any]) -> dict[str, Any]:
        """What the attempt changed, and the checks on it: {passed, checks, findings, changes: blob, diff: blob}."""
        spec = spec_from_json(payload["spec"])
        attempt = goal.attempt(payload["subtask"], payload["attempt"])
        tree = attempt / "tree"
        try:
            began = trees.manifest_from_json(loads_object(fs.read(attempt / _BEGIN))["files"])
        except FileNotFoundError:
            raise WorkFailed(f"the tree of {spec.id}, attempt {payload['attempt']}, is gone") from None
        now = trees.scan(tree)
        changes = differences.compare(began, now)
        differences.store(self.agent.home.blobs, goal.workspace, tree, changes)
        paths = [p for p, e in now.items() if e.mode != trees.LINK and any(covers(d, p) for d in spec.deliverables)]
        found = checks.check_all(
            spec,
            [c.path for c in changes],
            paths,
            lambda path: trees.read_file(tree, path, checks.MAX_READ_BYTES),
            payload["kept"]
            or _are_covered(spec.deliverables, [*payload.get("written", ()), *(c.path for c in changes)]),
            free=payload.get("free", False),
        )
        result = {
            "passed": all(c.passed for c in found),
            "checks": [checks.to_json(c) for c in checks.shown(found)],
            "findings": checks.findings(found),
        }
        diff = unified(changes, self.agent.home.blobs)
        fs.hint(attempt / "checks.json", dumps(result).decode())
        fs.hint(attempt / "diff.patch", diff)
        return {
            **result,
            "changes": self._put(differences.changes_to_json(changes)),
            "diff": blobs.put(self.agent.home.blobs, diff.encode("utf-8", "replace")),
        }

    def apply(self, goal: GoalDir, payload: Mapping[str, Any]) -> dict[str, Any]:
        """Bring committed changes into the goal's workspace: {written, conflicts}. The attempt's copy has served then.

        Without that a goal of n subtasks would end with n copies of its workspace.
        """
        changes = differences.changes_from_json(self._get(payload["changes"]))
        applied = differences.apply(goal.workspace, changes, self.agent.home.blobs, goal.id)
        if not applied.conflicts:
            fs.remove_tree(goal.tree(payload["subtask"], payload["attempt"]))
        return {"written": list(applied.written), "conflicts": list(applied.conflicts)}

    def land(self, goal: GoalDir, payload: Mapping[str, Any]) -> dict[str, Any]:
        """Bring the result into the user's tree; refused as a whole when a path was changed meanwhile."""
        source = Path(payload["source"])
        if not source.is_dir():
            raise WorkFailed(f"the workspace {source} is gone")
        base = trees.manifest_from_json(self._get(payload["base"])["files"])
        result = trees.scan(goal.workspace)
        changes = [c for c in differences.compare(base, result) if c.before != c.after or _is_other_kind(c)]
        differences.store(self.agent.home.blobs, source, goal.workspace, changes)
        try:
            applied = differences.apply(source, changes, self.agent.home.blobs, goal.id, goals.read_spec(goal).umask)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
                raise
            raise WorkFailed(f"{error.filename or source} cannot be written: {error.strerror}") from None
        written = [] if applied.conflicts else [c.path for c in changes]
        return {"written": written, "conflicts": list(applied.conflicts)}

    def _put(self, value: Mapping[str, Any]) -> str:
        return blobs.put(self.agent.home.blobs, dumps(dict(value)))

    def _get(self, digest: str) -> dict[str, Any]:
        return loads_object(blobs.get(self.agent.home.blobs, digest))


def _copy(source: Path, building: Path, without: Path) -> None:
    """trees.copy() of a person's tree: what may not be read there is no trouble of the disk, and no try will help."""
    try:
        trees.copy(source, building, without=without)
    except PermissionError as error:
        raise BadInput(f"{error.filename or source} may not be read", kind="not_permitted") from None


def _are_covered(deliverables: Sequence[str], paths: Sequence[str]) -> bool:
    """Whether each deliverable was written, with the bytes it had before perhaps."""
    return all(any(covers(d, p) for p in paths) for d in deliverables)


def _shown(listed: Sequence[list[Any]]) -> list[list[Any]]:
    """As many files, from the first on, as one order can carry."""
    shown: list[list[Any]] = []
    size = 0
    for path, size_bytes in listed[:MAX_LISTED]:
        size += len(path.encode()) + 40
        if size > MAX_LISTED_BYTES:
            break
        shown.append([path, size_bytes])
    return shown


def _is_other_kind(change: Change) -> bool:
    return (change.mode_before == trees.LINK) != (change.mode_after == trees.LINK)


def unified(changes: Sequence[Change], blob_dir: Path) -> str:
    """A unified diff of what is text, cut at MAX_DIFF_BYTES; anything else is one line."""
    parts: list[str] = []
    size = 0
    for change in changes:
        part = _one_diff(change, blob_dir)
        size += len(part)
        if size > MAX_DIFF_BYTES:
            parts.append(f"[… {len(changes) - len(parts)} more files]\n")
            break
        parts.append(part)
    return "".join(parts)


def _one_diff(change: Change, blob_dir: Path) -> str:
    old, new = _lines(change.before, blob_dir), _lines(change.after, blob_dir)
    path = change.path if change.path.isprintable() else ascii(change.path)[1:-1]  # a name may hold line breaks
    before = f"a/{path}" if change.before else os.devnull
    after = f"b/{path}" if change.after else os.devnull
    if old is None or new is None:
        return f"--- {before}\n+++ {after}\n[not text or too long]\n"
    lines = difflib.unified_diff(old, new, before, after, n=3)
    return "".join(line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n" for line in lines)


def _lines(digest: str | None, blob_dir: Path) -> list[str] | None:
    if digest is None:
        return []
    try:
        data = blobs.get(blob_dir, digest)
        # Comparing long texts line by line takes time that grows with their product.
        return data.decode("utf-8").splitlines(keepends=True) if len(data) <= MAX_DIFF_BYTES else None
    except (FileNotFoundError, UnicodeDecodeError):
        return None
