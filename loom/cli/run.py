"""`loom run GOAL`: plan, execute and verify; progress on stderr, the result on stdout (docs/cli.md, docs/goals.md)."""

from __future__ import annotations

import getpass
import os
import sys
import time
from pathlib import Path
from typing import Any

import click

from loom.cli import model_names, printing, progress
from loom.cli.following import Follower, take_up
from loom.cli.homes import open_home
from loom.spool import config, fs, goals, wake
from loom.spool.config import Loaded
from loom.spool.layout import HOME_ENTRIES, GoalDir, Home, default_home
from loom.wire import exits, ids
from loom.wire.errors import BadInput, Config, NotFound, Usage
from loom.wire.goal import GoalSpec, Limits
from loom.wire.times import day_of

MAX_GOAL_BYTES = 256 << 10
ROLES = ("planner", "executor", "verifier")


@click.command("run")
@click.argument("goal", required=False)
@click.option("-w", "--workspace", metavar="DIR", help="The directory the goal is about; agents work on copies of it.")
@click.option("--file", "goal_file", metavar="F", help="Read the goal from a file; '-' is stdin.")
@click.option("--model", metavar="M", help="Model of every role; else models.* and model of config.yml.")
@click.option("--land", is_flag=True, help="Bring the result into DIR when the goal is done.")
@click.option("--gates", type=click.Choice(["free"]), help="Who is asked before an action; so far only: free.")
@click.option("--detach", is_flag=True, help="Print the goal's id and leave; the goal goes on.")
@click.option("--json", "as_json", is_flag=True, help="Events and the result as NDJSON on stdout.")
def cli(
    goal: str | None,
    workspace: str | None,
    goal_file: str | None,
    model: str | None,
    land: bool,
    gates: str | None,
    detach: bool,
    as_json: bool,
) -> int:
    """Plan GOAL, let executors work on it, verify what they did."""
    text = _goal_text(goal, goal_file)
    source = source_of(workspace, default_home(os.environ).resolve())
    if land and not source:
        raise Usage("--land needs a workspace to land in", hint="name it: -w DIR")
    home = open_home()
    now_ms = time.time_ns() // 1_000_000
    name = ids.goal_id(text, day_of(now_ms).replace("-", ""), os.urandom(4))
    spec = spec_of(home, name, text, now_ms, source=source, model=model, gates=gates, land=land)
    directory = goals.create(home, spec)
    take_up(home)
    if detach:
        _say_started(spec.id, as_json)
        return exits.DONE
    return follow(home, directory, as_json)


def spec_of(
    home: Home,
    name: str,
    text: str,
    now_ms: int,
    *,
    source: str = "",
    model: str | None = None,
    gates: str | None = None,
    land: bool = False,
    by: str = "",
) -> GoalSpec:
    """A goal with the settings in force here. Raises Config or NotFound for models that nobody could use.

    source  as from source_of     by  who asks; without it the user
    """
    loaded = config.load(home, os.environ)
    models, env = _models(home, loaded, model)
    return GoalSpec(
        id=name,
        text=text,
        by=by or _user(),
        created_ms=now_ms,
        models=models,
        source=source,
        gates=gates or loaded["gates"],
        land=land,
        umask=_umask(),
        cwd=str(Path.cwd()),
        env=env,
        limits=_limits(loaded),
    )


def _goal_text(goal: str | None, goal_file: str | None) -> str:
    if goal is not None and goal_file is not None:
        raise Usage("the goal is given twice: as an argument and with --file")
    try:
        stdin = sys.stdin  # None when it is closed
        if stdin is not None and (goal_file == "-" or (goal is None and goal_file is None and not stdin.isatty())):
            data = stdin.buffer.read(MAX_GOAL_BYTES + 1)
        elif goal_file == "-":
            data = b""
        elif goal_file is not None:
            data = fs.read(Path(goal_file), MAX_GOAL_BYTES)
        else:
            data = (goal or "").encode("utf-8", "surrogateescape")
        text = data.decode("utf-8").strip()
    except FileNotFoundError:
        raise NotFound(f"there is no file {goal_file!r}") from None
    except UnicodeDecodeError:
        raise BadInput("the goal is not UTF-8 text") from None
    except (fs.NotRegular, fs.TooLarge) as error:
        raise BadInput(f"{goal_file} cannot be read: {error}") from None
    if not text or "\0" in text:
        raise BadInput("there is no goal", hint='say what shall be done: loom run "…" -w DIR')
    if len(data) > MAX_GOAL_BYTES:
        raise BadInput(f"the goal has more than {MAX_GOAL_BYTES} bytes", hint="put the material into the workspace")
    return text


def source_of(workspace: str | None, home: Path) -> str:
    """The workspace as an absolute path. Raises NotFound, and Usage for what would copy itself."""
    if workspace is None:
        return ""
    path = Path(workspace).expanduser().absolute()
    if not path.exists():
        raise NotFound(f"the workspace {path} does not exist")
    if not path.is_dir():
        raise NotFound(f"the workspace {path} is not a directory")
    found = path.resolve()
    if found == Path("/"):
        raise Usage("the whole file system is no workspace", hint="name the directory the goal is about: -w DIR")
    inner = found.relative_to(home).parts if found.is_relative_to(home) else ("",)
    if not inner or inner[0] in HOME_ENTRIES:
        raise Usage(f"{found} belongs to loom's home {home}", hint="name a directory outside it: -w DIR")
    return str(found)


def _models(home: Home, loaded: Loaded, flag: str | None) -> tuple[dict[str, str], dict[str, str]]:
    """(model by role, the variables they need), checked as the processes see the world that will ask them."""
    named: dict[str, str] = {}
    for role in ROLES:
        name = flag or loaded[f"models.{role}"] or loaded["model"]
        if not name:
            raise Config(
                f"no model for the {role}",
                hint="give --model (try: --model builtin), or set `model` in config.yml",
            )
        named[role] = name
    if flag is None:
        named |= {f"executor-{tier}": m for tier in (2, 3) if (m := loaded.get(f"models.tiers.{tier}"))}
    models: dict[str, str] = {}
    env: dict[str, str] = {}
    for role, name in named.items():
        models[role], needed = model_names.settle(home, loaded, name)
        env |= needed
    for name in dict.fromkeys(models.values()):
        model_names.check(home, loaded, name, env, str(Path.cwd()))
    return models, env


def _limits(loaded: Loaded) -> Limits:
    return Limits(
        max_subtasks=loaded["goal.max_subtasks"],
        max_attempts=loaded["goal.max_attempts"],
        max_replans=loaded["goal.max_replans"],
        min_confidence=float(loaded["goal.min_confidence"]),
        order_timeout_s=float(loaded["goal.order_timeout"]),
    )


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


def _umask() -> int:
    """Ours; asking means setting it for a moment, which is safe in a single thread."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _say_started(goal: str, as_json: bool) -> None:
    if as_json:
        printing.json_line({"event": "goal", "v": 1, "goal": goal})
    else:
        printing.line(goal)
        printing.note(f"follow it with: loom goal log -f {goal}")


def follow(home: Home, directory: GoalDir, as_json: bool) -> int:
    """Show a goal until it has ended; the exit status. Ctrl-C pauses it, anything else leaves it running."""
    follower = Follower(home, directory)
    if as_json:
        _say_started(directory.id, True)
    else:
        printing.note(f"goal {directory.id}")
    try:
        for event in follower.events():
            assert follower.state is not None
            if as_json:
                printing.json_line({"event": event.type, "seq": event.seq, "ts": event.ts, "data": dict(event.data)})
            elif (text := progress.describe(follower.state, event)) is not None:
                say = printing.error if progress.is_failure(event) else printing.note  # an error is said with -q too
                say(f"  {text}")
            # The last event of a batch decides: a landing that was asked for follows the completion at once.
            if event.seq == follower.state.seq and follower.is_over:
                return _finish(follower, directory, as_json)
    except KeyboardInterrupt:
        _pause(home, directory)
        printing.note(f"paused; go on with: loom goal resume {directory.id}")
        return exits.INTERRUPTED
    finally:
        follower.close()
    raise AssertionError("a follower does not end by itself")


def _finish(follower: Follower, directory: GoalDir, as_json: bool) -> int:
    state = follower.state
    assert state is not None
    text = progress.result(state, directory) if state.status == "completed" else ""
    status = exits.DONE if state.status == "completed" and state.landing in ("", "landed") else exits.FAILED
    if as_json:
        result: dict[str, Any] = {"event": "result", "goal": directory.id, "status": state.status}
        result |= {"reason": state.reason, "landing": state.landing, "exit_status": status, "result": text}
        printing.json_line(result)
        return status
    if text:
        printing.write(text)
    if state.status == "completed" and not state.landing and state.spec.source:
        printing.note(f"bring the result into {state.spec.source} with: loom goal land {directory.id}")
    if state.status != "completed":
        printing.note(f"what happened: loom goal log {directory.id}")
    return status


def _pause(home: Home, directory: GoalDir) -> None:
    stem = ids.message_stem(time.time_ns() // 1_000_000, os.urandom(10))
    goals.control(home, directory, stem, "pause", _user(), {})
    wake.ring(home.wake_fifo("router"))
