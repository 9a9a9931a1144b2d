"""What benchmarks run on: an installed, byte-compiled loom, the peers' environments, a far side, homes on a disk."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
BUILD = ROOT / "build" / "bench"
VENV = Path(sys.prefix)
LOOM = VENV / "bin" / "loom"
PYTHON = VENV / "bin" / "python"
PEERS = HERE / "peers"


def environment(home: Path, **more: str) -> dict[str, str]:
    """A small environment for every measured program; nothing keeps Python from its compiled files."""
    base = {"PATH": f"{VENV / 'bin'}:/usr/local/bin:/usr/bin:/bin", "HOME": str(home), "LANG": "C.UTF-8"}
    return {**base, "LOOM_HOME": str(home / ".loom"), **more}


@contextlib.contextmanager
def scratch(on_disk: bool = False) -> Iterator[Path]:
    """A directory for one benchmark; `on_disk`: where syncs cost what they cost (the build directory's disk)."""
    BUILD.mkdir(parents=True, exist_ok=True)
    shm = Path("/dev/shm")
    base = BUILD if on_disk or not shm.is_dir() else shm
    place = Path(tempfile.mkdtemp(prefix="loom-bench-", dir=base))
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


@contextlib.contextmanager
def far_side(latency_s: float = 0.0) -> Iterator[str]:
    """A model server; gives its base_url, without /v1."""
    argv = [sys.executable, str(HERE / "far_server.py"), "--latency", str(latency_s)]
    server = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert server.stdin is not None and server.stdout is not None
    try:
        yield f"http://127.0.0.1:{int(server.stdout.readline())}"
    finally:
        server.stdin.close()
        server.wait(10)


def peer_python(name: str) -> Path:
    """The interpreter of a Python peer's own environment. Raises when it was not set up."""
    path = BUILD / "peers" / name / "bin" / "python"
    if not path.exists():
        raise FileNotFoundError(f"{name} is not set up: python bench/peers/set_up.py {name}")
    return path


def peer_program(name: str, program: str) -> Path:
    """A program of a peer, Python's or npm's."""
    for path in (BUILD / "peers" / name / "bin" / program, BUILD / "peers" / name / "node_modules" / ".bin" / program):
        if path.exists():
            return path
    raise FileNotFoundError(f"{name} is not set up: python bench/peers/set_up.py {name}")


def disk_of(path: Path) -> str:
    """The file system under a directory, and whether it has a journal where that can be said."""
    found = subprocess.run(["stat", "-f", "-c", "%T", str(path)], capture_output=True, text=True)
    return found.stdout.strip() or os.uname().sysname
