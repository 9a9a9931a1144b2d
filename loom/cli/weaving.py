"""What `up`, `down`, `route`, `unroute` and `pipe create` share: loom.yml, routes, instances of pipes (docs/weave.md).

Whoever changes any of them holds `weave.lock`. Each change is a file replaced durably, in an order that leaves
something every crash can be gone on from: the same command given again finishes what the first one began.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from loom.cli.homes import is_reserved
from loom.core import routing
from loom.core.weave import Standing, parse
from loom.spool import agents, config, fs, locks, mailbox
from loom.spool.layout import AgentDir, Home, default_home
from loom.wire import ids
from loom.wire.agent import AgentSpec, Want
from loom.wire.errors import BadInput, Config, LoomError, NotFound, TryLater
from loom.wire.jsontext import Malformed, dumps, loads_object
from loom.wire.record import record
from loom.wire.settings import Override, encode_overrides
from loom.wire.weave import Operator, Route, Weave, decode_operators, encode_operators

NAMES = ("loom.yml", "loom.yaml")
PIPE = "pipe"  # the runner of an instance; it has no model, and says so
_MAX_BYTES = 4 << 20


@record
class Pipe:
    """A definition: its operators, where its commands run, and whose it is (empty: made by `loom pipe create`)."""

    operators: tuple[Operator, ...]
    cwd: str
    weave: str = ""


# -- the file ----------------------------------------------------------------------------------------------------


def find_file(given: str | None) -> Path:
    """`-f FILE`, else loom.yml or loom.yaml here, else in the home. Raises NotFound."""
    if given is not None:
        path = Path(given).absolute()
        if not path.is_file():
            raise NotFound(f"there is no file {given!r}")
        return path
    places = [Path.cwd() / name for name in NAMES] + [default_home(os.environ) / NAMES[0]]
    for path in places:
        if path.is_file():
            return path
    raise NotFound("there is no loom.yml here", hint="give one with -f FILE")


def read_file(path: Path) -> Weave:
    """The weave in a file. Raises Config with file and line, BadInput where it is no text."""
    try:
        text = fs.read(path.resolve(), _MAX_BYTES).decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadInput(f"{path} is not UTF-8 at byte {error.start}") from None
    except (fs.NotRegular, fs.TooLarge) as error:
        raise BadInput(f"{path} cannot be read: {error}") from None
    return parse(text, shown(path), path.parent.name.lower(), os.environ)


def shown(path: Path) -> str:
    """A file as errors name it: as it is seen from here."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def choose_home(weave: Weave, file: Path) -> None:
    """$LOOM_HOME and --home go before what the file says; a path in the file is one from its directory."""
    if weave.home and not os.environ.get("LOOM_HOME"):
        os.environ["LOOM_HOME"] = str((file.parent / Path(weave.home).expanduser()).absolute())


@contextmanager
def held(home: Home, *, wait: bool = False) -> Iterator[None]:
    """No other command changes weaves, routes or pipes meanwhile. Raises TryLater, unless it is to `wait`."""
    lock = locks.acquire(home.weave_lock, wait=wait)
    if lock is None:
        raise TryLater(f"another command changes the weaves of {home.path}", hint="let it end, then try again")
    with lock:
        yield


# -- what is there -----------------------------------------------------------------------------------------------


def standing(home: Home) -> dict[str, Standing]:
    """The agents of a home but loom's own, by name. One whose agent.json cannot be read belongs to nobody."""
    found = {}
    for agent in agents.each(home):
        if not is_reserved(agent.name):
            weave = _weave_of(agent)
            wanted = agents.read_want(agent) in ("up", "demand")
            found[agent.name] = Standing(weave["name"], weave["digest"], wanted, weave["file"])
    return found


def _weave_of(agent: AgentDir) -> dict[str, str]:
    try:
        raw = agents.read_spec(agent).rest.get("weave")
    except LoomError:
        raw = None
    return {key: str(raw.get(key, "")) if isinstance(raw, Mapping) else "" for key in ("name", "digest", "file")}


def weave_of_instance(home: Home, name: str) -> str:
    return _weave_of(home.agent(name))["name"]


def routes(home: Home) -> list[Route]:
    """All routes. Raises Config when routes.json cannot be followed."""
    try:
        raw = loads_object(fs.read(home.routes, 16 << 20))
    except FileNotFoundError:
        return []
    except (Malformed, fs.NotRegular, fs.TooLarge) as error:
        raise Config(f"{home.routes} cannot be read: {error}") from None
    return list(routing.read(raw, str(home.routes)))


def missing(home: Home, one: Route) -> str:
    """The first of those along a route that is no agent; empty when all are."""
    along = (one.source, routing.end_of(one), one.to)
    return next((name for name in along if not ids.is_mailbox(name) or not home.agent(name).spec.exists()), "")


def pipes(home: Home) -> dict[str, Pipe]:
    """All definitions, by name; a directory without one is no pipe yet. Raises Config where one cannot be read."""
    try:
        names = sorted(name for name in os.listdir(home.pipes) if ids.is_agent(name))
    except FileNotFoundError:
        return {}
    return {name: read_pipe(home, name) for name in names if home.pipe(name).exists()}


def read_pipe(home: Home, name: str) -> Pipe:
    path = home.pipe(name)
    try:
        raw = loads_object(fs.read(path, _MAX_BYTES))
    except (FileNotFoundError, Malformed, fs.NotRegular, fs.TooLarge) as error:
        raise Config(f"{path} cannot be read: {error}", hint="make it again: loom pipe create") from None
    return Pipe(decode_operators(raw.get("operators"), str(path)), str(raw.get("cwd", "")), str(raw.get("weave", "")))


# -- changes -----------------------------------------------------------------------------------------------------


def write_routes(home: Home, found: Iterable[Route]) -> None:
    """The router reads the new ones with its next message. Nothing is written that is there already."""
    data = routing.encode(found)
    try:
        if fs.read(home.routes, 16 << 20) == data:
            return
    except (FileNotFoundError, fs.NotRegular, fs.TooLarge):
        pass
    fs.replace(home.routes, data)


def write_overrides(home: Home, found: Sequence[Override]) -> None:
    """The settings that weaves say from now on. Nothing is written that is there already."""
    if tuple(found) != config.read_overrides(home):
        fs.replace(home.overrides, dumps({"v": 1, "settings": encode_overrides(found)}) + b"\n")


def take_back_overrides(home: Home, weave: str) -> list[str]:
    """A weave says nothing more; the keys that it had set."""
    standing = config.read_overrides(home)
    write_overrides(home, [one for one in standing if one.weave != weave])
    return [one.key for one in standing if one.weave == weave]


def write_pipe(home: Home, name: str, pipe: Pipe) -> None:
    path = home.pipe(name)
    fs.ensure_dir(path.parent)
    raw = {"v": 1, "operators": encode_operators(pipe.operators), "cwd": pipe.cwd, "weave": pipe.weave}
    fs.replace(path, dumps(raw) + b"\n")


def write_instance(home: Home, route: Route, pipe: Pipe) -> bool:
    """The instance of a route's pipe, wanted up. False: it was there with these operators."""
    agent = home.agent(routing.end_of(route))
    spec = AgentSpec(
        name=agent.name,
        model=PIPE,
        runner=PIPE,
        options={"operators": encode_operators(pipe.operators), "cwd": pipe.cwd},
        rest={"weave": {"name": route.weave}},
    )
    try:
        same = agents.read_spec(agent) == spec
    except LoomError:
        same = False
    if not same:
        agents.create(home, spec, "", "up")
    elif agents.read_want(agent) != "up":
        agents.write_want(agent, "up")
    return not same


def want(agent: AgentDir, word: Want) -> None:
    """Write `want` only where it says something else: writing it is asking."""
    if agents.read_want(agent) != word:
        agents.write_want(agent, word)


def waiting(home: Home, names: Iterable[str]) -> int:
    """Messages that these agents have not finished."""
    count = 0
    for name in names:
        agent = home.agent(name)
        if agent.inbox.is_dir():
            count += agents.waiting(agent) + len(mailbox.in_progress(agent))
    return count


def told(name: str, **fields: Any) -> dict[str, Any]:
    """The first line of --json."""
    return {"v": 1, "weave": name, **fields}
