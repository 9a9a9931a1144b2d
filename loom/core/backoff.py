"""How long to wait before a runner is started again: a formula of its arguments alone (docs/protocol.md section 7).

Enters: counts, settings and a draw of chance made by the caller. Stays out: clocks, chance, files.
"""

from __future__ import annotations

HEALTHY_S = 600.0  # after so long a run the wait begins at its base again
JITTER_S = 0.5  # keeps agents that fell together from rising together


def delay_s(n: int, draw: float, base_s: float = 1.0, max_s: float = 300.0) -> float:
    """Seconds before restart n = 0, 1, 2 …; `draw` is uniform in [0, 1). A base of 0 means at once."""
    if base_s <= 0:
        return 0.0
    return min(base_s * 2.0 ** min(n, 64), max_s) + JITTER_S * draw
