"""Durable round trips through the mailbox alone, against a queue in SQLite with synchronous=FULL, on the same disk."""

from __future__ import annotations

import subprocess
from pathlib import Path

from measure import Table, in_turn
from world import HERE, PEERS, PYTHON, disk_of, environment, scratch

PROGRAMS = {"loom": HERE / "mailbox_program.py", "SQLite FULL": PEERS / "sqlite_queue.py"}


def run(quick: bool) -> Table:
    how = (
        "pairs of processes: request of 1 KB durable, claim, answer durable, acknowledge; messages a second end to end"
    )
    table = Table("roundtrip", how)
    each = 100 if quick else 500
    shapes = {"1 mailbox": (1, 1, each), "8 mailboxes": (8, 1, each // 4), "100 in flight": (1, 100, each * 4)}
    with scratch(on_disk=True) as place:
        table.notes.append(f"disk: {disk_of(place)}")
        count = iter(range(10**6))

        def case(program: str, pairs: int, batch: int, messages: int) -> float:
            own = place / str(next(count))
            own.mkdir()
            return _rate(PROGRAMS[program], own, place, pairs, batch, messages)

        cases = {
            f"{program}, {shape}": (lambda program=program, numbers=numbers: case(program, *numbers))
            for shape, numbers in shapes.items()
            for program in PROGRAMS
        }
        table.rows = in_turn(cases, 3 if quick else 7)
    for row in table.rows:
        row.unit = "messages/s"
    table.at_least("loom / SQLite, 1 mailbox", "loom, 1 mailbox", "SQLite FULL, 1 mailbox", 0.7)
    table.at_least("loom / SQLite, 8 mailboxes", "loom, 8 mailboxes", "SQLite FULL, 8 mailboxes", 1.8)
    table.at_least("100 in flight / one by one", "loom, 100 in flight", "loom, 1 mailbox", 8)
    return table


def _rate(program: Path, place: Path, home: Path, pairs: int, batch: int, messages: int) -> float:
    """Messages a second of all pairs together; all begin at the same moment."""

    def start(role: str, number: int) -> subprocess.Popen[str]:
        argv = [str(PYTHON), str(program), str(place), role, str(messages), str(batch), f"box{number}"]
        child = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment(home))
        assert child.stdout is not None and child.stdout.readline() == "ready\n"
        return child

    children = [start(role, number) for number in range(pairs) for role in ("work", "ask")]
    try:
        for child in children:
            assert child.stdin is not None
            child.stdin.write("\n")
            child.stdin.flush()
        took = [float(child.stdout.readline()) for child in children if child.stdout is not None]
    finally:
        for child in children:
            child.kill()
            child.wait()
    return pairs * messages / max(took)
