"""Identity, exit statuses and trees of processes, without a supervisor."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support import forked, wait_until

from loom.proc import pidfd, spawn, tree
from loom.wire.errors import Config


def _child(work: Callable[[], int]) -> tuple[int, int]:
    """(pid, pidfd) of a forked child that ends with what `work` gives."""
    pid = os.fork()
    if pid == 0:
        os._exit(work())
    handle = pidfd.open_pidfd(pid)
    assert handle is not None
    return pid, handle


def _wait(signals: list[int]) -> Callable[[], int]:
    def work() -> int:
        signal.sigwait(signals)
        return 0

    return work


@pytest.mark.parametrize("end, code", [(lambda: 7, 7), (lambda: os.kill(os.getpid(), 9) or 0, -9)])
def test_a_child_s_exit_is_its_status_or_minus_its_signal(end: Callable[[], int], code: int) -> None:
    pid, handle = _child(end)
    start = pidfd.start_of(pid)
    assert start is not None
    wait_until(lambda: pidfd.ended(handle))
    assert pidfd.exit_of(handle, pid, start) == code  # a zombie tells it to anybody
    assert pidfd.exit_of(handle, pid, start + 1) in (code, None)  # by its number alone nothing is believed
    assert pidfd.reap(handle) == code
    assert pidfd.reap(handle) is None  # it was taken
    os.close(handle)


def test_the_kernel_still_tells_the_exit_of_a_reaped_process() -> None:
    pid, handle = _child(lambda: 42)
    start = pidfd.start_of(pid) or 0
    wait_until(lambda: pidfd.ended(handle))
    pidfd.reap(handle)
    assert pidfd.exit_of(handle, pid, start) in (42, None)  # None: a kernel before 6.15
    os.close(handle)


def test_a_process_that_is_gone_cannot_be_signalled_or_opened() -> None:
    pid, handle = _child(lambda: 0)
    start = pidfd.start_of(pid)
    wait_until(lambda: pidfd.ended(handle))
    pidfd.reap(handle)
    assert not pidfd.send(handle, signal.SIGTERM)
    assert pidfd.open_pidfd(pid, start) is None
    os.close(handle)


def test_another_process_with_the_same_number_is_not_opened() -> None:
    pid, handle = _child(_wait([signal.SIGTERM]))
    assert pidfd.open_pidfd(pid, (pidfd.start_of(pid) or 0) + 1) is None
    pidfd.send(handle, signal.SIGKILL)
    wait_until(lambda: pidfd.reap(handle) == -9)
    os.close(handle)


def test_elsewhere_supervision_says_that_it_needs_linux(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(Config, match="needs Linux"):
        pidfd.check_supported()


def test_command_names_with_spaces_and_parentheses_are_no_trouble(tmp_path: Path) -> None:
    program = tmp_path / "a) S 1 (b"
    program.symlink_to("/bin/sleep")
    child = subprocess.Popen([str(program), "1000"])
    proc = wait_until(lambda: tree.look_at(child.pid))
    assert proc.ppid == os.getpid()
    child.kill()
    child.wait()


def _tree(script: str, lines: int, tmp_path: Path, **env: str) -> tuple[subprocess.Popen[bytes], list[int]]:
    """A shell that leads its session and wrote the pids of its processes."""
    child = subprocess.Popen(
        ["sh", "-c", script, "sh", str(tmp_path)],
        start_new_session=True,
        env={"PATH": os.environ["PATH"], **env},
        pass_fds=(),
    )
    noted = tmp_path / "pids"
    wait_until(lambda: noted.exists() and len(noted.read_text().split()) == lines)
    return child, [int(pid) for pid in noted.read_text().split()]


def _gone(pid: int) -> bool:
    proc = tree.look_at(pid)
    return proc is None or proc.state in "ZX"


def test_a_tree_is_found_by_descent_by_session_and_by_its_mark(tmp_path: Path) -> None:
    script = (
        "trap '' TERM; sleep 1001 & echo $! >>$1/pids; setsid sleep 1002 & echo $! >>$1/pids;"
        "sh -c '(sleep 1003 & echo $! >>'$1/pids')'; sh -c '(setsid sleep 1004 & echo $! >>'$1/pids')';"
        "while :; do sleep 1005; done"
    )
    child, pids = _tree(script, 4, tmp_path, LOOM_AGENT_DIR=str(tmp_path))
    start = pidfd.start_of(child.pid) or 0
    assert tree.kill_tree(child.pid, start + 1) == 0  # not that process: nothing is touched
    assert not any(_gone(pid) for pid in pids)
    assert tree.kill_tree(child.pid, start, spawn.mark_of(tmp_path)) >= 5
    assert all(_gone(pid) for pid in [child.pid, *pids])
    child.wait()


def test_a_session_is_believed_while_its_leader_pins_the_number_and_not_after(tmp_path: Path) -> None:
    child, (pid,) = _tree("sleep 1001 & echo $! >>$1/pids; exit 0", 1, tmp_path)
    start = pidfd.start_of(child.pid) or 0
    table = wait_until(lambda: (t := tree.snapshot())[child.pid].state == "Z" and t)
    assert [proc.pid for proc in tree.members(table, child.pid, start)] == [pid]
    child.wait()
    assert tree.members(tree.snapshot(), child.pid, start) == []
    proc = tree.look_at(pid)
    assert proc is not None
    tree.kill_tree(pid, proc.start)


def test_what_forks_faster_than_it_is_looked_for_is_ended_too(tmp_path: Path) -> None:
    script = "f() { while :; do sleep 0.001 & done; }; f & f & echo $$ >>$1/pids; wait"
    child, _ = _tree(script, 1, tmp_path)
    tree.kill_tree(child.pid, pidfd.start_of(child.pid) or 0)
    table = tree.snapshot()
    assert [proc for proc in table.values() if proc.session == child.pid and proc.state not in "ZX"] == []
    child.wait()


def test_we_and_those_above_us_are_never_part_of_a_tree() -> None:
    """A supervisor that was started from inside an agent ends that agent, not itself."""
    me = os.getpid()
    parent = tree.look_at(os.getppid())
    assert parent is not None
    found = [proc.pid for proc in tree.members(tree.snapshot(), parent.pid, parent.start)]
    assert me not in found and parent.pid not in found


def test_orphans_come_to_a_subreaper_and_are_reaped_there() -> None:
    def work() -> dict[str, object]:
        tree.become_subreaper()
        read, write = os.pipe()
        if os.fork() == 0:
            if os.fork() == 0:
                os.close(read)
                os.write(write, b"%d" % os.getpid())
                signal.sigwait([signal.SIGTERM])
            os._exit(0)
        os.close(write)
        orphan = int(os.read(read, 20))
        wait_until(lambda: [tree.reap_strays(()), tree.children_of_ours() == [orphan]][1])
        (below,) = tree.below(tree.snapshot(), os.getpid())
        os.kill(orphan, signal.SIGKILL)
        wait_until(lambda: [tree.reap_strays(()), tree.children_of_ours() == []][1])
        return {"same": below.pid == orphan}

    assert forked(work).said == {"same": True}


def test_without_close_range_descriptors_are_closed_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spawn, "_close_range", lambda first: -1)

    def work() -> dict[str, object]:
        high = os.dup2(1, 300)
        keep = os.dup2(1, 200)
        os.dup2(1, 201)
        os.set_inheritable(high, True)
        said = os.dup(sys.stdout.fileno())
        del said
        open_before = set(os.listdir("/proc/self/fd"))
        spawn_from = 201
        spawn.close_from(spawn_from)
        left = set(os.listdir("/proc/self/fd"))
        return {"kept": str(keep) in left, "closed": bool(open_before - left >= {"201", "300"})}

    assert forked(work).said == {"kept": True, "closed": True}


def test_a_child_s_environment_holds_no_keys() -> None:
    env = {"PATH": "/bin", "HOME": "/h", "LANG": "C", "SOME_API_KEY": "secret", "LD_PRELOAD": "x", "TMPDIR": ""}
    assert spawn.base_environment(env) == {"PATH": "/bin", "HOME": "/h", "LANG": "C"}
    assert spawn.base_environment({})["PATH"]


def test_an_agent_s_own_settings_cannot_say_who_it_is(tmp_path: Path) -> None:
    env = spawn.runner_environment({}, tmp_path, "a", tmp_path / "a", {"LOOM_AGENT": "b", "X": "1"})
    assert (env["LOOM_AGENT"], env["X"]) == ("a", "1")
