"""Starting, adopting and ending the process of an agent: the hands of the supervisor.

Nothing here decides when; what is done to a process is done through its pidfd.
"""

from __future__ import annotations

import hashlib
import os
import resource
import signal
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from loom.core.supervision import Exit
from loom.daemons import programs, service, standby
from loom.daemons.charge import Charge, Process
from loom.proc import cgroup, pidfd, spawn, tree
from loom.spool import agents, crashes, fs, heartbeat, locks
from loom.spool.layout import Home
from loom.wire.agent import AgentLimits, AgentSpec, encode
from loom.wire.record import record


@record
class Prepared:
    """A runner about to be started. `stderr` is open; `stderr_at` and `mark` are as in Process."""

    program: spawn.Program
    stderr: int
    stderr_at: int
    mark: frozenset[tuple[str, int]]
    standby: standby.Standby | None = None


class Incarnations:
    """`programs` maps a runner's name to `module:function`; `env` is what a clean base is taken from."""

    def __init__(
        self,
        home: Home,
        table: Mapping[str, str],
        env: Mapping[str, str],
        alone: tuple[int, int] | None = None,
        nofile: tuple[int, int] | None = None,
    ) -> None:
        """`alone` and `nofile`: those that other code of this process had before us."""
        self._home = home
        self._table = table
        self._base = spawn.base_environment(env)
        self.nofile = nofile or _raise_nofile()
        self.groups = cgroup.delegated(home.path)
        self._shared = ""
        self._proven: set[bytes] = set()  # configurations with which a runner came up since `_shared` changed
        self._trying: dict[bytes, str] = {}  # and those with which one is coming up: whose it is
        # Every runner holds the reading end, only we the other: when we end, however, they hear it (POLLHUP).
        self.alone = alone or os.pipe()

    def close(self) -> None:
        for fd in self.alone:
            os.close(fd)
        if self.groups is not None:
            self.groups.remove()

    def group_of(self, name: str) -> Path | None:
        """The cgroup of an agent's processes, where there are any."""
        return None if self.groups is None else self.groups.of(name)

    def prepare(self, charge: Charge, shared: str, *, at_once: bool) -> Prepared | None:
        """All that can be done before the fork. Raises Config when there is no such runner, OSError.

        shared    another one whenever something changed that every agent's configuration may depend on
        at_once   else None is returned while another agent's runner is coming up with the same configuration
        """
        spec = agents.read_spec(charge.agent)
        like = self._likeness(spec, shared)
        if not at_once and like in self._trying:
            return None
        group = None if self.groups is None else self.groups.make(charge.name)  # whoever was left there is ended
        program = self._program(charge, spec, str(group or ""))
        heartbeat.forget(charge.agent)
        stderr = fs.open_append(charge.agent.stderr)
        try:
            prepared = Prepared(program, stderr, crashes.stderr_size(charge.agent), charge.finished_mark())
            if like in self._proven:
                return self._standing_by(charge, prepared)
        except OSError:
            os.close(stderr)
            raise
        if like is not None and like not in self._proven:
            self._trying[like] = charge.name
        return prepared

    def start_all(self, prepared: Sequence[Prepared]) -> list[Process | OSError]:
        """Start these runners together; for one that cannot be started now, why. Each is prepared for one start."""
        started = spawn.spawn_all([(one.program, one.stderr) for one in prepared], self.alone[0])
        for one, process in zip(prepared, started, strict=True):
            os.close(one.stderr)
            if one.standby is not None:
                if isinstance(process, spawn.Spawned):
                    one.standby.sign(process.pid, process.start)
                one.standby.close()
        return [_process(*each) for each in zip(prepared, started, strict=True)]

    # -- standing by (ADR-0034) ----------------------------------------------------------------------------------

    def tried(self, charge: Charge, *, came_up: bool) -> bool:
        """Its runner is ready, or has ended. False: nobody has waited to learn that."""
        for like in [like for like, name in self._trying.items() if name == charge.name]:
            del self._trying[like]
            if came_up:
                self._proven.add(like)
            return True
        return False

    def _likeness(self, spec: AgentSpec, shared: str) -> bytes | None:
        """The same for agents that differ in nothing but their names. None: it may not stand by."""
        if shared != self._shared:
            self._shared, self._proven, self._trying = shared, set(), {}
        if self._table.get(spec.runner) not in programs.STAND_BY or spec.idle_s is not None or spec.scale:
            return None
        return hashlib.sha256(encode(replace(spec, name=""))).digest()

    def _standing_by(self, charge: Charge, prepared: Prepared) -> Prepared:
        fifo = self._home.wake_fifo(charge.name)
        wait = standby.first(charge.agent, fifo)
        held = standby.prepare(charge.agent, fifo)
        if held is None:
            return prepared
        env = {k: v for k, v in prepared.program.env.items() if k != service.READY_FD}
        program = replace(
            prepared.program,
            env={**env, service.LOCK_FD: str(standby.LOCK)},
            kept=(held.lock.fd, held.bell),
            first=wait,
        )
        return replace(prepared, program=program, standby=held)

    def _program(self, charge: Charge, spec: AgentSpec, group: str) -> spawn.Program:
        agent = charge.agent
        target = self._table.get(spec.runner)
        return spawn.Program(
            name=agent.name,
            directory=agent.path,
            env=spawn.runner_environment(self._base, self._home.path, agent.name, agent.path, spec.env),
            entry=programs.entry_of(target) if target else None,
            argv=() if target else programs.command_of(spec.runner, agent.path),
            rlimits=_rlimits(spec.limits, self.nofile),
            group=group,
        )

    def adopt(self, charge: Charge) -> Process | None:
        """The process that serves this mailbox already, by its lock; None when nobody does."""
        who = locks.holder(charge.agent.lock)
        if who is None or who.pid == os.getpid():
            return None
        handle = pidfd.open_pidfd(who.pid, who.start)
        if handle is None:
            return None
        return Process(
            who.pid,
            who.start,
            handle,
            False,
            since=agents.now_text(),
            stderr_at=crashes.stderr_size(charge.agent),
            mark=charge.finished_mark(),
        )

    @staticmethod
    def terminate(process: Process) -> None:
        """Ask it to finish or record its step and to leave; one that is stopped (Ctrl-Z) must run to hear it."""
        pidfd.send(process.pidfd, signal.SIGTERM)
        pidfd.send(process.pidfd, signal.SIGCONT)

    def kill(self, charge: Charge, process: Process) -> int:
        """End it and everything below it, whatever it does with signals; how many processes that were.

        First its group, at once; then by descent, session and mark, where there is none and for what has left it.
        """
        group = self.group_of(charge.name)
        killed = 0 if group is None else cgroup.kill(group)
        return killed + tree.kill_tree(process.pid, process.start, spawn.mark_of(charge.agent.path))

    def collect(self, charge: Charge, process: Process, others: Iterable[int]) -> Exit:
        """Take the exit of a process that has ended; what it left running is ended first, while it pins its number.

        others   pids of our other children that are somebody's
        """
        if not process.ours:
            self.kill(charge, process)
            code = pidfd.exit_of(process.pidfd, process.pid, process.start)
            os.close(process.pidfd)
            return charge.noted_exit(process) if code is None else _exit(code)
        group = self.group_of(charge.name)
        if set(tree.children_of_ours()) - set(others) - {process.pid} or (group is not None and cgroup.pids(group)):
            self.kill(charge, process)  # it left somebody: orphans came to us, or its group is not empty
        code = pidfd.reap(process.pidfd)
        os.close(process.pidfd)
        return Exit() if code is None else _exit(code)

    def sweep(self, name: str) -> None:
        """Nobody serves this mailbox: whoever is in its group was left there by a runner that ended unseen."""
        if (group := self.group_of(name)) is not None:
            cgroup.kill(group)
            self.groups.remove(name)  # type: ignore[union-attr]


def _process(prepared: Prepared, started: spawn.Spawned | OSError) -> Process | OSError:
    if isinstance(started, OSError):
        return started
    return Process(
        *(started.pid, started.start, started.pidfd, True, started.ready, agents.now_text()),
        stderr_at=prepared.stderr_at,
        mark=prepared.mark,
    )


def _rlimits(limits: AgentLimits, nofile: tuple[int, int]) -> tuple[tuple[int, tuple[int, int]], ...]:
    """What the kernel holds each process to, also when no supervisor is there to measure.

    Memory far above the limit: a process that the supervisor ends leaves a reason, one that gets no memory hardly ever.
    """
    found = [(resource.RLIMIT_NOFILE, nofile)]
    if limits.files is not None:
        found = [(resource.RLIMIT_NOFILE, (min(limits.files, nofile[1]),) * 2)]
    if limits.memory is not None:
        found.append((resource.RLIMIT_DATA, (4 * limits.memory,) * 2))
    if limits.disk is not None:
        found.append((resource.RLIMIT_FSIZE, (4 * limits.disk,) * 2))
    return tuple(found)


def _exit(code: int) -> Exit:
    return Exit(code=code) if code >= 0 else Exit(signal=-code)


def age_s(process: Process) -> float:
    """For how long a process has been running."""
    ticks = os.sysconf("SC_CLK_TCK")
    return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - process.start / ticks)


def _raise_nofile() -> tuple[int, int]:
    """A descriptor for each runner: take what the system allows. Returns what runners get instead: our own limits."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (OSError, ValueError):
        pass
    return soft, hard
