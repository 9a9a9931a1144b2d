"""Where everything lies: the only module that spells the names below `$LOOM_HOME` (docs/protocol.md section 1).

Nothing here touches the disk, except `programs_dir`, which looks whether this is a checkout or an installation.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path

from loom.spool.fs import TMP
from loom.wire import ids, warm
from loom.wire.record import record
from loom.wire.times import day_of

PROTOCOL_VERSION = 1
ERROR_SUFFIX = ".error.json"
# All that may lie in a home: by these names one without `version` is told from somebody's directory.
HOME_ENTRIES = frozenset(
    (
        *(
            "version",
            "config.yml",
            "routes.json",
            "settings.json",
            "start.lock",
            "tidy.lock",
            "weave.lock",
            "agents",
            "filters",
            "pipes",
            "goals",
            "heads",
        ),
        *("blobs", "ledger", "secrets", "skills", "tools", "playbooks", "policies", "schedules", "logs", "run"),
        *("index", "archive", "lost+found"),
    )
)


def default_home(env: Mapping[str, str]) -> Path:
    """`$LOOM_HOME`, else `~/.loom` of `$HOME`."""
    if env.get("LOOM_HOME"):
        return Path(env["LOOM_HOME"]).expanduser().absolute()
    base = env.get("HOME")
    return (Path(base) if base else Path.home()) / ".loom"


@cache
def programs_dir(kind: str) -> Path:
    """The directory of the shipped executables, `kind` being `tools` or `runners`: a checkout's, else the wheel's."""
    package = Path(__file__).resolve().parent.parent
    shipped = package / "_programs" / kind
    return shipped if shipped.is_dir() else package.parent / kind


@record
class Box:
    """A mailbox directory pair: what an agent and a pipe instance have in common."""

    path: Path

    @property
    def inbox(self) -> Path:
        return self.path / "inbox"

    @property
    def outbox(self) -> Path:
        return self.path / "outbox"

    @property
    def in_progress(self) -> Path:
        return self.inbox / ".in-progress"

    @property
    def failed(self) -> Path:
        return self.inbox / ".failed"

    @property
    def unreadable(self) -> Path:
        return self.inbox / ".unreadable"

    @property
    def refused(self) -> Path:
        return self.outbox / ".refused"

    @property
    def turns(self) -> Path:
        return self.path / "turns"

    @property
    def processed_days(self) -> Path:
        return self.inbox / ".processed"

    @property
    def sent_days(self) -> Path:
        return self.outbox / ".sent"

    def processed(self, stem: str) -> Path:
        return Path(self.processed_file(stem))

    def sent(self, stem: str) -> Path:
        return Path(self.sent_file(stem))

    # The places of one message, as text: joining Paths costs more than most of what is done with a message.

    def inbox_file(self, name: str) -> str:
        return f"{self.path}/inbox/{name}"

    def claimed_file(self, name: str) -> str:
        return f"{self.path}/inbox/.in-progress/{name}"

    def processed_file(self, stem: str) -> str:
        return f"{self.path}/inbox/.processed/{day_of(ids.time_of(stem))}/{stem}.msg"

    def failed_file(self, name: str) -> str:
        return f"{self.path}/inbox/.failed/{name}"

    def unreadable_file(self, name: str) -> str:
        return f"{self.path}/inbox/.unreadable/{name}"

    def outbox_file(self, name: str) -> str:
        return f"{self.path}/outbox/{name}"

    def sent_file(self, stem: str) -> str:
        return f"{self.path}/outbox/.sent/{day_of(ids.time_of(stem))}/{stem}.msg"

    def turn(self, stem: str, attempt: int) -> Path:
        return self.turns / f"{stem}.{attempt}.ndjson"

    def error_of(self, stem: str) -> Path:
        """NAME.error.json beside a failed message."""
        return self.failed / f"{stem}.msg{ERROR_SUFFIX}"

    def directories(self) -> tuple[Path, ...]:
        """What must exist before the first message."""
        return (
            self.inbox / TMP,
            self.in_progress,
            self.processed_days,
            self.failed,
            self.unreadable,
            self.outbox / TMP,
            self.sent_days,
            self.turns,
        )


@record
class AgentDir(Box):
    """`agents/<name>/`."""

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def spec(self) -> Path:
        return self.path / "agent.json"

    @property
    def prompt(self) -> Path:
        return self.path / "prompt.md"

    @property
    def want(self) -> Path:
        return self.path / "want"

    @property
    def status(self) -> Path:
        return self.path / "status"

    @property
    def pid(self) -> Path:
        return self.path / "pid"

    @property
    def model(self) -> Path:
        return self.path / "model"

    @property
    def started_at(self) -> Path:
        return self.path / "started_at"

    @property
    def stopped_at(self) -> Path:
        return self.path / "stopped_at"

    @property
    def last_exit(self) -> Path:
        return self.path / "last_exit"

    @property
    def lock(self) -> Path:
        return self.path / "lock"

    # The same as text, for who looks at ten thousand agents at once.

    @property
    def spec_file(self) -> str:
        return f"{self.path}/agent.json"

    @property
    def want_file(self) -> str:
        return f"{self.path}/want"

    @property
    def status_file(self) -> str:
        return f"{self.path}/status"

    @property
    def lock_file(self) -> str:
        return f"{self.path}/lock"

    @property
    def heartbeat(self) -> Path:
        """Touched by its loop while it works; may hold for how long at most it stays untouched."""
        return self.path / "heartbeat"

    @property
    def why(self) -> Path:
        """The last hang met over the message in work, in one line."""
        return self.path / "why"

    @property
    def routed(self) -> Path:
        """The router's count of what it delivered, by route; for people."""
        return self.path / "routed.json"

    @property
    def pipe_state(self) -> Path:
        """An instance of a pipe: what its operators hold and remember."""
        return self.path / "state"

    @property
    def pipe_steps(self) -> Path:
        """An instance of a pipe: every intermediate result, by operator."""
        return self.path / "steps"

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    @property
    def stderr(self) -> Path:
        return self.logs / "stderr.log"

    @property
    def crashes(self) -> Path:
        return self.path / "crashes"

    @property
    def tools(self) -> Path:
        return self.path / "tools"

    def log_of(self, day: str) -> Path:
        return self.logs / f"{day}.ndjson"

    def conversation(self, thread: str) -> Path:
        return self.path / "conversations" / f"{thread}.ndjson"


@record
class GoalDir:
    """`goals/<id>/` (docs/goals.md)."""

    path: Path

    @property
    def id(self) -> str:
        return self.path.name

    @property
    def document(self) -> Path:
        return self.path / "goal.md"

    @property
    def journal(self) -> Path:
        return self.path / "journal.ndjson"

    @property
    def state(self) -> Path:
        return self.path / "state.json"

    @property
    def plan(self) -> Path:
        return self.path / "plan.json"

    @property
    def control(self) -> Path:
        return self.path / "control"

    @property
    def workspace(self) -> Path:
        return self.path / "workspace"

    def attempt(self, subtask: str, attempt: int) -> Path:
        return self.path / "subtasks" / subtask / str(attempt)

    def tree(self, subtask: str, attempt: int) -> Path:
        """The attempt's own copy of the workspace."""
        return self.attempt(subtask, attempt) / "tree"


@record
class ScheduleDir:
    """`schedules/<job>.yml`, and what is known of that job in `schedules/<job>/` (docs/schedules.md)."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def definition(self) -> Path:
        return self.path.with_name(f"{self.name}.yml")

    @property
    def slots(self) -> Path:
        return self.path / "slots.json"

    @property
    def lock(self) -> Path:
        return self.path / "lock"

    @property
    def logs(self) -> Path:
        return self.path / "logs"


@record
class Home:
    """`$LOOM_HOME`."""

    path: Path

    @property
    def config(self) -> Path:
        return self.path / "config.yml"

    @property
    def version(self) -> Path:
        return self.path / "version"

    @property
    def agents(self) -> Path:
        return self.path / "agents"

    @property
    def filters(self) -> Path:
        return self.path / "filters"

    @property
    def goals(self) -> Path:
        return self.path / "goals"

    @property
    def heads(self) -> Path:
        return self.path / "heads"

    @property
    def blobs(self) -> Path:
        return self.path / "blobs"

    @property
    def ledger(self) -> Path:
        return self.path / "ledger"

    @property
    def secrets(self) -> Path:
        return self.path / "secrets"

    @property
    def routes(self) -> Path:
        return self.path / "routes.json"

    @property
    def overrides(self) -> Path:
        """The settings that weaves say; they go before those of config.yml."""
        return self.path / "settings.json"

    @property
    def tools(self) -> Path:
        return self.path / "tools"

    @property
    def run(self) -> Path:
        return self.path / "run"

    @property
    def pipes(self) -> Path:
        return self.path / "pipes"

    def pipe(self, name: str) -> Path:
        """The definition of a pipe whose name has been checked."""
        if not ids.is_agent(name):
            raise ValueError(f"not a pipe's name: {name!r}")
        return self.pipes / name / "pipe.json"

    @property
    def weave_lock(self) -> Path:
        """Held by the one command that changes agents of weaves, routes and pipes."""
        return self.path / "weave.lock"

    @property
    def wake(self) -> Path:
        return self.run / "wake"

    @property
    def slots(self) -> Path:
        return self.run / "slots"

    @property
    def boot_id(self) -> Path:
        return self.run / "boot_id"

    @property
    def supervisor_pid(self) -> Path:
        return self.run / "supervisor.pid"

    @property
    def supervisor_record(self) -> Path:
        return self.run / "supervisor.json"

    @property
    def supervisor_lock(self) -> Path:
        return self.run / "supervisor.lock"

    @property
    def filters_socket(self) -> Path:
        """Where a filter's command finds a supervisor that carries it out."""
        return self.path / warm.SOCKET

    @property
    def supervisor_log(self) -> Path:
        return self.path / "logs" / "supervisor.log"

    @property
    def archive(self) -> Path:
        return self.path / "archive"

    def archive_of(self, day: str) -> Path:
        return self.archive / f"{day}.ndjson.gz"

    @property
    def tidy_lock(self) -> Path:
        return self.path / "tidy.lock"

    @property
    def start_lock(self) -> Path:
        return self.path / "start.lock"

    def agent(self, name: str) -> AgentDir:
        """The directory of an agent, or of a pipe's instance, whose name has been checked. Raises ValueError."""
        if ids.is_instance(name):
            return AgentDir(self.pipes / name)
        if not ids.is_agent(name):
            raise ValueError(f"not an agent name: {name!r}")
        return AgentDir(self.agents / name)

    def goal(self, goal: str) -> GoalDir:
        """The directory of a goal whose id has been checked. Raises ValueError for any other id."""
        if not ids.is_goal(goal):
            raise ValueError(f"not a goal id: {goal!r}")
        return GoalDir(self.goals / goal)

    @property
    def schedules(self) -> Path:
        return self.path / "schedules"

    def schedule(self, job: str) -> ScheduleDir:
        """The directory of a job whose name has been checked. Raises ValueError for any other name."""
        if not ids.is_agent(job):
            raise ValueError(f"not a job's name: {job!r}")
        return ScheduleDir(self.schedules / job)

    def filter_box(self, stem: str) -> Box:
        """The directory of one filter's run: message, turn and reply (section 7)."""
        if not ids.is_stem(stem):
            raise ValueError(f"not a message name: {stem!r}")
        return Box(self.filters / stem)

    def wake_fifo(self, name: str) -> Path:
        return self.wake / name

    def secret(self, name: str) -> Path:
        if not ids.is_agent(name):
            raise ValueError(f"not a secret's name: {name!r}")
        return self.secrets / name

    def head(self, goal: str) -> Path:
        return self.heads / goal

    def directories(self) -> tuple[Path, ...]:
        """What `open_home` makes."""
        return (self.agents, self.filters, self.goals, self.heads, self.blobs, self.run, self.wake, self.slots)
