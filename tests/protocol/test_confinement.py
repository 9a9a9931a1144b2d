"""No file tool leaves its workspace, by whatever path or link, and none waits for what is not a file.

Each attempt runs against each file tool twice: with openat2, and walking as where the kernel has none. Around the
workspace lies a secret; afterwards it must be neither in the answer nor changed.
"""

from __future__ import annotations

import ctypes
import json
import os
import socket
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import pytest
from toolkit import FILE_TOOLS, alive, loaded, refusal, result, start

RENAME_EXCHANGE = 2
SECRET = "TOP-SECRET-7781"
MODES = {"openat2": {}, "walk": {"LOOM_TOOL_NO_OPENAT2": "1"}}
EVERY = FILE_TOOLS
FILES = ("read-file", "write-file")


def nothing(_ws: Path) -> None:
    """The path alone is the attempt."""


def link(name: str, target: str) -> Callable[[Path], None]:
    """A symbolic link in the workspace; {out} stands for the directory outside, {ws} for the workspace."""

    def make(ws: Path) -> None:
        (ws / name).parent.mkdir(parents=True, exist_ok=True)
        (ws / name).symlink_to(target.format(out=ws.parent / "outside", ws=ws))

    return make


def chain(ws: Path) -> None:
    link("one", "two")(ws)
    link("two", "sub/three")(ws)
    link("sub/three", "../../outside")(ws)


def fifo(ws: Path) -> None:
    os.mkfifo(ws / "fifo")
    link("to-fifo", "fifo")(ws)


def unix_socket(ws: Path) -> None:
    here = Path.cwd()
    os.chdir(ws)  # the name of a socket has 107 bytes at most
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket")
    os.chdir(here)


def device(ws: Path) -> None:
    try:
        os.mknod(ws / "device", 0o600 | stat.S_IFCHR, os.makedev(1, 5))
    except PermissionError:
        pytest.skip("may not make a device")


ATTEMPTS = {
    # name: (what lies in the workspace, path, tools)
    "dotdot": (nothing, "../outside/secret.txt", EVERY),
    "dotdot-directory": (nothing, "..", EVERY),
    "dotdot-behind-a-directory": (nothing, "sub/../../outside/secret.txt", EVERY),
    "dotdot-behind-dots": (nothing, "./sub/.//.././../outside/secret.txt", EVERY),
    "dotdot-behind-what-is-missing": (nothing, "missing/../../outside/secret.txt", EVERY),
    "dotdot-that-stays-inside": (nothing, "sub/../inside.txt", EVERY),
    "dotdot-at-the-end": (nothing, "sub/..", EVERY),
    "dotdot-behind-a-link": (link("l", "sub"), "l/../../outside/secret.txt", EVERY),
    "absolute": (nothing, "{out}/secret.txt", EVERY),
    "absolute-with-two-slashes": (nothing, "//{out}/secret.txt", EVERY),
    "absolute-inside": (nothing, "{ws}/inside.txt", EVERY),
    "absolute-root": (nothing, "/", EVERY),
    "proc-root": (nothing, "/proc/self/root/{out}/secret.txt", EVERY),
    "link-to-file": (link("l", "{out}/secret.txt"), "l", EVERY),
    "relative-link-to-file": (link("l", "../outside/secret.txt"), "l", EVERY),
    "link-to-directory": (link("l", "{out}"), "l/secret.txt", EVERY),
    "link-to-directory-itself": (link("l", "{out}"), "l", EVERY),
    "link-to-directory-with-slash": (link("l", "{out}"), "l/", EVERY),
    "link-to-directory-with-dot": (link("l", "{out}"), "l/.", EVERY),
    "relative-link-to-directory": (link("sub/l", "../../outside"), "sub/l/secret.txt", EVERY),
    "link-in-the-middle": (link("sub/l", "{out}"), "sub/l/deep/secret.txt", EVERY),
    "link-to-the-parent": (link("l", ".."), "l/outside/secret.txt", EVERY),
    "link-to-root": (link("l", "/"), "l/{out}/secret.txt", EVERY),
    "absolute-link-inside": (link("l", "{ws}/sub"), "l/other.txt", EVERY),
    "chain-of-links": (chain, "one/secret.txt", EVERY),
    "link-to-itself": (link("l", "l"), "l", EVERY),
    "link-to-itself-as-directory": (link("l", "l"), "l/secret.txt", EVERY),
    "link-to-nothing-outside": (link("l", "{out}/new.txt"), "l", EVERY),
    "link-to-no-directory-outside": (link("l", "{out}/new"), "l/new.txt", EVERY),
    "magic-root": (link("l", "/proc/self/root"), "l/{out}/secret.txt", EVERY),
    "magic-cwd": (link("l", "/proc/self/cwd"), "l/secret.txt", EVERY),
    "magic-descriptor": (link("l", "/proc/self/fd/0"), "l", EVERY),
    "device-through-link": (link("l", "/dev/zero"), "l", EVERY),
    "fifo": (fifo, "fifo", EVERY),
    "fifo-through-link": (fifo, "to-fifo", EVERY),
    "fifo-as-directory": (fifo, "fifo/x", EVERY),
    "socket": (unix_socket, "socket", EVERY),
    "device": (device, "device", EVERY),
    "directory": (nothing, "sub", FILES),
    "directory-with-slash": (nothing, "sub/", FILES),
    "workspace": (nothing, ".", FILES),
    "workspace-with-slash": (nothing, "./", FILES),
    "file-with-slash": (nothing, "new.txt/", FILES),
    "file-as-directory": (nothing, "inside.txt/x", EVERY),
    "empty": (nothing, "", EVERY),
    "nul": (nothing, "inside.txt\0/../../outside/secret.txt", EVERY),
    "nul-at-the-end": (nothing, "inside.txt\0", EVERY),
    "surrogate": (nothing, "\udc2e\udc2e/outside/secret.txt", EVERY),
    "name-too-long": (nothing, "n" * 256, EVERY),
    "path-too-long": (nothing, "n/" * 2100 + "n", EVERY),
}
TABLE = [
    pytest.param(tool, mode, *attempt[:2], id=f"{name}-{tool}-{mode}")
    for name, attempt in ATTEMPTS.items()
    for tool in attempt[2]
    for mode in MODES
]
INPUT = {"write-file": {"content": "changed"}, "search-files": {"query": "SECRET"}}


@pytest.fixture
def ws(tmp_path: Path) -> Path:
    outside = tmp_path / "outside"
    (outside / "deep").mkdir(parents=True)
    (outside / "secret.txt").write_text(SECRET)
    (outside / "deep/secret.txt").write_text(SECRET)
    work = tmp_path / "ws"
    (work / "sub").mkdir(parents=True)
    (work / "inside.txt").write_text("inside")
    (work / "sub/other.txt").write_text("other")
    return work


def state(ws: Path) -> dict[str, object]:
    """All that lies outside, and the names inside: an attempt must change neither."""
    outside = {str(p): p.read_text() if p.is_file() else None for p in (ws.parent / "outside").rglob("*")}
    return outside | dict.fromkeys((str(p) for p in ws.rglob("*")), True)


@pytest.mark.parametrize("tool, mode, prepare, path", TABLE)
def test_every_way_out_is_refused(tool, mode, prepare, path, ws):
    prepare(ws)
    before = state(ws)
    asked = {"path": path.format(out=ws.parent / "outside", ws=ws), **INPUT.get(tool, {})}
    done = start(tool, "invoke", json.dumps(asked).encode(), LOOM_WORKSPACE=str(ws), **MODES[mode])
    reply = json.loads(done.stdout)
    assert reply["status"] == "error" and reply["error"].isprintable()
    assert SECRET not in done.stdout.decode() + done.stderr.decode()
    assert state(ws) == before


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("tool", ["list-files", "search-files"])
def test_a_walk_follows_no_link_and_opens_nothing_special(tool, mode, ws):
    fifo(ws)
    link("l", "{out}")(ws)
    link("secret", "{out}/secret.txt")(ws)
    got = json.dumps(result(tool, INPUT.get(tool, {}), LOOM_WORKSPACE=str(ws), **MODES[mode]))
    assert "secret" not in got.lower() and "fifo" not in got


@pytest.mark.parametrize("path", ["root/etc/passwd", "cwd/x", "exe", "fd/0", "root"])
@pytest.mark.parametrize("mode", MODES)
def test_magic_links_of_proc_are_not_followed(path, mode):
    refusal("read-file", {"path": path}, LOOM_WORKSPACE="/proc/self", **MODES[mode])


def test_links_that_stay_inside_work_with_openat2_and_are_refused_without(ws):
    link("file", "sub/other.txt")(ws)
    link("sub/up", "../sub")(ws)
    for path in ("file", "sub/up/up/other.txt"):
        assert result("read-file", {"path": path}, LOOM_WORKSPACE=str(ws))["content"] == "other"
        assert "link" in refusal("read-file", {"path": path}, LOOM_WORKSPACE=str(ws), **MODES["walk"])
    result("write-file", {"path": "sub/up/new/x", "content": "x"}, LOOM_WORKSPACE=str(ws))
    assert (ws / "sub/new/x").read_text() == "x"


@pytest.mark.parametrize("mode", MODES)
def test_nothing_is_written_through_a_link_even_inside(mode, ws):
    link("l", "inside.txt")(ws)
    asked = {"path": "l", "content": "changed"}
    assert "a symbolic link" in refusal("write-file", asked, LOOM_WORKSPACE=str(ws), **MODES[mode])
    assert (ws / "inside.txt").read_text() == "inside" and (ws / "l").is_symlink()


@pytest.mark.parametrize("mode", MODES)
def test_a_hard_link_is_replaced_and_never_written_through(mode, ws):
    secret = ws.parent / "outside/secret.txt"
    os.link(secret, ws / "hard")
    result("write-file", {"path": "hard", "content": "changed"}, LOOM_WORKSPACE=str(ws), **MODES[mode])
    assert secret.read_text() == SECRET and (ws / "hard").read_text() == "changed"


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("tool", FILE_TOOLS)
def test_a_name_with_control_characters_is_escaped_in_errors(tool, mode, ws):
    asked = {"path": "a\x1b[2J\n\u202e/b/../c", **INPUT.get(tool, {})}
    assert r"'a\x1b[2J\n\u202e/b/../c'" in refusal(tool, asked, LOOM_WORKSPACE=str(ws), **MODES[mode])


def test_a_workspace_reached_through_a_link_is_the_users_choice(ws):
    (ws.parent / "alias").symlink_to(ws)
    got = result("read-file", {"path": "inside.txt"}, LOOM_WORKSPACE=str(ws.parent / "alias"))
    assert got["content"] == "inside"


# --- races -------------------------------------------------------------------------------------------------------


@contextmanager
def swapping(ws: Path) -> Iterator[None]:
    """While inside: `d` is a directory and a link to the outside by turns, as fast as another thread can do it."""
    stop = threading.Event()
    (ws / "d").mkdir()
    (ws / "spare").symlink_to(ws.parent / "outside")

    libc = ctypes.CDLL(None, use_errno=True)
    names = bytes(ws / "d"), bytes(ws / "spare")
    assert libc.renameat2(-100, names[0], -100, names[1], RENAME_EXCHANGE) == 0

    def swap() -> None:
        while not stop.is_set():
            libc.renameat2(-100, names[0], -100, names[1], RENAME_EXCHANGE)

    thread = threading.Thread(target=swap)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


@pytest.mark.parametrize("mode", MODES)
def test_a_directory_swapped_for_a_link_while_writing_never_leads_outside(mode, ws, monkeypatch):
    tool = loaded("write-file")
    monkeypatch.setenv("LOOM_WORKSPACE", str(ws))
    for name, value in MODES[mode].items():
        monkeypatch.setenv(name, value)
    outside = sorted((ws.parent / "outside").rglob("*"))
    outcomes, descriptors = set(), len(os.listdir("/proc/self/fd"))
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)  # so that the threads meet in the middle of a call
    try:
        with swapping(ws):
            end = time.monotonic() + 30
            for n in count():
                if n >= 1500 and ({True, "refused"} <= outcomes or time.monotonic() > end):
                    break
                try:
                    outcomes.add(tool.write_file({"path": f"d/new{n % 7}/f", "content": str(n)})["changed"])
                except tool.Refused:
                    outcomes.add("refused")
    finally:
        sys.setswitchinterval(interval)
    assert sorted((ws.parent / "outside").rglob("*")) == outside
    assert len(os.listdir("/proc/self/fd")) == descriptors
    assert {True, "refused"} <= outcomes  # both sides of the race were seen
    assert not list(ws.rglob(".loom-tmp-*"))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["read-file", "search-files"])
def test_a_directory_swapped_for_a_link_while_reading_never_shows_the_outside(name, mode, ws, monkeypatch):
    tool = loaded(name)
    monkeypatch.setenv("LOOM_WORKSPACE", str(ws))
    for variable, value in MODES[mode].items():
        monkeypatch.setenv(variable, value)
    read = {
        "read-file": lambda: tool.read_file({"path": "d/secret.txt", "offset": 0, "limit": 4096}),
        "search-files": lambda: tool._search(
            {"path": "d", "limit": 9}, tool._expression({"query": "TOP", "regex": False, "ignore_case": False})
        ),
    }[name]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with swapping(ws):
            for _ in range(3000):
                try:
                    assert SECRET not in str(read())
                except tool.Refused:
                    pass
    finally:
        sys.setswitchinterval(interval)


def test_no_attempt_left_a_process():
    assert alive("LOOM_TOOL_NO_OPENAT2") == []
