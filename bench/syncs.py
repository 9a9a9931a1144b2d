"""Syncs a message, counted by strace and by nothing of ours."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

from measure import NOT_MEASURED, Row, Table
from world import HERE, LOOM, PYTHON, environment, scratch

CALLS = "fsync,fdatasync,syncfs,sync,sync_file_range,msync"


def run(quick: bool) -> Table:
    table = Table("syncs", "strace -f counts fsync, fdatasync, syncfs, sync and msync of all processes of a round trip")
    if shutil.which("strace") is None:
        table.rows = [Row(name, why_not="there is no strace") for name in ("mailbox alone", "batches of 100")]
        return table
    count = 200 if quick else 500
    with scratch() as place:
        _pair(place, "home", 1, 1)  # which makes the home
        table.rows = [
            Row("mailbox alone", [_mailbox(place, "one", count, 1)], unit="syncs a message"),
            Row("mailbox alone, batches of 100", [_mailbox(place, "many", count, 100)], unit="syncs a message"),
            Row("send --stdin-lines, 100 lines", [_send_lines(place)], unit="syncs a message"),
            Row("agent, one-call turn", [_agent(place, 20)], unit="syncs a message"),
        ]
    one, many, lines, agent = (row.samples[0] for row in table.rows)
    table.value("request, answer, acknowledgement", one, 4, "syncs")
    table.value("the same in batches of 100", many, 0.1, "syncs")
    table.value("send --stdin-lines", lines, 0.1, "syncs")
    table.value("with a one-call turn", agent, 6, "syncs")
    return table


def _counted(argv: list[str], place: Path, trace: str, stdin: bytes = b"\n") -> subprocess.Popen[bytes]:
    strace = ["strace", "-f", "-qq", "-e", f"trace={CALLS}", "-o", str(place / trace)]
    child = subprocess.Popen([*strace, *argv], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment(place))
    assert child.stdin is not None
    child.stdin.write(stdin)
    child.stdin.close()
    return child


def _syncs(place: Path, trace: str) -> int:
    return sum(
        1 for line in (place / trace).read_text().splitlines() if re.search(rf"\b({CALLS.replace(',', '|')})\(", line)
    )


def _mailbox(place: Path, name: str, count: int, batch: int) -> float:
    """Both sides' syncs a message, once the mailbox and its first shard are there: a first batch is taken off."""
    found = _pair(place, name, count + batch, batch)
    return (found - _pair(place, f"{name}-first", batch, batch)) / count


def _pair(place: Path, name: str, count: int, batch: int) -> int:
    program = [str(PYTHON), str(HERE / "mailbox_program.py"), str(place)]
    roles = ("work", "ask")
    children = [_counted([*program, r, str(count), str(batch), name], place, f"{name}.{r}") for r in roles]
    for child in children:
        if child.wait(300):
            raise RuntimeError(f"mailbox_program.py ended with {child.returncode}")
    return sum(_syncs(place, f"{name}.{role}") for role in roles)


def _prepared(place: Path, name: str) -> None:
    """An agent that is down, in a home that is open."""
    env = environment(place)
    start = [str(LOOM), "agent", "start", name, "--model", "builtin/echo", "--detach"]
    subprocess.run(start, env=env, check=True, capture_output=True)
    for argv in (["agent", "stop", name], ["supervisor", "stop"]):
        subprocess.run([str(LOOM), *argv], env=env, check=True, capture_output=True)


def _send_lines(place: Path) -> float:
    _prepared(place, "lines")
    argv = [str(LOOM), "send", "lines", "--stdin-lines"]
    child = _counted(argv, place, "lines", b"".join(b"line %d\n" % n for n in range(100)))
    child.wait(60)
    return _syncs(place, "lines") / 100


def _agent(place: Path, count: int) -> float:
    """Messages sent one by one, then worked on by a draining runner."""
    _prepared(place, "one")
    for number in range(count):
        _counted([str(LOOM), "send", "one", f"message {number}"], place, f"send{number}").wait(60)
    agent = place / ".loom" / "agents" / "one"
    runner = Path(__file__).resolve().parents[1] / "runners" / "agent"
    _counted([str(PYTHON), str(runner), str(agent), "--drain"], place, "runner").wait(300)
    found = sum(_syncs(place, f"send{number}") for number in range(count)) + _syncs(place, "runner")
    return found / count


__all__ = ["NOT_MEASURED", "run"]
