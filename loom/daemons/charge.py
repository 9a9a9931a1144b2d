"""One agent under supervision: what its files ask, and what is written about it. Processes: loom/daemons/supervisor.py.

read     want, agent.json, prompt.md (again only when their stat changed), whether there is mail
written  status, pid, started_at, stopped_at, last_exit for people; crash records; `want` only to say dead
"""

from __future__ import annotations

import hashlib
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from loom.core import liveness
from loom.core.supervision import Exit, Kind, Seen, Wanted
from loom.daemons.meter import Meter
from loom.daemons.watcher import Watcher
from loom.spool import agents, crashes, fs, locks, mailbox, wake
from loom.spool.layout import AgentDir, Home
from loom.spool.logs import Log
from loom.wire import message
from loom.wire.agent import WANTS, AgentLimits, Restart, Want
from loom.wire.errors import Config, LoomError, NotFound
from loom.wire.record import field, record
from loom.wire.times import rfc3339

_HALF_WRITTEN_S = 2.0  # so long an empty `want` is taken for one that is being written in place


@record
class Cause:
    """Why the supervisor ends a process. hint: what its sender may do; empty: it is not the message's fault."""

    error_type: str
    text: str
    hint: str = ""


@record(frozen=False)
class Process:
    """The running process of an agent. `ours` tells a child from an adopted one."""

    pid: int
    start: int
    pidfd: int
    ours: bool
    ready_fd: int = -1
    since: str = ""  # RFC 3339, when it was started or adopted
    stderr_at: int = 0
    mark: frozenset[tuple[str, int]] = field(default_factory=frozenset)

    @property
    def epoch(self) -> str:
        return f"{self.pid}.{self.start}"


@record
class Held:
    """One agent. As other code in the same process is told of it.

    want: the word that holds, also while the file is being rewritten. spent: see Meter.
    """

    want: Want
    seen: Seen
    cause: Cause | None = None
    spent: tuple[int, float, float] | None = None
    process: Process | None = None


_FILES = Home(Path()).agent("a")  # names are joined as strings here: sweeps ask for thousands of them
_RESTARTS: dict[Restart, Restart] = {}  # most agents have the same: one object for all of them


class Charge:
    """`wanted` and `seen` are what loom.core.supervision decides on.

    There may be ten thousand of these, nearly all of them asleep: what can be read or made again is not kept.
    """

    __slots__ = (
        *("home", "name", "wanted", "seen", "process", "absent", "met", "recheck_s", "trouble", "mail", "restart"),
        *(
            "runner",
            "to_zero",
            "limits",
            "meter",
            "spent",
            "watcher",
            "own_deadlines",
            "cause",
            "locked_s",
            "_where",
            "_inbox_ns",
            "_swept_ns",
            "_spec_token",
            "_digest",
            "_want",
            "_shown",
        ),
        *("_hindered", "_log"),
    )

    def __init__(self, home: Home, name: str) -> None:
        self.home = home
        self.name = name
        self.restart = Restart()  # this and the runner are those of the last agent.json that could be read
        self.runner = ""
        self.to_zero = False
        self.limits: AgentLimits | None = None
        self.meter: Meter | None = None  # while it runs and has limits
        self.spent: tuple[int, float, float] | None = None  # of its process, before this code measured it
        self.watcher: Watcher | None = None  # while it runs
        self.own_deadlines: Mapping[str, float] = {}
        self.cause: Cause | None = None  # for which its process is being ended
        self.locked_s: float | None = None  # since when its lock is seen held by no runner
        self._log: Log | None = None
        self._where = str(home.agent(name).path)
        self.wanted = Wanted("down")
        self.seen = Seen()
        self.process: Process | None = None
        self.absent = True  # no agent.json: no agent (yet, or any more)
        self.met = False  # looked at once: from then on a changed `want` is somebody asking
        self.recheck_s: float | None = None
        self.trouble = ""  # why it cannot be started, for the log and told once
        self.mail = False
        self._inbox_ns = -1
        self._swept_ns = -1
        self._spec_token = ""
        self._digest = ""
        self._want: Want = "down"
        self._shown = ""
        self._hindered = ""

    @property
    def agent(self) -> AgentDir:
        return self.home.agent(self.name)

    @property
    def log(self) -> Log:
        if self._log is None:
            self._log = Log(self.agent.logs)
        return self._log

    # -- reading -------------------------------------------------------------------------------------------

    def refresh(self, shared: str, now_s: float) -> None:
        """Read what changed. `shared` changes with config.yml and secrets/. Raises OSError."""
        self._read_spec()
        asked = _token(f"{self._where}/{_FILES.want.name}")
        if asked != self.wanted.asked or self.recheck_s is not None:
            self._read_want(now_s)
        # An agent that is wanted up and may go to zero is one on demand; that it is wanted keeps the supervisor.
        want: Want = "demand" if self.to_zero and self._want == "up" else self._want
        if want == "demand":
            self._look_for_mail()
        self.wanted = Wanted(
            want="down" if self.absent else want,
            restart=self.restart,
            mail=self.mail,
            asked=asked,
            spec=self._digest,
            settings=f"{self._digest} {shared}",
            broken=bool(self.trouble) and not self.absent,
        )

    def held(self) -> Held:
        """What other code needs to know of it."""
        spent = None if self.meter is None else self.meter.spent
        return Held(self._want, self.seen, self.cause, spent, self.process)

    def go_on(self, held: Held) -> None:
        """Know what other code knew. What is in its files is read anew."""
        self.met = True  # a `want` that was written meanwhile is somebody asking
        self._want, self.seen, self.cause, self.process = held.want, held.seen, held.cause, held.process
        self.spent = held.spent

    def is_wanted_up(self) -> bool:
        return self._want == "up" and not self.absent

    def _read_spec(self) -> None:
        token = f"{_token(f'{self._where}/{_FILES.spec.name}')} {_token(f'{self._where}/{_FILES.prompt.name}')}"
        if token == self._spec_token:
            return
        self.trouble = ""
        try:
            self.absent = False
            spec = agents.read_spec(self.agent)
            self.restart = _RESTARTS.setdefault(spec.restart, spec.restart)
            self.runner = sys.intern(spec.runner)
            self.to_zero = spec.scale == "to-zero"
            self.limits = spec.limits or None
            self.own_deadlines = liveness.own(spec.options)
            self._digest = _digest(self.agent)
        except NotFound:
            self.absent = True
        except Config as error:
            self.trouble = error.line()
            self.log.error("broken", error_type=error.kind, error=self.trouble)
            self.log.close()
        self._spec_token = token

    def _read_want(self, now_s: float) -> None:
        try:
            text = fs.read(self.agent.want, 4096).decode("utf-8", "replace").strip()
            age_s = time.time() - os.stat(self.agent.want).st_mtime
        except (FileNotFoundError, fs.NotRegular, fs.TooLarge):
            text, age_s = "", _HALF_WRITTEN_S
        self.recheck_s = None
        known = next((want for want in WANTS if want == text), None)
        if known is None and 0 <= age_s < _HALF_WRITTEN_S and self.met:
            self.recheck_s = now_s + _HALF_WRITTEN_S  # `echo up > want` empties it first: what was wanted still holds
        else:
            self._want = known or "down"

    def _look_for_mail(self) -> None:
        """List the inbox only when it changed or held something the last time."""
        try:
            changed_ns = os.stat(f"{self._where}/{_FILES.inbox.name}").st_mtime_ns
        except FileNotFoundError:
            changed_ns = -1
        if self.mail or changed_ns != self._inbox_ns:
            self.mail = agents.has_mail(self.agent)
            self._inbox_ns = changed_ns

    def inbox_changed(self) -> bool:
        """Whether something happened in the inbox since this was asked last: for the sweep, where no event came."""
        try:
            changed_ns = os.stat(f"{self._where}/{_FILES.inbox.name}").st_mtime_ns
        except OSError:
            return False
        before, self._swept_ns = self._swept_ns, changed_ns
        return before != changed_ns

    def finished_mark(self) -> frozenset[tuple[str, int]]:
        """Two marks differ when this agent finished a message between them; the router's are replies sent on."""
        if self.runner == "router":
            return agents.routed_mark(self.home)
        return agents.finished_mark(self.agent)

    def forget_mail(self) -> None:
        """Its process ended and may have left claimed messages, which the inbox's time does not tell."""
        self._inbox_ns = -1

    # -- writing -------------------------------------------------------------------------------------------

    def show(self, status: str) -> None:
        """`status` for people; an empty one leaves the word to the runner."""
        if status and status != self._shown and not self.absent and not _hint(self.agent.status, status):
            return  # the next look tries again
        self._shown = status

    def show_started(self) -> None:
        assert self.process is not None
        self._hindered = ""
        if not self.agent.path.is_dir():
            return  # removed since it was prepared: a hint would make its directory anew
        _hint(self.agent.pid, str(self.process.pid))
        _hint(self.agent.started_at, self.process.since)

    def show_ended(self, process: Process, exit_: Exit) -> None:
        if not self.agent.path.is_dir():
            return
        now = agents.now_text()
        _hint(self.agent.last_exit, f"{exit_text(exit_)} {process.epoch} {now}")
        _hint(self.agent.stopped_at, now)
        try:
            fs.remove(self.agent.pid)
        except OSError:
            pass

    def noted_exit(self, process: Process) -> Exit:
        """How an adopted process ended by what it wrote itself, when the kernel could not tell."""
        fields = agents.read_hint(self.agent.last_exit).split()
        if len(fields) == 3 and fields[1] == process.epoch and fields[0].isdigit():
            return Exit(code=int(fields[0]))
        return Exit()

    def record_crash(self, process: Process, exit_: Exit, kind: Kind, wait_s: float | None) -> None:
        """A crash record, and the same in the agent's log. `wait_s` None: no restart is planned."""
        now_us = time.time_ns() // 1000
        error_type, last_error = crashes.last_error(self.agent, process.since, now_us // 1000)
        if self.cause is not None:
            error_type, last_error = self.cause.error_type, self.cause.text
        stderr = crashes.stderr_tail(self.agent, process.stderr_at)
        record = {
            "ts": rfc3339(now_us),
            "exit_code": exit_.code,
            "signal": signal_name(exit_.signal),
            "restart_count": self.seen.n,
            "next_restart_at": None if wait_s is None else rfc3339(now_us + int(wait_s * 1e6)),
            **({"error_type": error_type, "last_error": last_error} if error_type else {}),
            "stderr": stderr,
        }
        # The log first: a disk that refuses the record may still take a line.
        told = {key: value for key, value in record.items() if key not in ("ts", "stderr")}
        self.log.error("crashed" if kind == "crash" else "refused", pid=process.pid, **told)
        self.log.close()
        crashes.write(self.agent, now_us // 1000, record)

    # -- claimed messages of a process that is gone -----------------------------------------------------------

    def fail_claimed(self, error_type: str, text: str, hint: str) -> int | None:
        """Failure replies for what was claimed; how many messages were failed. None: the lock is held, try later."""
        lock = locks.acquire(self.agent.lock)
        if lock is None:
            return None
        with lock:
            stems = [
                stem for name in mailbox.in_progress(self.agent) if (stem := self._fail(name, error_type, text, hint))
            ]
        if stems:
            wake.ring(self.home.wake_fifo("router"))
        return len(stems)

    def _fail(self, name: str, error_type: str, text: str, hint: str) -> str:
        claimed = mailbox.take(self.agent, name)
        if not isinstance(claimed, mailbox.Claimed):
            return ""
        attempt = mailbox.attempts(self.agent, claimed.stem)
        todo, reply = mailbox.look(self.agent, self.name, claimed.stem, attempt)
        if todo == "acknowledge":
            return ""  # it was answered: its conversation and move are finished by the next incarnation
        if reply is None:
            stem, answer = message.reply_to(
                claimed.message,
                claimed.stem,
                self.name,
                attempt,
                text,
                time.time_ns() // 1_000_000,
                error=True,
                data={"error_type": error_type, "hint": hint},
            )
            mailbox.answer(self.agent, stem, answer)
        else:
            text = reply.body
        mailbox.fail(
            self.agent, claimed.stem, attempt, error_type=error_type, last_error=text, hint=hint, ts=agents.now_text()
        )
        self.log.error("failed", message=claimed.stem, attempt=attempt, error_type=error_type, error=text)
        return claimed.stem

    def bury(self, count: int) -> bool:
        """Failure replies for what it had claimed, then `want` becomes dead. False: its lock is held, try later."""
        last = crashes.newest(self.agent) or {}
        because = f": {last['last_error']}" if last.get("last_error") else ""
        text = f"{self.name} crashed {count} times without finishing a message{because}"
        hint = f"see {self.agent.crashes}, then: loom agent restart {self.name}"
        if self.fail_claimed("dead", text, hint) is None:
            return False
        agents.write_want(self.agent, "dead")
        self.log.error("dead", error=text, hint=hint)
        self.log.close()
        return True

    def hinder(self, error: LoomError) -> None:
        """It could not be started for now: said in its log, once for each reason."""
        if error.line() != self._hindered:
            self._hindered = error.line()
            self.log.error("not_started", error_type=error.kind, error=error.line())
            self.log.close()

    def refuse(self, error: LoomError) -> None:
        """It cannot be started as it is configured: said in its log."""
        self.log.error("refused", error_type=error.kind, error=error.line())
        self.log.close()


def _hint(path: Path, text: str) -> bool:
    """fs.hint(): a word for people hinders nobody where it cannot be written. False then."""
    try:
        fs.hint(path, text)
    except OSError:
        return False
    return True


def exit_text(exit_: Exit) -> str:
    """An exit in one word: the status, the signal's name, or `unknown`."""
    if exit_.code is not None:
        return str(exit_.code)
    return signal_name(exit_.signal) or "unknown"


def signal_name(number: int | None) -> str | None:
    import signal

    if number is None:
        return None
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"SIG{number}"


def _token(path: str | Path) -> str:
    """Changes whenever the file is replaced or rewritten; empty when there is none."""
    try:
        return fs.token(path)
    except (FileNotFoundError, NotADirectoryError):
        return ""


def shared_token(home: Home) -> str:
    """Changes with what every agent's configuration may depend on."""
    known = f"{_token(home.config)} {_token(home.overrides)} {_token(home.secrets)} {_token(home.routes)}"
    return hashlib.sha256(known.encode()).hexdigest()[:16]


def _digest(agent: AgentDir) -> str:
    sums = hashlib.sha256()
    for path in (agent.spec, agent.prompt):
        try:
            sums.update(fs.read(path, 1 << 20))
        except (FileNotFoundError, fs.NotRegular, fs.TooLarge):
            pass
        sums.update(b"\0")
    return sums.hexdigest()[:32]
