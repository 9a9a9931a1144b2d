"""Run one trial of the crash proof again: `python tests/crash/replay.py 'CASE' 'POINT as JSON'`, as a failure printed.

Without a point the case is run undisturbed; without a case their names are listed. What the trial left stays in the
directory that is named at the end.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parents[1])]

from harness import Point, Report, _plan, crash_room, one_trial  # noqa: E402
from support import forked  # noqa: E402


def main(argv: list[str]) -> int:
    from crash_all import CASES

    if not argv:
        print("\n".join(CASES))
        return 0
    case = CASES[argv[0]]
    room = crash_room()
    prepared = room / "prepared"
    prepared.mkdir()
    made = forked(lambda: case.setup(prepared))  # type: ignore[func-returns-value]
    if made.status:
        wrong = str(made.said.get("trace"))
    elif len(argv) == 1:
        report = Report(case.name)
        _plan(case, report, prepared, room, True, (), False)
        wrong = "\n".join(report.failures)
        print(report.line())
    else:
        wrong, _ = one_trial(case, prepared, Point(**json.loads(argv[1])), room)
    print(wrong or "nothing is wrong")
    print(f"left in {room}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
