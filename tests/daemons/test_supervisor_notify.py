"""The supervisor as a service: what it tells its manager, and when it does not."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import ROOT, wait_until
from world import READY, World

from loom.spool import locks, running

DEADLINE_S = 30.0
# A supervisor whose next look at everything never ends: what a bug of its loop would be.
HANGS = """
import time
from pathlib import Path
from loom.daemons import supervisor
from loom.spool.home import open_home
from loom.spool.layout import default_home
import os

class Hangs(supervisor.Supervisor):
    def _look_everywhere(self):
        super()._look_everywhere()
        while (self.home.path / "hang").exists():
            time.sleep(0.01)

raise SystemExit(Hangs(open_home(default_home(os.environ))).run())
"""


class Manager:
    """The far side: a datagram socket, as systemd has one."""

    def __init__(self, path: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(path)
        self.heard: list[str] = []

    def hear(self, word: str, within_s: float = DEADLINE_S) -> None:
        """Wait until this word comes. Raises TimeoutError."""
        self.socket.settimeout(within_s)
        while word not in self.heard:
            self.heard += self.socket.recv(4096).decode().split("\n")
        self.heard = self.heard[self.heard.index(word) + 1 :]

    def empty(self) -> None:
        self.socket.setblocking(False)
        while True:
            try:
                self.socket.recv(4096)
            except BlockingIOError:
                self.heard.clear()
                return


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    found = Manager(str(tmp_path / "notify"))
    yield found
    found.socket.close()


def service(world: World, *command: str, **more: str) -> subprocess.Popen[bytes]:
    """A process as systemd starts one: the variables are meant for exactly this pid."""
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "LOOM_HOME": str(world.home.path), **more}
    words = ["sh", "-c", 'WATCHDOG_PID=$$ exec "$@"', "sh", sys.executable, *command]
    child = subprocess.Popen(words, env=env)
    world.supervisors.append(child)
    return child


def test_it_says_that_it_is_ready_goes_on_beating_and_says_that_it_leaves(
    world: World, manager: Manager, tmp_path: Path
):
    told = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "200000", "OPENAI_API_KEY": "sk-none"}
    child = service(
        world, "-m", "loom", "supervisor", "run", **told
    )  # it begins anew without the key, and stays this pid
    manager.hear("READY=1")
    assert locks.is_held(world.home.supervisor_lock)
    for _ in range(3):
        manager.hear("WATCHDOG=1")
    agent = world.agent("looks", f"env >$1/seen.new && mv $1/seen.new $1/seen\n{READY}exec sleep 60\n")
    while not (agent.path / "seen").exists():
        manager.hear("WATCHDOG=1")  # a socket that nobody reads is soon full, and then a word is lost
    seen = (agent.path / "seen").read_text()
    assert "LOOM_AGENT=looks" in seen and "NOTIFY_SOCKET" not in seen and "WATCHDOG" not in seen
    child.send_signal(signal.SIGTERM)
    manager.hear("STOPPING=1")
    assert child.wait(DEADLINE_S) == 0


def test_it_says_when_it_takes_other_code_and_when_that_is_ready(world: World, manager: Manager, tmp_path: Path):
    told = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "200000"}
    child = service(world, "-m", "loom", "supervisor", "run", **told)
    manager.hear("READY=1")
    for number in range(2):  # what it needs for that it hands over
        asked_us = time.monotonic_ns() // 1000
        child.send_signal(signal.SIGHUP)
        manager.hear("RELOADING=1")
        (word,) = [word for word in manager.heard if word.startswith("MONOTONIC_USEC=")]
        assert asked_us <= int(word.partition("=")[2]) <= time.monotonic_ns() // 1000
        manager.hear("READY=1")
        assert manager.heard == [f"STATUS=serving {world.home.path}"], number
        assert (said := running.read(world.home)) is not None and (said.answered, said.status) == (number + 1, 0)
    for _ in range(3):
        manager.hear("WATCHDOG=1")
    child.send_signal(signal.SIGTERM)
    manager.hear("STOPPING=1")
    assert child.wait(DEADLINE_S) == 0


def test_a_loop_that_hangs_is_not_heard_of(world: World, manager: Manager, tmp_path: Path):
    told = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "100000"}
    child = service(world, "-c", HANGS, **told)
    manager.hear("READY=1")
    hang = world.home.path / "hang"
    hang.touch()
    child.send_signal(signal.SIGHUP)
    with pytest.raises(TimeoutError):
        while True:
            manager.hear("WATCHDOG=1", within_s=1.0)
    hang.unlink()
    manager.hear("WATCHDOG=1")
    assert world.stop(child) == 0


@pytest.mark.parametrize("told", [
    {},
    {"NOTIFY_SOCKET": "/nowhere/at/all", "WATCHDOG_USEC": "100000"},
    {"NOTIFY_SOCKET": "@loom-test-nobody-listens", "WATCHDOG_USEC": "rubbish"},
])  # fmt: skip
def test_without_a_manager_that_listens_it_works_all_the_same(world: World, told: dict[str, str]):
    child = service(world, "-m", "loom", "supervisor", "run", **told)
    wait_until(lambda: locks.holder(world.home.agent("router").lock))
    assert world.stop(child) == 0


def test_a_watchdog_that_is_meant_for_another_process_is_left_alone(world: World, manager: Manager, tmp_path: Path):
    env = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "100000", "WATCHDOG_PID": "1"}
    world.env |= env
    child = world.start()
    manager.hear("READY=1")
    manager.empty()
    with pytest.raises(TimeoutError):
        manager.hear("WATCHDOG=1", within_s=0.5)
    assert world.stop(child) == 0
