"""Serving a mailbox: the loop every runner shares (docs/protocol.md sections 4, 6 and 7).

Claim, look, work, answer, acknowledge; fail what cannot be answered; leave when asked, alone or idle. What the
work is, a Worker says: a model's turn (runner.py), a keeper's deed (keeper.py). This file decides nothing about
messages that loom.spool.mailbox does not.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from loom.proc.stopping import Leaving, Stopping
from loom.spool import agents, blobs, bodies, config, crashes, fs, locks, mailbox, ndjson, threads, wake
from loom.spool import home as homes
from loom.spool.heartbeat import NOBODY, Heartbeat
from loom.spool.layout import AgentDir, Home
from loom.spool.logs import Log
from loom.spool.mailbox import Claimed
from loom.spool.turns import MAX_DEATHS, Turn
from loom.wire import exits, hang
from loom.wire import message as wire
from loom.wire.agent import AgentSpec
from loom.wire.errors import BadInput, Config, Deadline, Disk, LoomError, NotFound, Usage
from loom.wire.jsontext import use_orjson
from loom.wire.record import record

LOOK_EVERY_S = 2.0  # how often a runner without a supervisor looks by itself
LOOK_ANYWAY_S = 300.0  # and one with a supervisor, which looks too, in case that nobody can ring it any more
HELD_S = 10.0  # waited for a conversation that somebody else has, before that is said
READY_FD = "LOOM_READY_FD"
ALONE_FD = "LOOM_ALONE_FD"
LOCK_FD = "LOOM_LOCK_FD"


@record
class Done:
    """What a worker made of a message. `said` are the conversation's lines, empty when there is no conversation.

    parts   several outputs in one reply, or none; None: the body is the only one
    """

    body: str
    data: Mapping[str, Any] | None = None
    said: tuple[tuple[str, str], ...] = ()
    thread: threads.Thread | None = None
    parts: tuple[str, ...] | None = None


class Worker(Protocol):
    """The work on one message. Raises LoomError to fail it, OSError or Disk to stop with 75, Leaving to leave."""

    def work(self, claimed: Claimed, turn: Turn) -> Done: ...


@record(frozen=False)
class Agent:
    """What a worker knows of the agent it works for."""

    home: Home
    dir: AgentDir
    spec: AgentSpec
    log: Log
    stopping: Stopping
    heartbeat: Heartbeat = NOBODY


class Loop(Protocol):
    """What a process does while it holds its agent's lock."""

    def recover(self) -> None: ...

    def run(self, drain: bool) -> int: ...

    def close(self) -> None: ...


class WorkerMaker(Protocol):
    """Makes the worker once the lock is held. Raises LoomError: exit 78 when it is one of configuration."""

    def __call__(self, agent: Agent) -> Worker: ...


def serve(agent_dir: Path, make_worker: WorkerMaker, drain: bool = False) -> int:
    """Serve the mailbox in `agent_dir` until told to leave; the exit status (docs/cli.md)."""
    return serve_loop(agent_dir, lambda agent, me: MailboxLoop(agent, make_worker(agent), me), drain)


def serve_loop(agent_dir: Path, make_loop: Callable[[Agent, locks.Incarnation], Loop], drain: bool = False) -> int:
    """Take the agent's lock, set up, say ready, recover, run; the exit status. Errors become one line and a status.

    Ready comes before recovery, because finishing a message that was in work may take as long as a model takes.
    """
    use_orjson()
    home = Home(agent_dir.parent.parent)
    directory = home.agent(agent_dir.name)
    log = Log(directory.logs, os.environ.get("LOOM_LOG", "info"), pid=os.getpid())
    stopping = Stopping()
    stopping.install()
    try:
        homes.open_home(home.path)
        lock = _given_lock(directory) or locks.acquire(directory.lock)
        if lock is None:
            print(f"loom: {directory.name} is served by another process already", file=sys.stderr)
            return exits.TRY_LATER
        with lock:
            me = locks.own_incarnation()
            lock.sign(me)
            agent = Agent(home, directory, agents.read_spec(directory), log, stopping, Heartbeat(directory))
            status = _locked(agent, make_loop, drain, me)
            agents.note_exit(directory, status, me)
            return status
    except LoomError as error:
        log.error("stopped", error_type=error.kind, error=str(error))
        print(f"loom: {error.line()}", file=sys.stderr)
        return exits.TRY_LATER if isinstance(error, Disk) else error.exit_status
    except OSError as error:
        trouble = homes.disk_error(error, f"{directory.name} cannot go on", home.path)
        log.error("stopped", error_type=trouble.kind, error=str(trouble))
        print(f"loom: {trouble.line()}", file=sys.stderr)
        return exits.TRY_LATER


def _given_lock(directory: AgentDir) -> locks.Lock | None:
    """The lock that we were forked with: we have stood by (loom/daemons/standby.py)."""
    fd = os.environ.pop(LOCK_FD, "")
    return locks.Lock(int(fd), directory.lock) if fd.isdigit() else None


def _locked(
    agent: Agent, make_loop: Callable[[Agent, locks.Incarnation], Loop], drain: bool, me: locks.Incarnation
) -> int:
    try:
        loop = make_loop(agent, me)
    except (Usage, NotFound) as error:  # what agent.json names does not exist: trying again would not help
        raise Config(str(error), hint=error.hint) from None
    try:
        _say_ready()
        loop.recover()
        return loop.run(drain)
    except Leaving as leaving:
        agent.log.info("leaving", signal=leaving.signum)
        return exits.DONE
    finally:
        loop.close()
        agent.log.close()


def _say_ready() -> None:
    fd = os.environ.pop(READY_FD, "")
    if fd.isdigit():
        try:
            os.write(int(fd), b"\n")
            os.close(int(fd))
        except OSError:
            pass  # whoever waited for it is gone: that is found out through the other pipe


class Alone:
    """Whether a supervisor watches over us: it holds the other end of a pipe, and its death hangs that up."""

    def __init__(self) -> None:
        fd = os.environ.pop(ALONE_FD, "")
        self._fd = int(fd) if fd.isdigit() else -1

    def wait(self, stopping: Stopping, limit_s: float | None, fds: Sequence[int]) -> None:
        """Sleep until one of `fds` has something; without a supervisor for LOOK_EVERY_S at most."""
        if self._fd < 0:
            stopping.wait(LOOK_EVERY_S if limit_s is None else min(LOOK_EVERY_S, limit_s), *fds)
        elif self._fd in stopping.wait(limit_s, self._fd, *fds):
            os.close(self._fd)
            self._fd = -1


class MailboxLoop:
    """The loop over one inbox."""

    def __init__(self, agent: Agent, worker: Worker, me: locks.Incarnation) -> None:
        self.agent, self.worker, self.me = agent, worker, me
        self.inbox = mailbox.Inbox(agent.dir)
        self.bell = wake.listen(agent.home.wake_fifo(agent.dir.name))
        self.alone = Alone()
        self._idle_s = _idle_s(agent)
        self._status = ""

    def close(self) -> None:
        if self.bell >= 0:
            os.close(self.bell)

    def recover(self) -> None:
        """Finish what the incarnation before us had claimed; costs only the work in flight."""
        for name in mailbox.in_progress(self.agent.dir):
            claimed = mailbox.take(self.agent.dir, name)
            if isinstance(claimed, Claimed):
                self.handle(claimed)
            else:
                self._tell_set_aside(name, claimed)

    def run(self, drain: bool) -> int:
        idle_since = time.monotonic()
        while True:
            self.agent.stopping.check()
            wake.drain(self.bell)
            self.on_time()
            if self.inbox.waiting():
                self._show("running")  # before the claim: where this cannot be written, mail stays where it is
            claimed = self.inbox.claim()
            self._tell_odd()
            if claimed is not None:
                self.handle(claimed)
                idle_since = time.monotonic()
                continue
            if drain:
                return exits.DONE
            self._show("idle")
            left_s = None if self._idle_s is None else self._idle_s - (time.monotonic() - idle_since)
            if left_s is not None and left_s <= 0:
                return exits.DONE
            self._mend_bell()
            limits_s = (LOOK_ANYWAY_S, left_s, self.next_s())
            self.alone.wait(self.agent.stopping, min(s for s in limits_s if s is not None), [self.bell])

    def on_time(self) -> None:
        """For a loop that has something to do by the clock as well: do what is due."""

    def next_s(self) -> float | None:
        """In how many seconds the next is due; None: nothing is."""
        return None

    def _mend_bell(self) -> None:
        """A FIFO that was removed, by somebody who cleaned up `run/`, is made again."""
        home = self.agent.home
        fifo = home.wake_fifo(self.agent.dir.name)
        if not wake.is_heard(fifo, self.bell) and home.version.exists():
            os.close(self.bell)
            self.bell = -1
            self.bell = wake.listen(fifo)

    def handle(self, claimed: Claimed) -> None:
        """One message from claim to the end of its life."""
        self._handle(claimed)
        self.agent.heartbeat.done()

    def _handle(self, claimed: Claimed) -> None:
        box, stem = self.agent.dir, claimed.stem
        attempt = mailbox.attempts(box, stem)
        todo, reply = mailbox.look(box, box.name, stem, attempt)
        if todo == "acknowledge":
            self._finish(claimed, attempt)
            return
        if todo == "fail":
            assert reply is not None
            data = reply.data or {}
            self._file_failure(
                stem, attempt, str(data.get("error_type", "unknown")), reply.body, str(data.get("hint", ""))
            )
            return
        self._show("running")
        self.agent.log.info("claimed", message=stem, origin=claimed.message.origin, attempt=attempt)
        try:
            turn = Turn(box.turn(stem, attempt), self.agent.home.blobs)
        except (ndjson.Damaged, blobs.BlobDamaged) as error:
            broken = LoomError(f"the turn record is damaged: {error}", kind="damaged", hint="retry begins a new one")
            self._fail(claimed, attempt, broken, time.time_ns() // 1000)
            return
        try:
            self._work(claimed, attempt, turn)
        except Leaving:
            turn.release()
            raise
        except (OSError, Disk):
            _release_if_possible(turn)  # a disk that is full for long is no death of this message
            raise
        finally:
            turn.close()

    def _work(self, claimed: Claimed, attempt: int, turn: Turn) -> None:
        began_us = time.time_ns() // 1000
        turn.open(self.me.boot, self.me.epoch)
        try:
            if turn.deaths >= MAX_DEATHS:
                raise self._poison(turn.deaths)
            deadline = claimed.message.deadline_ms
            if deadline is not None and time.time() * 1000 > deadline and not turn.steps:
                raise Deadline("the deadline of this message had passed before work on it began")
            done = self.worker.work(claimed, turn)
        except Disk:
            raise
        except LoomError as error:
            self._fail(claimed, attempt, error, began_us)
            return
        try:
            self._answer(claimed, attempt, done, began_us)
        finally:
            if done.thread is not None:
                done.thread.close()

    def _poison(self, deaths: int) -> LoomError:
        last = crashes.newest(self.agent.dir) or {}
        because = f"; the last time: {last['last_error']}" if last.get("last_error") else ""
        return LoomError(
            f"the runner died {deaths} times in a row on this message without getting anywhere{because}",
            kind="poison",
            hint=f"see {self.agent.dir.crashes}",
        )

    def _signed(self, claimed: Claimed, data: Mapping[str, Any] | None, began_us: int) -> dict[str, Any]:
        """The reply's `data`; the answer to an order says which process worked on it, and when."""
        if not claimed.message.kind:
            return {} if data is None else {"data": data}
        actor = {"agent": self.agent.dir.name, "pid": self.me.pid, "start": self.me.start}
        times = {"began_us": began_us, "ended_us": time.time_ns() // 1000}
        return {"data": {**(data or {}), "actor": actor, **times}}

    def _answer(self, claimed: Claimed, attempt: int, done: Done, began_us: int) -> None:
        fields = self._signed(claimed, done.data, began_us)
        if done.parts is not None:
            fields["parts"] = done.parts
        stem, reply = wire.reply_to(
            claimed.message, claimed.stem, self.agent.dir.name, attempt, done.body, _now_ms(), **fields
        )
        try:
            mailbox.answer(self.agent.dir, stem, bodies.fit(self.agent.home.blobs, reply))
        except ValueError as error:
            self._fail(claimed, attempt, LoomError(f"the answer cannot be sent: {error}", kind="too_large"), began_us)
            return
        self.agent.log.info("answered", message=claimed.stem, reply=stem)
        if done.thread is not None and done.said:
            done.thread.append(claimed.stem, list(done.said))
        mailbox.acknowledge(self.agent.dir, claimed.stem)
        self._ring_router()

    def _finish(self, claimed: Claimed, attempt: int) -> None:
        """The reply is out already: only the conversation and the move are missing.

        Not even those for a message that comes again, with its own bytes or with others, after it was processed.
        """
        box, stem = self.agent.dir, claimed.stem
        thread_name = "" if os.path.lexists(box.processed(stem)) else threads.name_of(claimed.message)
        reply = mailbox.find_reply(box, box.name, stem, attempt)
        if thread_name and reply is not None:
            self._tell_thread(thread_name, claimed, reply)
        mailbox.acknowledge(box, stem)
        self.agent.log.info("finished", message=stem)
        self._ring_router()

    def _tell_thread(self, name: str, claimed: Claimed, reply: wire.Message) -> None:
        try:
            thread = wait_for_thread(self.agent, name)
        except Config as error:  # damaged; the answer is out and must not wait for it
            self.agent.log.error("conversation", thread=name, error=error.line())
            return
        try:
            thread.append(claimed.stem, [("user", self._text(claimed.message)), ("assistant", self._text(reply))])
        finally:
            thread.close()

    def _text(self, message: wire.Message) -> str:
        """The whole body, or what the message itself has of it."""
        try:
            return bodies.text(self.agent.home.blobs, message)
        except BadInput:
            return message.body

    def _fail(self, claimed: Claimed, attempt: int, error: LoomError, began_us: int) -> None:
        """Failure reply first, then `.failed/`, so that nobody waits for ever."""
        data = {"error_type": error.kind, "hint": error.hint, "exit_status": error.exit_status}
        fields = self._signed(claimed, data, began_us)
        stem, reply = wire.reply_to(
            claimed.message, claimed.stem, self.agent.dir.name, attempt, str(error), _now_ms(), error=True, **fields
        )
        mailbox.answer(self.agent.dir, stem, reply)
        self._file_failure(claimed.stem, attempt, error.kind, str(error), error.hint)
        self._ring_router()

    def _file_failure(self, stem: str, attempt: int, error_type: str, text: str, hint: str) -> None:
        mailbox.fail(
            self.agent.dir, stem, attempt, error_type=error_type, last_error=text, hint=hint, ts=agents.now_text()
        )
        self.agent.log.error("failed", message=stem, attempt=attempt, error_type=error_type, error=text)

    def _ring_router(self) -> None:
        wake.ring(self.agent.home.wake_fifo("router"))

    def _show(self, status: str) -> None:
        if status != self._status:
            self._status = status
            fs.hint(self.agent.dir.status, status)

    def _tell_odd(self) -> None:
        for name, reason in self.inbox.set_aside:
            self._tell_set_aside(name, reason)
        self.inbox.set_aside.clear()
        for name, why in self.inbox.unmovable:
            self.agent.log.warning("unmovable", name=ascii(name)[1:-1], error=why, hint="left where it is")
        self.inbox.unmovable.clear()
        for name in sorted(self.inbox.odd):
            self.agent.log.warning("odd_entry", name=ascii(name)[1:-1], hint="no name of a message; left where it is")
        self.inbox.odd_told |= self.inbox.odd
        self.inbox.odd.clear()

    def _tell_set_aside(self, name: str, reason: str) -> None:
        self.agent.log.error("unreadable", name=ascii(name)[1:-1], reason=reason)


def _idle_s(agent: Agent) -> float | None:
    """After how many idle seconds this process leaves; None: never. Mail that comes then starts the next one."""
    if agent.spec.idle_s is None and agent.spec.scale == "to-zero":
        return float(config.load(agent.home, os.environ)["scale.idle"])
    return agent.spec.idle_s


def _release_if_possible(turn: Turn) -> None:
    try:
        turn.release()
    except OSError:
        pass


def wait_for_thread(agent: Agent, name: str) -> threads.Thread:
    """Hold a conversation; another process holds it for the length of one turn at most."""
    began = time.monotonic()
    while True:
        thread = threads.hold(agent.dir, name)
        waited_s = time.monotonic() - began
        if thread is not None:
            if waited_s > HELD_S:
                agent.heartbeat.done()
            return thread
        if waited_s > HELD_S:
            agent.heartbeat.why(hang.line("thread_held", f"another process has the conversation {name}; waiting"))
        agent.heartbeat.beat()
        with agent.stopping.interruptible():
            agent.stopping.wait(0.2)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
