"""Deterministic checks of what an executor left (verification level 1, docs/goals.md section 3).

Enters: the subtask, the list of changes, a way to a deliverable's bytes. Leaves: one record a check. Judges the end
state only. Stays out: files, processes; the keeper reads the tree (loom/daemons/keeper.py).
"""

from __future__ import annotations

import csv
import io
import json
import re
import tomllib
import warnings
from collections.abc import Callable, Collection, Sequence
from typing import Any

from loom.core.plan import covers
from loom.wire.plan import Subtask
from loom.wire.record import record

_PLACEHOLDER = re.compile(r"\[(?:TBD|TODO|INSERT[^\]]*|PLACEHOLDER|MISSING)\]|\blorem ipsum\b", re.IGNORECASE)
# Writing here is on the floor: a person is asked, whatever the policy (docs/goals.md section 5).
_PROTECTED = re.compile(
    r"(?:^|/)(?:\.env(?:\.[^/]*)?|credentials[^/]*|secrets?(?:\.[^/]*)?|id_[a-z0-9]+|[^/]*\.pem)$"
    r"|(?:^|/)(?:\.ssh|\.gnupg|secrets)/",
    re.IGNORECASE,
)
PROTECTED = "protected"
_MAY_BE_EMPTY = ("__init__.py", "py.typed", ".gitkeep", ".keep")  # below a deliverable that is a directory
MAX_FINDINGS = 20
MAX_SHOWN = 300
MAX_DOTS = 500
MAX_READ_BYTES = 16 << 20


@record
class Check:
    """One check of one thing. `where` is a path or empty."""

    name: str
    where: str
    passed: bool
    detail: str = ""


Read = Callable[[str], bytes | None]


def check_all(
    subtask: Subtask,
    changed: Collection[str],
    paths: Sequence[str],
    read: Read,
    kept: bool = False,
    free: bool = False,
) -> list[Check]:
    """Every check of a subtask's result.

    changed  paths that differ from the tree the attempt began with
    paths    the files of the tree that a deliverable covers
    read     a file's first MAX_READ_BYTES; None when it is no regular file
    kept     an earlier attempt of this subtask was applied already: its deliverables need not change again
    free     the plan is degraded and names no deliverables: whatever was changed is the result

    Of a deliverable that is a directory only what changed is judged: the rest is not this subtask's work.
    """
    checks: list[Check] = []
    changed = dict.fromkeys(changed)
    judged: dict[str, None] = {}
    for deliverable in subtask.deliverables:
        found = [p for p in paths if covers(deliverable, p)]
        checks.extend(_deliverable(deliverable, bool(found), changed, kept))
        judged.update(dict.fromkeys(p for p in found if p == deliverable or p in changed))
    if not free:
        checks.extend(_stray(subtask, changed))
    checks.extend(_protected(changed))
    for path in sorted(judged):
        data = read(path)
        if data is None:
            checks.append(Check("exists", path, False, "not a regular file"))
        else:
            checks.extend(_content(path, data, path in subtask.deliverables))
    return checks


def _deliverable(path: str, exists: bool, changed: Collection[str], kept: bool) -> list[Check]:
    if not exists:
        return [Check("exists", path, False, "the deliverable is missing")]
    checks = [Check("exists", path, True)]
    if not kept:
        touched = any(covers(path, p) for p in changed)
        checks.append(Check("changed", path, touched, "" if touched else "the deliverable was not changed"))
    return checks


def _stray(subtask: Subtask, changed: Collection[str]) -> list[Check]:
    stray = [p for p in changed if not any(covers(d, p) for d in subtask.deliverables)]
    if not stray:
        return [Check("inside-deliverables", "", True)]
    shown = ", ".join(stray[:5]) + (f" and {len(stray) - 5} more" if len(stray) > 5 else "")
    return [Check("inside-deliverables", stray[0], False, f"changed but no deliverable: {shown}")]


def _protected(changed: Collection[str]) -> list[Check]:
    return [
        Check(PROTECTED, path, False, "a person is asked before secrets are written, which this version cannot do")
        for path in changed
        if _PROTECTED.search(path)
    ]


def _content(path: str, data: bytes, named: bool) -> list[Check]:
    empty = not data.strip()
    if empty and not named and path.rpartition("/")[2] in _MAY_BE_EMPTY:
        return []
    checks = [Check("not-empty", path, not empty, "the file is empty" if empty else "")]
    fault = parse_fault(path, data)
    if fault is not None:
        checks.append(Check("parses", path, not fault, fault))
    if path.lower().endswith((".md", ".txt", ".rst", ".html", ".tex")):
        found = _PLACEHOLDER.search(data.decode("utf-8", "replace"))
        detail = f"placeholder {found.group()!r}" if found else ""
        checks.append(Check("no-placeholders", path, found is None, detail))
    return checks


def parse_fault(path: str, data: bytes) -> str | None:
    """What is wrong with a file of a kind we can parse, '' when nothing is, None for other kinds and large ones."""
    _, dot, suffix = path.rpartition("/")[2].rpartition(".")
    parser, limit = _PARSERS.get(suffix.lower(), (None, 0)) if dot else (None, 0)
    if parser is None or len(data) > limit:
        return None
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        return f"not UTF-8 at byte {error.start}"
    try:
        return parser(text)
    except (RecursionError, MemoryError):  # MemoryError is what Python's own parser says of deep nesting
        return "nested too deeply"
    except (ValueError, SyntaxError, ArithmeticError, LookupError, TypeError, AttributeError) as error:
        return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def _python(text: str) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the deliverable, not of ours
        compile(text, "<deliverable>", "exec", dont_inherit=True)
    return ""


def _json(text: str) -> str:
    json.loads(text)
    return ""


def _toml(text: str) -> str | None:
    # The parser's memory grows with the square of a dotted key's length: a megabyte of `a.a.a` takes terabytes.
    if any(line.count(".") > MAX_DOTS for line in text.split("\n")):
        return None
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
    usual = csv.field_size_limit(MAX_READ_BYTES)
    try:
        for number, row in enumerate(csv.reader(io.StringIO(text), strict=True), 1):
            if row and width and len(row) != width:
                return f"row {number} has {len(row)} columns, the first has {width}"
            width = width or len(row)
    except csv.Error as error:
        return str(error)
    finally:
        csv.field_size_limit(usual)
    return ""


# By suffix, with the size up to which parsing takes seconds at most.
_PARSERS: dict[str, tuple[Callable[[str], str | None], int]] = {
    "py": (_python, 2 << 20),
    "json": (_json, MAX_READ_BYTES - 1),
    "toml": (_toml, 1 << 20),
    "yaml": (_yaml, 256 << 10),
    "yml": (_yaml, 256 << 10),
    "csv": (_csv, MAX_READ_BYTES - 1),
}


def shown(checks: Sequence[Check]) -> list[Check]:
    """As many as one message can carry, those that failed first; a last one counts the others."""
    if len(checks) <= MAX_SHOWN:
        return list(checks)
    ordered = sorted(checks, key=lambda c: c.passed)
    rest = ordered[MAX_SHOWN:]
    failed = sum(1 for c in rest if not c.passed)
    return [*ordered[:MAX_SHOWN], Check("more", "", not failed, f"{len(rest)} more checks, {failed} of them failed")]


def findings(checks: Sequence[Check]) -> list[dict[str, str]]:
    """Failed checks as findings, in the shape of a verdict's."""
    return [
        {"severity": "blocker", "where": c.where, "what": f"{c.name}: {c.detail}", "evidence": ""}
        for c in checks
        if not c.passed
    ][:MAX_FINDINGS]


def to_json(check: Check) -> dict[str, Any]:
    return {"name": check.name, "where": check.where, "passed": check.passed, "detail": check.detail}
