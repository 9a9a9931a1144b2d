"""strace as the hand of the kernel: which calls a program makes on our files, and one of them killed or failed.

A program is run once to learn its calls; call k of a kind is then disturbed in a run of its own. `--seccomp-bpf` is
never used: with it, strace 6.1 silently injects nothing. Therefore each fault must be seen to have fired.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

SYNCS = ("fsync", "fdatasync", "syncfs", "sync_file_range")
CHANGES = (
    *("link", "linkat", "rename", "renameat", "renameat2", "unlink", "unlinkat", "rmdir", "mkdir", "mkdirat"),
    *("write", "pwrite64", "writev", "openat", "ftruncate", "fchmod", "mknodat", "symlink", "symlinkat"),
    *("fsync", "fdatasync", "syncfs", "copy_file_range", "sendfile"),
)
DEADLINE_S = 60
_LINE = re.compile(r"^(?:\d+ +)?(\w+)\((.*)")


@dataclass(frozen=True, slots=True)
class Call:
    """The n-th call of this kind that the program makes (from 1), as strace shows it."""

    syscall: str
    n: int
    text: str


@dataclass(frozen=True, slots=True)
class Ended:
    """status: the exit status, negative for a signal. calls: those traced, in order. fired: a fault was injected."""

    status: int
    out: str
    err: str
    calls: list[Call]
    fired: str


def need_strace(syscalls: Sequence[str] = CHANGES) -> None:
    """Skips, with the reason, where strace is missing or may not trace."""
    if shutil.which("strace") is None:
        pytest.skip("there is no strace here: apt install strace")
    probe = subprocess.run(
        ["strace", "-f", "-o", "/dev/null", "-e", f"trace={','.join(syscalls)}", "true"], capture_output=True, text=True
    )
    if probe.returncode:
        pytest.skip(f"strace may not trace here: {probe.stderr.strip()[:200]}")


def run(
    command: Sequence[str],
    env: Mapping[str, str],
    log: Path,
    *,
    inject: str = "",
    follow: bool = True,
    trace: Sequence[str] = CHANGES,
    given: bytes = b"",
    cwd: Path | None = None,
) -> Ended:
    """Run a program under strace until it ends; `inject` as strace spells it, e.g. `fsync:signal=KILL:when=2`."""
    words = ["strace", *(["-f"] if follow else []), "-y", "-s", "120", "-o", str(log), "-e", f"trace={','.join(trace)}"]
    words += ["-e", f"inject={inject}"] if inject else []
    done = subprocess.run(
        [*words, *command], input=given, capture_output=True, env=dict(env), timeout=DEADLINE_S, cwd=cwd
    )
    text = log.read_text(errors="replace")
    return Ended(done.returncode, done.stdout.decode(), done.stderr.decode(), calls_in(text), _fired(text, inject))


def calls_in(text: str) -> list[Call]:
    """The calls of a log, each counted within its kind; of what a second process does nothing is disturbed."""
    counts: Counter[str] = Counter()
    found = []
    for line in text.splitlines():
        match = _LINE.match(line)
        if match is not None:
            name = match.group(1)
            counts[name] += 1
            found.append(Call(name, counts[name], f"{name}({match.group(2)}"))
    return found


def changes(calls: Sequence[Call], place: Path) -> list[Call]:
    """Those that change a file below `place`; an open does when it may create one."""
    return [
        call
        for call in calls
        if str(place) in call.text and (call.syscall != "openat" or "O_CREAT" in call.text or "O_TRUNC" in call.text)
    ]


def _fired(text: str, inject: str) -> str:
    """The call at which the fault came: the one marked as injected, or the last before the process was killed."""
    lines = [line for line in text.splitlines() if line.strip()]
    if ":signal=KILL" in inject:
        if not lines or "killed by SIGKILL" not in lines[-1]:
            return ""
        lines = [line for line in lines if _LINE.match(line)]
        return lines[-1] if lines else ""
    return next((line for line in lines if "(INJECTED)" in line), "")
