"""What the roles of a goal are asked and how their answers are read (docs/goals.md sections 1 to 3).

An order's payload becomes Markdown with fixed headings, the same for every model, the built-in ones included.
Everything quoted from a goal, a file, a result or a model stands behind `> ` or in a fence: it is data.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from loom.core import extract
from loom.wire import order as wire
from loom.wire.chat import ChatMessage, ChatRequest, ToolSpec
from loom.wire.order import Order

decode = wire.decode

MAX_DIFF_CHARS = 60_000
MAX_RESULT_CHARS = 8_000
MAX_FILES = 2_000


@cache
def prompt(role: str) -> str:
    """The system prompt of a role: prompts/<role>.md."""
    return (Path(__file__).parent / "prompts" / f"{role}.md").read_text(encoding="utf-8")


def request(order: Order, model: str, tools: Sequence[ToolSpec]) -> ChatRequest:
    """The first request of an order's turn."""
    text = {"plan": plan_text, "execute": execute_text, "verify": verify_text}[order.kind](order.payload)
    return ChatRequest(model, (ChatMessage("system", prompt(order.role)), ChatMessage("user", text)), tuple(tools))


def read(order: Order, text: str) -> dict[str, Any]:
    """What the answer says, as a report's data; never raises for what a model wrote."""
    return {"plan": read_plan, "execute": read_result, "verify": read_verdict}[order.kind](text)


# -- planner ---------------------------------------------------------------------------------------------------


def plan_text(payload: Mapping[str, Any]) -> str:
    """{goal, files: [[path, bytes]…], max_subtasks, refused[], replan?: {finished[], failed[]}}."""
    files = payload.get("files", [])
    listed = [f"- {code(path)} ({size} bytes)" for path, size in files[:MAX_FILES]]
    if len(files) > MAX_FILES:
        listed.append(f"- … and {len(files) - MAX_FILES} more")
    sections = [
        "# Goal\n" + quoted(payload.get("goal", "")),
        "## Files\n" + ("\n".join(listed) or "- (none)"),
        f"## Limits\nLimit: at most {payload.get('max_subtasks', 1)} subtasks",
    ]
    if refused := payload.get("refused"):
        sections.append("## Refused\n" + bullets(refused))
    if replan := payload.get("replan"):
        finished = [f"{code(s['id'])}: {one_line(s['title'])}" for s in replan.get("finished", [])]
        failed = [f"{code(s['id'])}: {one_line(s['title'])}: {one_line(s['reason'])}" for s in replan.get("failed", [])]
        sections.append(
            "## Replan\nFinished, keep as they are:\n"
            + (bullets(finished) or "- (none)")
            + "\nFailed or blocked, find another way:\n"
            + bullets(failed)
        )
    return "\n\n".join(sections) + "\n"


def read_plan(text: str) -> dict[str, Any]:
    """{"plan": object} or {"unusable": why}."""
    found = extract.json_object(text, "subtasks")
    if found is None:
        return {"unusable": "the answer holds no JSON object with `subtasks`"}
    return {"plan": found}


# -- executor --------------------------------------------------------------------------------------------------


def execute_text(payload: Mapping[str, Any]) -> str:
    """{subtask, results: [{id, title, summary}…], findings[]}."""
    return "\n\n".join([*_subtask_sections(payload["subtask"]), *_results(payload), *_findings(payload)]) + "\n"


def read_result(text: str) -> dict[str, Any]:
    """{"status": "done"|"blocked", "summary", "reason"}: an answer in plain words counts as done; it is no evidence."""
    found = extract.json_object(text, "status")
    if found is None:
        return {"status": "done", "summary": text.strip()}
    if found.get("status") == "blocked":
        return {"status": "blocked", "reason": one_line(str(found.get("reason") or "no reason given"))}
    return {"status": "done", "summary": str(found.get("summary") or "").strip() or text.strip()}


# -- verifier --------------------------------------------------------------------------------------------------


def verify_text(payload: Mapping[str, Any]) -> str:
    """{subtask, checks: [{name, passed, detail}…], diff, claim}."""
    checks = [
        f"{c['name']}: {'passed' if c['passed'] else 'failed'}{' ' + one_line(c['detail']) if c['detail'] else ''}"
        for c in payload.get("checks", [])
    ]
    sections = list(_subtask_sections(payload["subtask"]))
    sections.append("## Checks\n" + (bullets(checks) or "- (none)"))
    sections.append("## Diff\n" + fenced(cut(payload.get("diff", ""), MAX_DIFF_CHARS)))
    sections.append("## Claim\n" + quoted(cut(payload.get("claim", ""), MAX_RESULT_CHARS)))
    return "\n\n".join(sections) + "\n"


SEVERITIES = ("blocker", "major", "minor")


def read_verdict(text: str) -> dict[str, Any]:
    """{passed, confidence, findings, inconclusive}: what cannot be read is inconclusive, never a pass."""
    verdicts = list(extract.json_objects(text, "passed"))
    if not verdicts or not isinstance(verdicts[0].get("passed"), bool):
        return _inconclusive("the verdict could not be read")
    if any(v.get("passed") is not verdicts[0]["passed"] for v in verdicts):
        return _inconclusive("the answer holds two verdicts that disagree")  # one of them may be quoted
    found = verdicts[0]
    raw = found.get("findings") or []
    if not isinstance(raw, list):
        raw = [raw]
    findings = [f for f in map(_finding, raw) if f is not None]
    if found.get("inconclusive") is True:
        return {**_inconclusive("the verifier could not judge"), "findings": findings}
    confidence = found.get("confidence")
    if isinstance(confidence, bool) or not isinstance(confidence, int | float) or not 0 <= confidence <= 1:
        confidence = 0.5
    grave = any(f["severity"] in ("blocker", "major") for f in findings)
    if found["passed"] and grave:
        return {**_inconclusive("the verdict passes and has a grave finding"), "findings": findings}
    return {
        "passed": found["passed"],
        "confidence": float(confidence),
        "findings": findings,
        "inconclusive": False,
    }


def _inconclusive(why: str) -> dict[str, Any]:
    return {"passed": False, "confidence": 0.0, "findings": [], "inconclusive": True, "why": why}


def _finding(raw: object) -> dict[str, str] | None:
    if isinstance(raw, str):
        raw = {"what": raw}
    if not isinstance(raw, Mapping):
        return None
    severity = raw.get("severity")
    return {
        "severity": severity if severity in SEVERITIES else "major",
        "where": one_line(str(raw.get("where") or ""))[:200],
        "what": one_line(str(raw.get("what") or ""))[:500],
        "evidence": one_line(str(raw.get("evidence") or ""))[:500],
    }


# -- shared sections -------------------------------------------------------------------------------------------


def _subtask_sections(subtask: Mapping[str, Any]) -> Iterable[str]:
    yield f"# Subtask {code(subtask['id'])}: {one_line(subtask['title'])}\n\n{quoted(subtask['instruction'])}"
    yield "## Reads\n" + (listed(subtask["reads"]) or "- (none)")
    yield "## Deliverables\n" + (listed(subtask["deliverables"]) or "- (none)")
    yield "## Acceptance\n" + (bullets(subtask["acceptance"]) or "- (none)")
    if subtask.get("synthesis"):
        yield "## Synthesis\nyes"


def _results(payload: Mapping[str, Any]) -> Iterable[str]:
    results = payload.get("results", [])
    if results:
        parts = [
            f"### {code(r['id'])}: {one_line(r['title'])}\n{quoted(cut(r['summary'], MAX_RESULT_CHARS))}"
            for r in results
        ]
        yield "## Results of earlier subtasks\n" + "\n\n".join(parts)


def _findings(payload: Mapping[str, Any]) -> Iterable[str]:
    findings = payload.get("findings", [])
    if findings:
        yield "## Findings\n" + bullets(
            f"{f['severity']} {f['where']}: {f['what']}" + (f" ({f['evidence']})" if f["evidence"] else "")
            for f in findings
        )


def quoted(text: str) -> str:
    return "\n".join(f"> {line}" for line in text.splitlines()) or ">"


def bullets(items: Iterable[str]) -> str:
    return "\n".join(f"- {one_line(item)}" for item in items)


def listed(paths: Iterable[str]) -> str:
    return "\n".join(f"- {code(path)}" for path in paths)


def code(text: str) -> str:
    """A name as it is, in more backticks than it has in a row; what cannot be shown in a line is escaped."""
    if not text.isprintable():
        text = ascii(text)[1:-1]
    ticks = "`" * (_longest_run(text) + 1)
    if text[:1] == "`" or text[-1:] == "`" or (text[:1] == " " == text[-1:] and text.strip()):
        text = f" {text} "  # of a space on either side one is taken off again (CommonMark)
    return f"{ticks}{text}{ticks}"


def one_line(text: str) -> str:
    return " ".join(text.split())


def cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"{text[:limit]}\n[… {len(text) - limit} more characters]"


def fenced(text: str) -> str:
    """In a fence longer than any in the text, so that the text cannot close it, and without headings in it.

    No line of a difference begins with `#`; should one do so all the same, it is moved by a space.
    """
    text = "\n".join(f" {line}" if line.startswith("#") else line for line in text.splitlines())
    ticks = "`" * max(3, _longest_run(text) + 1)
    return f"{ticks}diff\n{text}\n{ticks}"


def _longest_run(text: str) -> int:
    """How many backticks stand in a row at most."""
    return max((len(run) for run in re.findall("`+", text)), default=0)
