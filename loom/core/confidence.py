"""How sure we may be of a result, computed from evidence alone, in [0, 1] (docs/goals.md section 3)."""

from __future__ import annotations

import re


def confidence(
    checks_passed: int, checks: int, verdict: float | None, retries: int, max_attempts: int, failed_calls: int
) -> float:
    """Weighted mean of what is known: checks, the verdict when there is one, retries needed, tool calls that failed.

    A tool error that was recovered from weighs little: the end state is what is judged.
    """
    parts = [(0.3, checks_passed / checks if checks else 1.0)]
    if verdict is not None:
        parts.append((0.4, verdict))
    parts.append((0.2, 1.0 - min(1.0, retries / max(1, max_attempts))))
    parts.append((0.1, 1.0 / (1 + failed_calls)))
    return round(sum(w * v for w, v in parts) / sum(w for w, _ in parts), 3)


def signature(text: str) -> str:
    """A failure with its digits and paths collapsed: two alike in a row are no progress."""
    collapsed = " ".join("/" if "/" in word else word for word in text.split())
    return re.sub(r"\d+", "#", collapsed)[:180]
