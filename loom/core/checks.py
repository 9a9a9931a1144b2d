"""Deterministic checks of what an executor left (verification level 1, docs/goals.md section 3).

Enters: the subtask, the list of changes, the deliverables' bytes. Leaves: one record a check. Judges the end state
only. Stays out: files, processes; the keeper reads the tree (loom/daemons/keeper.py).
"""

from __future__ import annotations

import csv
import io
import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from loom.core.plan import covers
from loom.wire.plan import Subtask

_PLACEHOLDER = re.compile(r"\[(?:TBD|TODO|INSERT[^\]]*|PLACEHOLDER|MISSING)\]|\blorem ipsum\b", re.IGNORECASE)
# Writing here is on the floor: a person is asked, whatever the policy (docs/goals.md section 5).
_PROTECTED = re.compile(
    r"(?:^|/)(?:\.env(?:\.[^/]*)?|credentials[^/]*|secrets?(?:\.[^/]*)?|id_[a-z0-9]+|[^/]*\.pem)$"
    r"|(?:^|/)(?:\.ssh|\.gnupg|secrets)/",
    re.IGNORECASE,
)
PROTECTED = "protected"
MAX_FINDINGS = 20


@dataclass(frozen=True, slots=True)
class Check:
    """One check of one thing. `where` is a path or empty."""

    name: str
    where: str
    passed: bool
    detail: str = ""


def check_all(
    subtask: Subtask, changed: Sequence[str], files: Mapping[str, bytes | None], kept: bool = False
) -> list[Check]:
    """Every check of a subtask's result.

    changed  paths that differ from the tree the attempt began with
    files    each deliverable's bytes (None: not there); for a directory, of every file below it
    kept     an earlier attempt of this subtask was applied already: its deliverables need not change again
    """
    checks: list[Check] = []
    for path in subtask.deliverables:
        checks.extend(_deliverable(path, files, changed, kept))
    checks.extend(_stray(subtask, changed))
    checks.extend(_protected(changed))
    for path, data in sorted(files.items()):
        if data is not None:
            checks.extend(_content(path, data))
    return checks


def _deliverable(path: str, files: Mapping[str, bytes | None], changed: Sequence[str], kept: bool) -> list[Check]:
    found = {p: data for p, data in files.items() if covers(path, p) and data is not None}
    if not found:
        return [Check("exists", path, False, "the deliverable is missing")]
    checks = [Check("exists", path, True)]
    if not kept:
        touched = any(covers(path, p) for p in changed)
        checks.append(Check("changed", path, touched, "" if touched else "the deliverable was not changed"))
    for name, data in sorted(found.items()):
        empty = not data.strip()
        checks.append(Check("not-empty", name, not empty, "the file is empty" if empty else ""))
    return checks


def _stray(subtask: Subtask, changed: Sequence[str]) -> list[Check]:
    stray = [p for p in changed if not any(covers(d, p) for d in subtask.deliverables)]
    if not stray:
        return [Check("inside-deliverables", "", True)]
    shown = ", ".join(stray[:5]) + (f" and {len(stray) - 5} more" if len(stray) > 5 else "")
    return [Check("inside-deliverables", stray[0], False, f"changed but no deliverable: {shown}")]


def _protected(changed: Sequence[str]) -> list[Check]:
    return [
        Check(PROTECTED, path, False, "a person is asked before secrets are written, which this version cannot do")
        for path in changed
        if _PROTECTED.search(path)
    ]


def _content(path: str, data: bytes) -> list[Check]:
    checks = []
    fault = parse_fault(path, data)
    if fault is not None:
        checks.append(Check("parses", path, not fault, fault))
    if path.lower().endswith((".md", ".txt", ".rst", ".html", ".tex")):
        found = _PLACEHOLDER.search(data.decode("utf-8", "replace"))
        detail = f"placeholder {found.group()!r}" if found else ""
        checks.append(Check("no-placeholders", path, found is None, detail))
    return checks


def parse_fault(path: str, data: bytes) -> str | None:
    """What is wrong with a file of a kind we can parse, '' when nothing is, None for other kinds."""
    parser = _PARSERS.get(path.rpartition(".")[2].lower())
    if parser is None:
        return None
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        return f"not UTF-8 at byte {error.start}"
    try:
        return parser(text)
    except RecursionError:
        return "nested too deeply"
    except (ValueError, SyntaxError) as error:
        return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def _python(text: str) -> str:
    compile(text, "<deliverable>", "exec", dont_inherit=True)
    return ""


def _json(text: str) -> str:
    json.loads(text)
    return ""


def _toml(text: str) -> str:
    tomllib.loads(text)
    return ""


def _yaml(text: str) -> str:
    import yaml

    try:
        for _ in yaml.compose_all(text, Loader=yaml.SafeLoader):
            pass
    except yaml.YAMLError as error:
        return " ".join(str(error).split())[:300]
    return ""


def _csv(text: str) -> str:
    width = 0
    try:
        for number, row in enumerate(csv.reader(io.StringIO(text), strict=True), 1):
            if row and width and len(row) != width:
                return f"row {number} has {len(row)} columns, the first has {width}"
            width = width or len(row)
    except csv.Error as error:
        return str(error)
    return ""


_PARSERS = {"py": _python, "json": _json, "toml": _toml, "yaml": _yaml, "yml": _yaml, "csv": _csv}


def findings(checks: Sequence[Check]) -> list[dict[str, str]]:
    """Failed checks as findings, in the shape of a verdict's."""
    return [
        {"severity": "blocker", "where": c.where, "what": f"{c.name}: {c.detail}", "evidence": ""}
        for c in checks
        if not c.passed
    ][:MAX_FINDINGS]


def to_json(check: Check) -> dict[str, Any]:
    return {"name": check.name, "where": check.where, "passed": check.passed, "detail": check.detail}
