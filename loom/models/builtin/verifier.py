"""builtin/verifier: judges digests, by reading the deliverables and every source again with its own tools.

It takes nothing from the executor's claim. What is no digest it cannot judge, and says so: inconclusive, not passed.
The judging itself is loom.models.builtin.judge.
"""

from __future__ import annotations

import re
from typing import Any

from loom.models.builtin import orders
from loom.models.builtin.conversation import READ, Builtin, Step, Transcript, answer_json
from loom.models.builtin.judge import Finding, Judgement, examine, judge_digest, refused
from loom.models.builtin.text import is_binary
from loom.wire.chat import ChatRequest

__all__ = ["judge_digest", "open"]

# Every sentence may have been compared; whether better ones could have been chosen, nobody has looked at.
MOST_CONFIDENT = 0.95
_FAILED_CHECK = re.compile(r"(.+?):\s*failed\b\s*(.*)")


def open(name: str) -> Builtin:
    """The model, under the name it was asked for."""
    return Builtin(name, _answer)


def _answer(request: ChatRequest) -> Step:
    transcript = Transcript(request, "# Subtask")
    order = orders.parse(transcript.order)
    if reason := _why_not(transcript, order):
        return _inconclusive(reason)
    deliverables, reads = order.paths("deliverables"), order.paths("reads")
    if step := transcript.read_next([*deliverables, *reads]):
        return step
    result = examine(
        {path: _text(transcript, path) for path in deliverables},
        {path: _text(transcript, path) for path in reads if path not in deliverables},
        synthesis=order.has("synthesis"),
    )
    for item in order.items("checks"):
        if failed := _FAILED_CHECK.match(item):
            result.add("blocker", "", f"the check {failed[1]} failed", failed[2])
    return _verdict(result)


def _why_not(transcript: Transcript, order: orders.Order) -> str:
    """Why this cannot be judged as a digest; empty when it can."""
    deliverables = order.paths("deliverables")
    if not transcript.has_tool(READ):
        return f"the tool {READ} is not among the tools of the request"
    if not deliverables or not order.paths("reads"):
        return "the order names no deliverables or no documents to compare them with"
    if any(not path.lower().endswith(".md") for path in deliverables):
        return f"not every deliverable is a .md file: {', '.join(deliverables)}"
    if not orders.asks_for_digest(order.text()):
        return "the instruction does not ask for a digest"
    return ""


def _inconclusive(reason: str) -> Step:
    finding: Finding = {
        "severity": "major",
        "where": "",
        "what": f"the built-in verifier can only judge digests: {reason}",
        "evidence": "",
    }
    return answer_json({"passed": False, "confidence": 0.0, "inconclusive": True, "findings": [finding]})


def _verdict(result: Judgement) -> Step:
    passed = not refused(result.findings)
    verdict: dict[str, Any] = {
        "passed": passed,
        "confidence": confidence(result),
        "findings": result.findings,
    }
    said = f"{result.checked} of {result.total} sentences compared with their source, {len(result.findings)} findings."
    return answer_json(verdict, said)


def confidence(result: Judgement) -> float:
    """The share of the digest's sentences that could be compared; half when there was none to compare."""
    return round(MOST_CONFIDENT * (result.checked / result.total if result.total else 0.5), 3)


def _text(transcript: Transcript, path: str) -> str | None:
    """A file's text; None when it cannot be read or is no text."""
    reading = transcript.reading(path)
    return None if reading.error or is_binary(reading.text) else reading.text
