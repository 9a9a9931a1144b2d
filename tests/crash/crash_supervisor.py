"""The supervisor as a case for the harness: the real one with real runner processes, forked from it.

Five agents, one of each fate: `answers` works, `asleep` is started by its mail, `crashes` dies on its message until it
is given up, `refuses` ends with 65, `misset` with 78. What is disturbed are the supervisor's own file changes; its
runners change files undisturbed, and live on when it is killed. Another one adopts them.
"""

from __future__ import annotations

import os
import signal
import time
from contextlib import ExitStack
from pathlib import Path

from crash_cases import letter, lines_whole, replies, tidy
from crash_far_side import plain_files, swapped
from harness import Case, Knife, note, noted
from harness import crashes as deaths

from loom.core.supervision import Limits
from loom.daemons import runner, supervisor, ward
from loom.daemons.supervisor import Settings, Supervisor
from loom.spool import agents, crashes, fs, locks, mailbox
from loom.spool.home import open_home
from loom.spool.layout import AgentDir, Home
from loom.wire import exits, ids, message
from loom.wire.agent import AgentSpec, Restart, Want

ENV = {"LOOM_ALLOW_FILESYSTEM": "1"}
TABLE = {
    "agent": f"{__name__}:serve_agent",
    "router": f"{__name__}:serve_quiet",
    "crash": f"{__name__}:serve_crash",
    "refuse": f"{__name__}:serve_refuse",
    "misset": f"{__name__}:serve_misset",
}
_TWICE = Restart(base_s=0, limit=2)
_AT_ONCE = Restart(base_s=0, max_s=0)
_FATES: dict[str, tuple[AgentSpec, Want, int]] = {
    spec.name: (spec, want, mail)
    for spec, want, mail in (
        (AgentSpec("answers", "builtin/echo", restart=_AT_ONCE), "up", 2),
        (AgentSpec("asleep", "builtin/echo", restart=_AT_ONCE, idle_s=0.0), "demand", 1),
        (AgentSpec("crashes", "builtin", runner="crash", restart=_TWICE), "up", 1),
        (AgentSpec("misset", "builtin", runner="misset", restart=_AT_ONCE), "up", 0),
        (AgentSpec("refuses", "builtin", runner="refuse", restart=_AT_ONCE), "up", 1),
    )
}
_FAILED = {"crashes": "dead", "refuses": "bad_input"}


# -- runners; forked, so that the real calls are put back first --------------------------------------------------


def _begin(agent_dir: Path) -> locks.Lock | None:
    fs.calls = fs.Calls()
    lock = locks.acquire(agent_dir / "lock")
    if lock is not None:
        lock.sign(locks.own_incarnation())
        _born(agent_dir)
    return lock


def _born(agent_dir: Path) -> None:
    me = locks.own_incarnation()
    note(agent_dir.parent.parent.parent, "born", {"agent": agent_dir.name, "pid": me.pid, "start": me.start})


def _wait(lock: locks.Lock) -> int:
    """Until SIGTERM; ready first."""
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    os.write(int(os.environ["LOOM_READY_FD"]), b"\n")
    signal.sigwait([signal.SIGTERM])
    lock.release()
    return exits.DONE


def serve_agent(agent_dir: Path, drain: bool = False) -> int:
    fs.calls = fs.Calls()
    _born(agent_dir)
    return runner.serve_agent(agent_dir, drain)


def serve_quiet(agent_dir: Path, drain: bool = False) -> int:
    lock = _begin(agent_dir)
    return exits.TRY_LATER if lock is None else _wait(lock)


def serve_crash(agent_dir: Path, drain: bool = False) -> int:
    """Claims its message and dies."""
    lock = _begin(agent_dir)
    if lock is None:
        return exits.TRY_LATER
    mailbox.Inbox(AgentDir(agent_dir)).claim()
    return exits.FAILED


def serve_refuse(agent_dir: Path, drain: bool = False) -> int:
    """Claims its message and calls it bad; without one it waits."""
    lock = _begin(agent_dir)
    if lock is None:
        return exits.TRY_LATER
    box = AgentDir(agent_dir)
    mailbox.Inbox(box).claim()
    return exits.BAD_INPUT if mailbox.in_progress(box) else _wait(lock)


def serve_misset(agent_dir: Path, drain: bool = False) -> int:
    lock = _begin(agent_dir)
    return exits.TRY_LATER if lock is None else exits.CONFIG


# -- the case ----------------------------------------------------------------------------------------------------


class _Driven(Supervisor):
    """Leaves when all is as it should be; when everything fails from now on, soon after."""

    patience_s = 0.2

    def _turn(self, timeout_s: float) -> None:
        super()._turn(min(timeout_s, 0.05))
        if not self._ward.leaving and (is_settled(self.home) or self._is_hopeless()):
            self._ward.leave()

    def _is_hopeless(self) -> bool:
        knife = fs.calls
        if not isinstance(knife, Knife) or not knife.fired or not knife.for_ever:
            return False
        self._since = getattr(self, "_since", time.monotonic())
        return time.monotonic() - self._since > self.patience_s


SUPERVISOR_CLASS: type[Supervisor] = _Driven


def is_settled(home: Home) -> bool:
    """Each agent has met its fate, and no agent has two processes."""
    if not os.path.lexists(home.agent("answers").processed(_name("answers", 1))):
        return False
    for name in _FATES:
        box = home.agent(name)
        if name in _FAILED:
            if not (box.failed / f"{_name(name, 0)}.msg").exists() or mailbox.in_progress(box):
                return False
        elif agents.has_mail(box):
            return False
    if agents.read_want(home.agent("crashes")) != "dead" or not crashes.names(home.agent("misset")):
        return False
    boot = locks.boot_id()
    living = [b["agent"] for b in noted(home.path.parent, "born") if locks.alive(_of(b, boot))]
    return len(living) == len(set(living))


def _of(born: dict[str, int], boot: str) -> locks.Incarnation:
    return locks.Incarnation(born["pid"], born["start"], boot)


def _name(agent: str, number: int) -> str:
    return letter(sorted(_FATES).index(agent) * 10 + number, "")[0]


def _setup(root: Path) -> None:
    home = open_home(root / "home", ENV)
    for name, (spec, want, mail) in _FATES.items():
        box = agents.create(home, spec, "", want)
        for number in range(mail):
            mailbox.deliver(box, *letter(sorted(_FATES).index(name) * 10 + number, f"to {name}"))


def _supervise(root: Path) -> None:
    os.environ |= ENV
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)  # what it says of its troubles
    settings = Settings(Limits(grace_s=5.0, ready_s=30.0))
    env = {"PATH": os.environ["PATH"], **ENV}
    with ExitStack() as swaps:
        for module, name, value in (
            (ward.random, "random", lambda: 0.0),
            (ward, "TROUBLE_S", 0.02),
            (ward, "_LOCKED_S", 0.02),
            (supervisor, "TROUBLE_S", 0.02),
        ):
            swaps.enter_context(swapped(module, name, value))
        status = SUPERVISOR_CLASS(Home(root / "home"), settings=settings, table=TABLE, env=env).run()
    assert status == exits.DONE


def _check(root: Path) -> None:
    home = Home(root / "home")
    tidy(home.path)
    lines_whole(home.path)
    plain_files(home.agents)
    assert not locks.is_held(home.supervisor_lock)
    for name, (_, want, mail) in _FATES.items():
        box = home.agent(name)
        assert agents.read_want(box) == ("dead" if name == "crashes" else want), name
        assert not locks.is_held(box.lock), f"{name} lives"
        found = replies(box)
        stems = [_name(name, number) for number in range(mail)]
        assert sorted(found) == sorted(ids.reply_stem(name, stem) for stem in stems), f"{name}: {sorted(found)}"
        for stem in stems:
            reply = found[ids.reply_stem(name, stem)]
            if name in _FAILED:
                assert reply.error and (reply.data or {})["error_type"] == _FAILED[name]
                assert (box.failed / f"{stem}.msg").exists()
                # Whoever died between the move and the record owes the record to `retry` (protocol.md section 4).
                assert mailbox.attempts(box, stem) == (1 if box.error_of(stem).exists() else 0)
                assert box.error_of(stem).exists() or deaths(root), "failed, and nobody wrote why"
            else:
                assert not reply.error and box.processed(stem).exists()
    assert agents.read_want(home.agent("router")) == "up"
    for name in ("crashes", "misset"):
        assert crashes.newest(home.agent(name)), f"no crash record of {name}"
    boot = locks.boot_id()
    living = [b for b in noted(root, "born") if locks.alive(_of(b, boot))]
    assert not living, f"processes are left: {living}"


def _crashed(root: Path) -> None:
    """At no moment is an agent dead whose claimed message nobody has answered."""
    home = Home(root / "home")
    tidy(home.path)
    box = home.agent("crashes")
    if agents.read_want(box) == "dead":
        name = f"{ids.reply_stem('crashes', _name('crashes', 0))}.msg"
        assert (box.outbox / name).exists(), "dead, and whoever waits for an answer waits for ever"
        message.decode((box.outbox / name).read_bytes(), name[:-4])


SUPERVISOR = Case("supervisor", _setup, _supervise, _supervise, _check, _crashed, process="supervisor", repeats=False)
