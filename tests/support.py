"""What tests of several rooms share: a forked child with a deadline, waiting for a condition, a small real disk."""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ENVIRONMENT = 75
BUG = 70
DEADLINE_S = 30.0
ROOT = Path(__file__).parents[1]


@dataclass(frozen=True, slots=True)
class Ended:
    """How a forked child ended: its status, 128 + signal for one killed, and what it said."""

    status: int
    said: dict[str, Any]


def forked(work: Callable[[], dict[str, Any] | None], deadline_s: float = DEADLINE_S) -> Ended:
    """Run `work` in a child. OSError ends it with 75, anything else with 70 and its traceback in said["trace"].

    Past the deadline the child is killed and the status is -1.
    """
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        status, said = 0, {}
        try:
            said = work() or {}
        except OSError as error:
            status, said = ENVIRONMENT, {"error": str(error), "trace": traceback.format_exc()}
        except BaseException:
            status, said = BUG, {"trace": traceback.format_exc()}
        finally:
            with contextlib.suppress(OSError):
                _write_all(writer, json.dumps(said).encode())
            os._exit(status)
    os.close(writer)
    data, late = _read_until_end(reader, deadline_s)
    os.close(reader)
    if late:
        os.kill(pid, signal.SIGKILL)
    _, wait_status = os.waitpid(pid, 0)
    if late:
        return Ended(-1, {"trace": f"not done after {deadline_s} s"})
    status = os.waitstatus_to_exitcode(wait_status)
    return Ended(status if status >= 0 else 128 - status, json.loads(data) if data else {})


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _read_until_end(fd: int, deadline_s: float) -> tuple[bytes, bool]:
    end = time.monotonic() + deadline_s
    chunks = []
    while True:
        left = end - time.monotonic()
        if left <= 0 or not select.select([fd], [], [], left)[0]:
            return b"", True
        chunk = os.read(fd, 1 << 16)
        if not chunk:
            return b"".join(chunks), False
        chunks.append(chunk)


def scratch() -> Path:
    """A new directory on the fastest file system there is: a killed process loses nothing that tmpfs would lose."""
    shm = Path("/dev/shm")
    base = shm if shm.is_dir() and os.access(shm, os.W_OK) else None
    return Path(tempfile.mkdtemp(prefix="loom-test-", dir=base))


def wait_until(condition: Callable[[], Any], deadline_s: float = DEADLINE_S) -> Any:
    """Ask again and again until `condition()` is true and give its value; past the deadline the test fails."""
    end = time.monotonic() + deadline_s
    while not (value := condition()):
        if time.monotonic() > end:
            raise AssertionError(f"still not true after {deadline_s} s")
        select.select([], [], [], 0.005)
    return value


def in_namespace(script: str, *args: str, mounts: str) -> None:
    """Run Python source in a user and mount namespace of its own, after the shell line `mounts`.

    Skips, with the reason, where the kernel does not allow that. Fails with the script's output.
    """
    if shutil.which("unshare") is None:
        pytest.skip("there is no unshare here")
    probe = subprocess.run(["unshare", "-Urm", "sh", "-c", mounts], capture_output=True, text=True, timeout=DEADLINE_S)
    if probe.returncode:
        pytest.skip(f"no mounts in a user namespace here: {probe.stderr.strip()}")
    done = subprocess.run(
        ["unshare", "-Urm", "sh", "-c", f'{mounts} && exec "$@"', "sh", sys.executable, "-c", script, *args],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, f"status {done.returncode}\n{done.stdout}\n{done.stderr}"


def processes_of(home: Path) -> dict[int, str]:
    """Living processes with this LOOM_HOME in their environment, by pid, with their command lines."""
    found = {}
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and f"LOOM_HOME={home}".encode() in (entry / "environ").read_bytes().split(b"\0"):
                found[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
    return found
