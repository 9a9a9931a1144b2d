"""Warm filters: a supervisor carries them out, and nobody can tell but by the clock (ADR-0032).

Each run here is told to be warm or cold by the pid in the filter's log: a cold one is its command itself.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import pty
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from far_side import FarSide
from support import ROOT, wait_until

from loom.daemons import warm as server
from loom.proc import pidfd, tree
from loom.proc.usage import children_of
from loom.spool.home import open_home
from loom.spool.layout import Home
from loom.wire import warm

EVENTS = b'data: {"choices": [{"delta": {"content": "hello"}, "finish_reason": "stop"}]}\n\ndata: [DONE]\n\n'
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: %d\r\n\r\n" % len(EVENTS) + EVENTS
COMMAND = (sys.executable, "-m", "loom")
FILTER = ("agent", "start", "x", "--model", "builtin/echo", "--stdin")
# A model that tells what it finds around it.
TELLS = """#!/bin/sh
cat >/dev/null
env -0 | sort -z | grep -zv '^_=' | sed -z 's|^\\(LOOM_AGENT_DIR=.*/filters/\\).*|\\1|' | od -c
pwd; umask; ulimit -a; nice; grep -E 'Sig(Ign|Blk)|Cpus_allowed:' /proc/self/status
"""
# A model that says that it was asked, and answers when it may.
WAITS = '#!/bin/sh\ncat >/dev/null\necho $$ >"{place}/asked"\nread line <"{place}/may"\necho "$line"\n'


class World:
    """A home with a supervisor, and a user whose commands it may carry out."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.home: Home = open_home(place / "home", {"LOOM_ALLOW_FILESYSTEM": "1"})
        self.env = {
            "PATH": os.environ["PATH"],
            "HOME": str(place),
            "LOOM_HOME": str(self.home.path),
            "PYTHONPATH": str(ROOT),
            "LC_ALL": "C.UTF-8",
        }
        self.supervisor: subprocess.Popen[bytes] | None = None

    def start(self, **env: str) -> subprocess.Popen[bytes]:
        read, write = os.pipe()
        self.supervisor = subprocess.Popen(
            [sys.executable, "-P", "-m", "loom", "supervisor", "run"],
            env={**self.env, "LOOM_READY_FD": str(write), **env},
            pass_fds=(write,),
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        os.close(write)
        assert os.read(read, 1) == b"\n"
        os.close(read)
        return self.supervisor

    def popen(self, *words: str, **how: Any) -> subprocess.Popen[bytes]:
        pipe = subprocess.PIPE
        given = {"stdin": pipe, "stdout": pipe, "stderr": pipe, "env": self.env, "cwd": self.place}
        return subprocess.Popen([*COMMAND, *words], **{**given, **how})

    def run(self, *words: str, stdin: bytes = b"hello\n", **how: Any) -> tuple[int, bytes, bytes, bool | None]:
        """(status, stdout, stderr, whether it was warm; None: it never came to its filter)."""
        before = len(self.begun())
        child = self.popen(*words, **how)
        out, err = child.communicate(stdin, 60)
        begun = self.begun()[before:]
        return child.returncode, out, err, (begun[0] != child.pid) if begun else None

    def begun(self) -> list[int]:
        """The pids of all filters so far."""
        lines = [line for log in sorted(self.home.agent("x").logs.glob("*")) for line in log.read_bytes().splitlines()]
        return [entry["pid"] for entry in map(json.loads, lines) if entry.get("event") == "filter_start"]

    def program(self, name: str, text: str) -> str:
        path = self.place / name
        path.write_text(text.replace("{place}", str(self.place)))
        path.chmod(0o755)
        return f"exec/{path}"

    def waiting(self, *more: str, **how: Any) -> tuple[subprocess.Popen[bytes], int]:
        """A warm filter whose model was asked and has not answered: (its command, its fork)."""
        if not (self.place / "may").exists():
            os.mkfifo(self.place / "may")
        (self.place / "asked").unlink(missing_ok=True)
        before = len(self.begun())
        model = self.program("waits", WAITS)
        words = ("agent", "start", "x", "--model", model, "--prompt", "hi", *more)
        command = self.popen(*words, stdin=subprocess.DEVNULL, **how)
        wait_until((self.place / "asked").exists)
        (pid,) = self.begun()[before:]
        assert pid != command.pid
        return command, pid

    def answer(self, text: str) -> None:
        (self.place / "may").write_text(f"{text}\n")

    def left(self) -> list[str]:
        return sorted(os.listdir(self.home.filters))

    def end(self) -> None:
        if self.supervisor is not None and self.supervisor.poll() is None:
            self.supervisor.terminate()
            assert self.supervisor.wait(30) == 0


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    found = World(tmp_path)
    found.start()
    yield found
    found.end()
    wait_until(lambda: all(map(is_gone, found.begun())))  # a fork says how it ended, and then ends


def is_gone(pid: int) -> bool:
    fields = pidfd.stat_of(pid)
    return not fields or fields[0] in (b"Z", b"X")


def has_one_socket(pid: int) -> bool:
    found = []
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found.append(os.readlink(fd))
    return sum(name.startswith("socket:") for name in found) == 1


def state_of(pid: int) -> str:
    found = tree.look_at(pid)
    return found.state if found else ""


def settled(text: bytes) -> bytes:
    """Without what differs from one filter to the next."""
    text = re.sub(rb"\d{13}-[0-9A-Z]{26}|\d{10,}[-.][0-9A-Za-z.-]{10,}", b"STEM", text)
    return re.sub(rb"\d+:\d+:\d+\.\d+", b"TIME", text)


def both(world: World, *words: str, **how: Any) -> tuple[int, bytes, bytes]:
    """What a command does, warm as cold."""
    env = how.pop("env", world.env)
    *warm_one, was_warm = world.run(*words, env=env, **how)
    *cold_one, was_cold = world.run(*words, env={**env, "LOOM_WARM": "0"}, **how)
    if was_warm is not None:
        assert was_warm and was_cold is False
    for one in (warm_one, cold_one):
        one[1:] = [settled(text).replace(b"LOOM_WARM=0", b"") for text in one[1:]]
    assert warm_one == cold_one
    return warm_one[0], warm_one[1], warm_one[2]


# -- as if it were cold -------------------------------------------------------------------------------------------


def test_the_supervisor_carries_it_out(world: World) -> None:
    assert world.run(*FILTER) == (0, b"hello\n", b"", True)
    command, pid = world.waiting()
    assert tree.look_at(pid).ppid == world.supervisor.pid  # type: ignore[union-attr]
    wait_until(lambda: state_of(command.pid) == "S")  # it said the word, and is about to wait
    world.answer("done")
    assert command.communicate(timeout=60)[0] == b"done\n"
    assert command.returncode == 0
    assert world.left() == []


@pytest.mark.parametrize("words, stdin, status", [
    (FILTER, b"two\nlines", 0),
    ((*FILTER, "--json"), b"hi", 0),
    (("-q", *FILTER, "--tools", "run-shell"), b"hi", 0),
    ((*FILTER, "--tools", "run-shell"), b"hi", 0),
    ((*FILTER[:3], "--prompt", "ho", "--model=builtin/echo"), b"", 0),
    (("agent", "start", "x", "--model", "exec/no-such-program", "--stdin"), b"hi", 66),
    (("agent", "start", "x", "--stdin"), b"hi", 2),
    ((*FILTER, "--restart", "never"), b"hi", 2),
    ((*FILTER, "--nonsense"), b"hi", 2),
    (("agent", "start", "x", "--resume"), b"", 66),
    (FILTER, b"", 65),
    (FILTER, b"\xff\xfe", 65),
    (FILTER, b"x" * (20 << 20), 65),
    ((*FILTER, "--max-input", str(64 << 20)), b"y" * (20 << 20), 0),
])  # fmt: skip
def test_status_stdout_and_stderr_are_the_same(world: World, words: tuple[str, ...], stdin: bytes, status: int) -> None:
    assert both(world, *words, stdin=stdin)[0] == status


def test_a_program_finds_the_same_around_it(world: World) -> None:
    model = world.program("tells", TELLS)
    here = world.place / "dir \u00e9"
    here.mkdir()

    def odd() -> None:
        os.umask(0o137)
        os.nice(3)
        resource.setrlimit(resource.RLIMIT_NOFILE, (200, 300))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2])

    env = {**world.env, "TMPDIR": "/dev/shm", "HOME": "/odd \udcfe\n bytes", "LANG": "xx", "LOOM_X": "y"}
    words = ("agent", "start", "x", "--prompt", "hi", "--model", model, "--env", "A=b")
    status, out, err = both(world, *words, cwd=here, env=env, preexec_fn=odd)
    assert (status, err) == (0, b"")
    assert b"\n0137\n" in out
    assert b"200" in out


def test_the_whole_environment_is_the_commands(tmp_path: Path) -> None:
    """A program that is asked for a key gets all of it, of the process as the C library has it."""
    world = World(tmp_path)
    tells = tmp_path / "tells"
    tells.write_text(f"#!/bin/sh\nenv -0 | sort -z >{tmp_path}/seen.$LOOM_WARM\necho key\n")
    tells.chmod(0o755)
    far = f"{{dialect: openai, base_url: 'http://127.0.0.1:9/v1', key_command: ['{tells}']}}"
    world.home.config.write_text(f"providers:\n  far: {far}\n")
    world.start(LOOM_SUPERVISOR_IDLE_S="77", TZ="UTC", LOOM_LOG="info", LC_CTYPE="C")
    try:
        for word in ("1", "0"):
            env = {**world.env, "LOOM_WARM": word, "ODD": "\udcfe\n=\u00e9", "EMPTY": "", "SECRET": "s" * 1000}
            words = ("agent", "start", "x", "--model", "far/m", "--prompt", "hi", "--timeout", "1")
            assert world.run(*words, env=env)[3] is (word == "1")
    finally:
        world.end()
    warm_one, cold_one = ((tmp_path / f"seen.{word}").read_bytes() for word in "10")
    assert b"ODD=\xfe\n=\xc3\xa9\0" in warm_one
    assert warm_one.replace(b"LOOM_WARM=1", b"LOOM_WARM=0") == cold_one


@pytest.mark.parametrize("size", [0, 1 << 20])
def test_the_environment_is_the_commands_and_not_the_supervisors(tmp_path: Path, size: int) -> None:
    world = World(tmp_path)
    world.start(LOOM_SUPERVISOR_IDLE_S="77", LOOM_MODEL="builtin/none")
    many = {f"BULK_{number}": "\udcff" * 100_000 for number in range(size // 100_000)}
    try:
        env = {**world.env, **many, "LOOM_MODEL": "builtin/echo"}
        assert world.run("agent", "start", "x", "--stdin", env=env) == (0, b"hello\n", b"", True)
        assert both(world, "agent", "start", "x", "--stdin", env=world.env)[0] == 2  # no model, as nobody names one
    finally:
        world.end()


@pytest.mark.parametrize("way", ["relative", "option", "from HOME", "long"])
def test_the_home_is_found_as_ever(tmp_path: Path, way: str) -> None:
    place = tmp_path / ("d" * 120 if way == "long" else "d")
    place.mkdir()
    world = World(place)
    os.rename(world.home.path, place / ".loom")
    world.home = Home(place / ".loom")
    world.env["LOOM_HOME"] = str(world.home.path)
    world.start()
    words: tuple[str, ...] = FILTER
    env = dict(world.env)
    if way == "relative":
        env["LOOM_HOME"] = ".loom"
    elif way == "from HOME":
        del env["LOOM_HOME"]
    elif way == "option":
        env["LOOM_HOME"] = "/nowhere"
        words = ("-q", "--home", "./.loom", *FILTER)
    try:
        assert world.run(*words, env=env) == (0, b"hello\n", b"", True)
    finally:
        world.end()


def test_a_directory_that_is_gone_is_gone_for_both(world: World) -> None:
    gone = world.place / "gone"

    def go() -> None:
        gone.mkdir()
        os.chdir(gone)
        gone.rmdir()

    env = {**world.env, "LOOM_WORKSPACE": str(world.place)}
    words = ("agent", "start", "x", "--model", "builtin/echo", "--prompt", "hi")
    status, _, err = both(world, *words, env=env, preexec_fn=go)
    assert status == 74 and b"current directory does not exist" in err


def test_many_at_once_answer_once_each(world: World) -> None:
    words = " ".join((*COMMAND, *FILTER))
    script = f"seq 40 | xargs -P 20 -I% sh -c 'echo % | {words}'"
    done = subprocess.run(["sh", "-c", script], env=world.env, capture_output=True, timeout=100, check=True)
    assert sorted(map(int, done.stdout.split())) == list(range(1, 41))
    assert world.left() == []
    assert len(world.begun()) == 40


def test_a_reader_that_has_enough_ends_it_quietly(world: World) -> None:
    many = world.program("many", "#!/bin/sh\ncat >/dev/null\nwhile echo line; do :; done\n")
    for env in (world.env, {**world.env, "LOOM_WARM": "0"}):
        words = " ".join((*COMMAND, "agent", "start", "x", "--model", many, "--prompt", "hi"))
        script = f"{{ {words}; echo $? >&2; }} | head -1"
        done = subprocess.run(["sh", "-c", script], env=env, cwd=world.place, capture_output=True, timeout=60)
        assert (done.stdout, done.stderr) == (b"line\n", b"0\n")
    assert world.left() == []


def test_a_terminal_is_a_terminal(world: World) -> None:
    """Control characters are not shown on one."""
    model = world.program("colours", "#!/bin/sh\ncat >/dev/null\nprintf '\\033[31mred\\n'\n")
    found = []
    for env in (world.env, {**world.env, "LOOM_WARM": "0"}):
        ours, theirs = pty.openpty()
        streams = dict.fromkeys(("stdin", "stdout", "stderr"), theirs)
        words = ("agent", "start", "x", "--model", model, "--prompt", "hi")
        command = world.popen(*words, env=env, start_new_session=True, **streams)
        assert command.wait(60) == 0
        os.close(theirs)
        found.append(os.read(ours, 4096))
        os.close(ours)
        assert (world.begun()[-1] != command.pid) == (env is world.env)
    assert found == [b"[31mred\r\n"] * 2


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-"])
def test_a_stream_that_is_closed_is_closed(world: World, closed: str) -> None:
    words = " ".join((*COMMAND, "agent", "start", "x", "--model", "builtin/echo", "--prompt", "hi", closed))
    found = []
    for env in (world.env, {**world.env, "LOOM_WARM": "0"}):
        done = subprocess.run(["sh", "-c", words], env=env, cwd=world.place, capture_output=True, timeout=60)
        found.append((done.returncode, done.stdout, settled(done.stderr)))
    assert found[0] == found[1]


# -- signals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number, status", [
    (signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGQUIT, -signal.SIGQUIT),
])  # fmt: skip
def test_a_signal_ends_it_as_it_ends_a_cold_one(world: World, number: int, status: int) -> None:
    said = []
    for env in (world.env, {**world.env, "LOOM_WARM": "0"}):
        if env is world.env:
            command, pid = world.waiting()
        else:
            (world.place / "asked").unlink()
            model = world.program("waits", WAITS)
            words = ("agent", "start", "x", "--model", model, "--prompt", "hi")
            command = world.popen(*words, stdin=subprocess.DEVNULL, env=env)
            wait_until((world.place / "asked").exists)
            pid = command.pid
        command.send_signal(number)
        out, err = command.communicate(timeout=60)
        said.append((command.returncode, out, settled(err)))
        wait_until(partial(is_gone, pid))
    assert said[0] == said[1]
    assert said[0][0] == status
    assert len(world.left()) == 2
    assert world.run("agent", "start", "x", "--resume", stdin=b"", preexec_fn=answering(world, "late"))[1] == b"late\n"


def answering(world: World, text: str) -> Callable[[], None]:
    """Has the next question of a waiting model answered by a process of its own."""

    def fork() -> None:
        if os.fork() == 0:
            os.execvp("sh", ["sh", "-c", f'echo {text} >"{world.place}/may"'])

    return fork


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGXCPU])
def test_a_filter_that_is_killed_kills_its_command(world: World, number: int) -> None:
    command, pid = world.waiting()
    os.kill(pid, number)
    assert command.wait(60) == -number
    assert command.communicate()[0] == b""
    assert len(world.left()) == 1


@pytest.mark.parametrize("under_nohup", [False, True])
def test_a_command_that_is_killed_ends_its_filter(world: World, under_nohup: bool) -> None:
    def nohup() -> None:
        if under_nohup:
            signal.signal(signal.SIGHUP, signal.SIG_IGN)

    command, pid = world.waiting(preexec_fn=nohup)
    command.kill()
    wait_until(lambda: is_gone(pid))
    out, err = command.communicate()
    assert out == b""
    assert (b"resume with" in err) != under_nohup  # told to end, or ended at once
    assert len(world.left()) == 1


def test_ignored_signals_stay_ignored(world: World) -> None:
    def ignore() -> None:
        for number in (signal.SIGHUP, signal.SIGQUIT, signal.SIGTSTP):
            signal.signal(number, signal.SIG_IGN)

    command, pid = world.waiting(preexec_fn=ignore)
    for number in (signal.SIGHUP, signal.SIGQUIT, signal.SIGTSTP):
        command.send_signal(number)
        os.kill(pid, number)
    world.answer("done")
    assert command.communicate(timeout=60)[0] == b"done\n"


def test_a_stopped_command_stops_its_filter(world: World) -> None:
    # In a group that is not an orphan, as a shell has it: one that is an orphan heeds no terminal's stop.
    command, pid = world.waiting(process_group=0)
    command.send_signal(signal.SIGTSTP)
    wait_until(lambda: state_of(command.pid) == "T" and state_of(pid) == "T")
    command.send_signal(signal.SIGCONT)
    wait_until(lambda: state_of(pid) == "S")
    world.answer("done")
    assert command.communicate(timeout=60)[0] == b"done\n"


# -- the supervisor's own life ------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["stop", "kill", "reload"])
def test_what_becomes_of_the_supervisor_is_nothing_to_a_filter(world: World, how: str) -> None:
    command, pid = world.waiting()
    supervisor = world.supervisor
    assert supervisor is not None
    if how == "kill":
        supervisor.kill()
        supervisor.wait()
    elif how == "stop":
        done = world.popen("supervisor", "stop")
        assert done.wait(60) == 0
        assert supervisor.wait(60) == 0
    else:
        assert world.popen("supervisor", "reload").wait(90) == 0
        assert tree.look_at(pid).ppid == supervisor.pid  # type: ignore[union-attr]
    world.answer("done")
    out, err = command.communicate(timeout=60)
    assert (command.returncode, out, err) == (0, b"done\n", b"")
    wait_until(lambda: is_gone(pid))
    if how == "reload":
        wait_until(lambda: pid not in children_of(supervisor.pid))  # it was reaped
    else:
        world.start()
    assert world.run(*FILTER)[3] is True


@pytest.mark.parametrize("reloads", [1, 2])
def test_a_filter_that_is_killed_after_a_reload_kills_its_command_by_the_same_signal(
    world: World, reloads: int
) -> None:
    command, pid = world.waiting()
    for _ in range(reloads):
        assert world.popen("supervisor", "reload").wait(90) == 0
    os.kill(pid, signal.SIGABRT)
    assert command.wait(60) == -signal.SIGABRT
    assert world.supervisor is not None
    assert world.run(*FILTER)[3] is True
    wait_until(partial(has_one_socket, world.supervisor.pid))  # where it listens


def test_a_reload_leaves_a_filter_for_the_next_stop_too(world: World) -> None:
    command, _ = world.waiting()
    assert world.popen("supervisor", "reload").wait(90) == 0
    world.end()
    world.answer("done")
    assert command.communicate(timeout=60)[0] == b"done\n"
    assert command.returncode == 0


def test_a_supervisor_that_hangs_is_waited_for_no_longer_than_a_second(world: World) -> None:
    assert world.supervisor is not None
    world.supervisor.send_signal(signal.SIGSTOP)
    try:
        assert world.run(*FILTER) == (0, b"hello\n", b"", False)
    finally:
        world.supervisor.send_signal(signal.SIGCONT)
    assert world.run(*FILTER)[3] is True
    assert len(world.begun()) == 2  # whoever was not waited for did nothing


def test_a_socket_that_was_removed_is_made_again(world: World) -> None:
    assert world.supervisor is not None
    world.supervisor.send_signal(signal.SIGSTOP)
    world.home.filters_socket.unlink()
    assert world.run(*FILTER)[3] is False
    world.supervisor.send_signal(signal.SIGCONT)
    with (world.home.wake_fifo("supervisor")).open("wb", buffering=0) as bell:
        bell.write(b"\n")
    wait_until(world.home.filters_socket.exists)
    assert world.home.filters_socket.stat().st_mode & 0o777 == 0o600
    assert world.run(*FILTER)[3] is True
    world.end()
    assert not world.home.filters_socket.exists()


# -- what is left to the command -----------------------------------------------------------------------------------


def no_new_privileges() -> None:
    ctypes.CDLL(None).prctl(38, 1, 0, 0, 0)


@pytest.mark.parametrize("env, words, how", [
    ({"LOOM_WARM": "0"}, FILTER, {}),
    ({"LOOM_AGENT_DIR": "/somewhere"}, FILTER, {}),
    ({"PYTHONWARNINGS": "error"}, FILTER, {}),
    ({"LD_LIBRARY_PATH": "/tmp"}, FILTER, {}),
    ({"PYTHONPATH": f"{ROOT}:/elsewhere"}, FILTER, {}),
    ({}, ("--debug", *FILTER), {}),
    ({}, FILTER, {"preexec_fn": no_new_privileges}),
    ({}, FILTER, {"preexec_fn": lambda: os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))}),
])  # fmt: skip
def test_what_does_not_fit_is_cold(
    world: World, env: dict[str, str], words: tuple[str, ...], how: dict[str, Any]
) -> None:
    assert world.run(*words, env={**world.env, **env}, **how) == (0, b"hello\n", b"", False)


@pytest.mark.parametrize("on_terminal", [True, False])
def test_a_key_command_may_ask_on_the_terminal(world: World, on_terminal: bool) -> None:
    """A fork has none. Without a terminal the command has none to lose."""
    asks = "exec </dev/tty; read key; echo $key" if on_terminal else "echo typed-key"
    with FarSide() as far:
        far.answers.append([ANSWER])
        provider = {"base_url": far.url, "key_command": ["sh", "-c", asks]}
        world.home.config.write_text(json.dumps({"providers": {"lab": provider}}))
        ours, theirs = pty.openpty()
        os.write(ours, b"typed-key\n")

        def take_terminal() -> None:
            os.setsid()
            if on_terminal:
                fcntl.ioctl(theirs, termios.TIOCSCTTY, 0)

        words = ("agent", "start", "x", "--model", "lab/m", "--prompt", "hi")
        *said, warm_one = world.run(*words, stdin=b"", preexec_fn=take_terminal, pass_fds=(theirs,))
        assert said == [0, b"hello\n", b""]
        assert warm_one is not on_terminal
        assert "Bearer typed-key" in far.asked[0].headers.values()
        os.close(theirs)
        os.close(ours)


def test_a_descriptor_of_the_shell_is_read_by_the_command(world: World) -> None:
    words = " ".join((*COMMAND, "agent", "start", "x", "--model", "builtin/echo", "--prompt", "hi"))
    script = f"{words} --attach /dev/fd/7 7<note"
    (world.place / "note").write_text("the note\n")
    done = subprocess.run(["sh", "-c", script], env=world.env, cwd=world.place, capture_output=True, timeout=60)
    assert (done.returncode, b"the note" in done.stdout) == (0, True)


def test_other_code_on_the_disk_is_not_what_the_supervisor_runs(tmp_path: Path) -> None:
    package = tmp_path / "installed"
    ignore = shutil.ignore_patterns("__pycache__")
    for name in ("loom", "runners", "tools"):
        shutil.copytree(ROOT / name, package / name, ignore=ignore)
    world = World(tmp_path)
    world.env["PYTHONPATH"] = str(package)
    world.start()
    try:
        assert world.run(*FILTER)[3] is True
        (package / "loom" / "core" / "plan.py").touch()
        assert world.run(*FILTER) == (0, b"hello\n", b"", False)
        assert world.popen("supervisor", "reload").wait(90) == 0
        assert world.run(*FILTER)[3] is True
        assert world.run(*FILTER, env={**world.env, "PYTHONPATH": str(ROOT)})[3] is False  # another package
    finally:
        world.end()


# -- who wishes it ill --------------------------------------------------------------------------------------------


def connected(world: World) -> socket.socket:
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(30)
    connect(client, world)
    return client


def connect(client: socket.socket, world: World) -> None:
    run = os.open(world.home.run, os.O_PATH)
    try:
        client.connect(f"/proc/self/fd/{run}/filters.sock")
    finally:
        os.close(run)


def request(kind: bytes = b"?", argv: tuple[bytes, ...] = (b"loom", b"agent")) -> bytes:
    return warm.encode(kind, "utf-8 strict utf-8 strict", list(argv), {b"A": b"b"})


NO_REQUESTS = [
    b"", b"\0", b"garbage that goes on for a while", b"\xff" * 100_000, (1 << 62).to_bytes(8, "big") + b"x" * 1000,
    request(), request()[:-3], (5).to_bytes(8, "big") + b"a\0b\0-", (3).to_bytes(8, "big") + b"abcdef",
]  # fmt: skip


def test_what_is_no_request_is_refused(world: World) -> None:
    for said in NO_REQUESTS:
        for fds in (0, 3, 4, 9):
            with connected(world) as client, Path(os.devnull).open() as null:
                assert client.recv(1) == warm.HERE
                try:
                    if fds and said:
                        socket.send_fds(client, [said[:10]], [null.fileno()] * fds)
                        client.sendall(said[10:])
                    else:
                        client.sendall(said)
                    client.shutdown(socket.SHUT_WR)
                    assert client.recv(1) in (b"", warm.ENDED)
                except (BrokenPipeError, ConnectionResetError):
                    pass  # it did not even listen to the end
    assert world.run(*FILTER)[3] is True


def test_who_says_nothing_is_ended_and_holds_up_nobody(world: World) -> None:
    silent = [connected(world) for _ in range(server._MOST // 2)]
    halves = [connected(world) for _ in range(10)]
    for one in halves:
        one.sendall(request()[:20])
    for one in (*silent, *halves):
        assert one.recv(1) == warm.HERE  # all are forked: a command would not wait for that many
    assert world.run(*FILTER)[3] is True
    assert world.supervisor is not None
    for one in (*silent, *halves):
        assert one.recv(1) == warm.KILLED  # by its alarm
        one.close()
    wait_until(lambda: len(children_of(world.supervisor.pid)) <= 1)  # type: ignore[union-attr]


def test_who_is_never_told_to_begin_does_nothing(world: World) -> None:
    """A command that is killed when it was about to say it."""
    package = str(ROOT)
    kind = warm.kind(package, "", sys.version, sys.prefix, sys.getfilesystemencoding(), sys.flags.optimize)
    argv = [b"loom", *(word.encode() for word in FILTER[:-1]), b"--prompt", b"hi"]
    env = {name.encode(): value.encode() for name, value in world.env.items()}
    for go in (b"", b"?"):
        with connected(world) as client:
            here = os.open(".", os.O_PATH)
            assert client.recv(1) == warm.HERE
            data = warm.encode(kind, "utf-8 strict utf-8 strict", argv, env)
            socket.send_fds(client, [data], [here, 0, 1, 2])
            os.close(here)
            answer, handles, _, _ = socket.recv_fds(client, 1, 1)
            assert answer == warm.READY
            client.sendall(go)
            if not go:
                client.shutdown(socket.SHUT_WR)
            assert client.recv(1) == warm.ENDED
            wait_until(partial(pidfd.ended, handles[0]))
            os.close(handles[0])
    assert world.begun() == []
    assert world.left() == []


def test_a_flood_of_connections_leaves_the_supervisor_at_work(world: World) -> None:
    for _ in range(1000):
        try:
            connected(world).close()
        except BlockingIOError:
            time.sleep(0)
    held = []
    for _ in range(200):
        client = socket.socket(socket.AF_UNIX)
        client.setblocking(False)
        try:
            connect(client, world)
        except BlockingIOError:
            pass  # the kernel's queue is full
        held.append(client)
    assert world.run(*FILTER)[:3] == (0, b"hello\n", b"")  # one way or the other
    for client in held:
        client.close()
    wait_until(lambda: world.run(*FILTER)[3] is True)
    done = world.popen("agent", "ps", "--all", "--json")
    assert b'"router"' in done.communicate(timeout=60)[0]
