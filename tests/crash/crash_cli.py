"""The commands that write, as cases for the harness: each as a person types it, killed anywhere, typed again.

A supervisor, which some of them would start, is another process; in its place the router and the pool have a turn, or
nobody.
"""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import crash_goal
from crash_cases import copies, letter, lines_whole, stem, tidy
from crash_far_side import far_side, plain_files, swapped
from crash_goal import GOAL, Company
from crash_processes import ENV, at_home, said, typed
from harness import Case, undisturbed

from loom.cli import agent_stop, detach, ensure, following, up, weaving
from loom.core.goal import reduce as reducing
from loom.core.routing import end_of
from loom.spool import agents, bodies, fs, goals, mailbox, schedules
from loom.spool.home import open_home
from loom.spool.layout import Home
from loom.wire import exits, ids, message
from loom.wire.agent import AgentSpec
from loom.wire.schedule import Slots

AGENT = "worker"


@contextlib.contextmanager
def _served_by(serve: Callable[[Home], object]) -> Iterator[None]:
    """What happens when a command makes sure that a supervisor runs."""
    with contextlib.ExitStack() as swaps:
        for module in (ensure, detach, agent_stop, following, up):
            swaps.enter_context(swapped(module, "ensure_supervisor", serve))
        yield


def _typed(root: Path, *words: str, ends: tuple[int, ...] = (exits.DONE,)) -> int:
    with at_home(root), _served_by(lambda home: None):
        status = typed(root, *words)
    assert status in ends, f"{words} ended with {status}"
    return status


def _agent_setup(root: Path) -> None:
    home = open_home(root / "home", ENV)
    agents.create(home, AgentSpec(AGENT, "builtin/echo"), "You are a test.", "up")


def _commands(*commands: tuple[str, ...], again: tuple[int, ...] = ()) -> tuple[Callable[[Path], None], ...]:
    """(what is disturbed, what repeats it): the same commands; `again` are further statuses of repeated ones."""

    def run(root: Path, ends: tuple[int, ...] = (exits.DONE,)) -> None:
        for words in commands:
            _typed(root, *words, ends=ends)

    return run, partial(run, ends=(exits.DONE, *again))


def _is_whole_agent(root: Path) -> None:
    """No agent, or one with all that belongs to it: never half of one."""
    home = Home(root / "home")
    tidy(home.path)
    box = home.agent(AGENT)
    if box.spec.exists():
        agents.read_spec(box)
        assert (box.path / "want").read_text() in ("up\n", "down\n"), "a half-written want"
        assert all(directory.is_dir() for directory in box.directories()), "an agent without a mailbox"
        assert box.prompt.exists(), "an agent without its prompt"


# -- send ------------------------------------------------------------------------------------------------------

_LONG = "long " * 300_000
_SENT = {stem(1): "short", stem(2): _LONG}


def _sent_is_there(root: Path) -> None:
    home = Home(root / "home")
    tidy(home.path)
    box = home.agent(AGENT)
    for name in said(root):
        raw = (box.inbox / f"{name}.msg").read_bytes()
        found = message.decode(raw, name)
        assert bodies.text(home.blobs, found) == _SENT[name], f"{name} holds something else"


def _sent_once(root: Path) -> None:
    _sent_is_there(root)
    box = Home(root / "home").agent(AGENT)
    assert set(said(root)) == set(_SENT)
    assert sorted(n for n in os.listdir(box.inbox) if n.endswith(".msg")) == [f"{name}.msg" for name in sorted(_SENT)]


def _sending(root: Path) -> None:
    for name in _SENT:
        (root / "text").write_text(_SENT[name])
        _typed(root, "send", AGENT, "--file", str(root / "text"), "--name", name)


_send = Case("loom send", _agent_setup, _sending, _sending, _sent_once, _sent_is_there, process="send")


# -- weaves ----------------------------------------------------------------------------------------------------

_WEAVE = """\
version: 1
name: try
pipes: {pair: [{operator: window, size: 2}]}
agents:
  - {name: a, model: builtin/echo, memory: {style: short}}
  - {name: b, model: builtin/echo, from: [{agent: a}]}
"""
_WOVEN = _WEAVE.replace(
    "{name: b, model: builtin/echo, from: [{agent: a}]}",
    "{name: c, model: builtin/echo, replicas: 2, scale: to-zero, from: [{agent: a, pipe: pair}]}",
)
_WOVEN = _WOVEN.replace("memory:", "system: Be short., memory:")  # fmt: skip


def _weave_setup(root: Path) -> None:
    open_home(root / "home", ENV)


def _weaving(root: Path) -> None:
    """A weave is brought up, changed and brought up again."""
    for text in (_WEAVE, _WOVEN):
        (root / "loom.yml").write_text(text)
        _typed(root, "up", "-d", "-f", str(root / "loom.yml"))


def _half_woven(root: Path) -> None:
    """Whoever is wanted is whole, and no route leads to somebody who does not exist."""
    home = Home(root / "home")
    tidy(home.path)
    for box in agents.each(home):
        agents.read_spec(box)
        assert (box.path / "want").read_text() in ("up\n", "down\n", "demand\n"), f"half a want of {box.name}"
        assert all(directory.is_dir() for directory in box.directories()), f"{box.name} has no mailbox"
    for route in weaving.routes(home):
        assert home.agent(end_of(route)).spec.exists() and home.agent(route.to).spec.exists(), route


def _woven(root: Path) -> None:
    _half_woven(root)
    home = Home(root / "home")
    wants = {box.name: agents.read_want(box) for box in agents.each(home)}
    assert wants == {"a": "up", "b": "down", "c-1": "up", "c-2": "up", "pair~a→c": "up"}, wants
    assert [(r.source, r.to, r.pipe, r.share) for r in weaving.routes(home)] == [
        ("a", "c-1", "pair", "c"), ("a", "c-2", "pair", "c")
    ]  # fmt: skip
    assert home.agent("a").prompt.read_text() == "Be short."
    assert (home.agent("a").path / "memory" / "style.md").read_text() == "short"
    assert weaving.read_pipe(home, "pair").weave == "try"


_up = Case("loom up", _weave_setup, _weaving, _weaving, _woven, _half_woven, process="up")


# -- agents ----------------------------------------------------------------------------------------------------


def _is(root: Path, model: str, prompt: str, want: str) -> None:
    _is_whole_agent(root)
    box = Home(root / "home").agent(AGENT)
    assert agents.read_spec(box).model == model
    assert box.prompt.read_text() == prompt
    assert agents.read_want(box) == want
    plain_files(box.path)


_START = ("agent", "start", AGENT, "--model", "builtin/echo", "--system", "You are a test.", "--detach")
_REPLACE = ("agent", "start", AGENT, "--model", "builtin/extract", "--system", "Another.", "--detach", "--replace")


def _start_case() -> Case:
    run, again = _commands(_START)
    check = partial(_is, model="builtin/echo", prompt="You are a test.", want="up")

    def setup(root: Path) -> None:
        open_home(root / "home", ENV)

    return Case("loom agent start", setup, run, again, check, _is_whole_agent, process="agent start")


def _replace_case() -> Case:
    run, again = _commands(_REPLACE)
    check = partial(_is, model="builtin/extract", prompt="Another.", want="up")
    return Case("loom agent start --replace", _agent_setup, run, again, check, _is_one_of_both, process="agent start")


def _is_one_of_both(root: Path) -> None:
    """An agent that is wanted has the spec and the prompt it had, or both new ones."""
    _is_whole_agent(root)
    box = Home(root / "home").agent(AGENT)
    found = agents.read_want(box), agents.read_spec(box).model, box.prompt.read_text()
    whole = (("builtin/echo", "You are a test."), ("builtin/extract", "Another."))
    assert found[0] == "down" or found[1:] in whole, f"half of a change is at work: {found}"


def _stop_case() -> Case:
    run, again = _commands(("agent", "stop", AGENT))
    check = partial(_is, model="builtin/echo", prompt="You are a test.", want="down")
    return Case("loom agent stop", _agent_setup, run, again, check, _is_whole_agent, process="agent stop")


def _failed_setup(root: Path) -> None:
    """Two failed messages; whoever failed the second was killed before it wrote why."""
    _agent_setup(root)
    box = Home(root / "home").agent(AGENT)
    for number in (1, 2):
        mailbox.deliver(box, *letter(number, "bad"))
        claimed = mailbox.Inbox(box).claim()
        assert claimed is not None
        name, reply = message.reply_to(claimed.message, claimed.stem, AGENT, 0, "bad", 1, error=True)
        mailbox.answer(box, name, reply)
        mailbox.fail(box, claimed.stem, 0, error_type="bad", last_error="bad", hint="", ts="now")
    box.error_of(stem(2)).unlink()


def _in_one_place(root: Path) -> None:
    tidy(root / "home")
    box = Home(root / "home").agent(AGENT)
    for number in (1, 2):
        assert len(copies(box, stem(number))) == 1, f"{stem(number)} stands in {copies(box, stem(number))}"


def _retried(root: Path) -> None:
    _in_one_place(root)
    box = Home(root / "home").agent(AGENT)
    for number in (1, 2):
        assert copies(box, stem(number)) == ["inbox"]
        assert mailbox.attempts(box, stem(number)) == 1, "it would fail again at the first look"


def _retry_case() -> Case:
    run, again = _commands(("agent", "retry", AGENT))
    return Case("loom agent retry", _failed_setup, run, again, _retried, _in_one_place, process="agent retry")


def _mail_setup(root: Path) -> None:
    _agent_setup(root)
    mailbox.deliver(Home(root / "home").agent(AGENT), *letter(1, "mail"))


def _all_or_nothing(root: Path) -> None:
    """There is no such agent, or all of it."""
    _is_whole_agent(root)
    box = Home(root / "home").agent(AGENT)
    if box.path.exists():
        assert box.spec.exists() and copies(box, stem(1)) == ["inbox"], "half an agent"


def _removed(root: Path) -> None:
    _all_or_nothing(root)
    home = Home(root / "home")
    assert not home.agent(AGENT).path.exists()
    assert {p.name for p in home.agents.iterdir()} <= {fs.TMP}


def _rm_case() -> Case:
    run, again = _commands(("agent", "rm", AGENT, "--force"), again=(exits.NOT_FOUND,))
    return Case("loom agent rm", _mail_setup, run, again, _removed, _all_or_nothing, process="agent rm")


# -- schedules -------------------------------------------------------------------------------------------------


def _schedule_setup(root: Path) -> None:
    _agent_setup(root)
    home = Home(root / "home")
    place = home.schedule("tick")
    fs.ensure_dir(place.logs)
    place.definition.write_text(f"every: 1h\nto: {AGENT}\nbody: x\n")
    (place.logs / "2026-01-01.ndjson").write_text("{}\n")
    schedules.write_slots(place, Slots(1_800_000_000))


def _no_slots_without_their_job(root: Path) -> None:
    """A new job of that name would go on with them."""
    tidy(root / "home")
    place = Home(root / "home").schedule("tick")
    assert place.definition.exists() or not place.slots.exists(), "slots without their job"


def _unscheduled(root: Path) -> None:
    home = Home(root / "home")
    assert {path.name for path in home.schedules.iterdir()} <= {fs.TMP}


def _schedule_rm_case() -> Case:
    run, again = _commands(("schedule", "rm", "tick"), again=(exits.NOT_FOUND,))
    oracle = _no_slots_without_their_job
    return Case("loom schedule rm", _schedule_setup, run, again, _unscheduled, oracle, process="schedule")


SCHEDULE_RM = _schedule_rm_case()


# -- goals -----------------------------------------------------------------------------------------------------


def _run_setup(root: Path) -> None:
    open_home(root / "home", ENV)
    (root / "source").mkdir()


def _run(root: Path) -> None:
    command = ("run", "a test", "-w", str(root / "source"), "--model", "builtin", "--detach")
    _typed(root, *command)


def _goals_whole(root: Path) -> None:
    home = Home(root / "home")
    tidy(home.path)
    for name in goals.names(home):
        goal = home.goal(name)
        assert goals.read_spec(goal).text == "a test" and goal.control.is_dir(), f"half a goal: {name}"
    assert set(said(root)) <= set(goals.names(home)), "a goal that was accepted is gone"


def _goal_made(root: Path) -> None:
    _goals_whole(root)
    assert said(root)


def _router_turn(home: Home) -> None:
    """The router looks once, and is gone."""
    with undisturbed():
        router = crash_goal._router(home.path)
        try:
            router.recover()
        finally:
            router.close()


def _control(root: Path, verbs: tuple[str, ...], serve: Callable[[Home], object], again: bool) -> None:
    os.chdir(root)
    os.environ |= {"LOOM_HOME": "home", "LOOM_LOG": "error", **ENV}
    with _served_by(serve):
        for verb in verbs:
            status = typed(root, "goal", verb, GOAL)
            assert status == exits.DONE or (again and status == exits.FAILED), f"{verb} ended with {status}"


def _controlled(root: Path, status: str) -> None:
    os.chdir(root)
    home = Home(Path("home"))
    _router_turn(home)  # what was asked for and not yet heard
    tidy(home.path)
    lines_whole(home.path)
    assert not goals.controls(home.goal(GOAL)), "a request is left lying"
    happened = crash_goal.events(root)
    causes = Counter(e.cause for e in happened if ids.is_stem(e.cause))
    assert set(causes.values()) <= {1}, f"a request was heard twice: {causes}"
    state = reducing.fold(happened)
    assert state.status == status, (state.status, state.reason)


def _control_case() -> Case:
    run = partial(_control, verbs=("pause", "resume", "cancel"), serve=_router_turn, again=False)
    recover = partial(_control, verbs=("pause", "resume", "cancel"), serve=_router_turn, again=True)
    check = partial(_controlled, status="cancelled")
    return Case("loom goal pause, resume, cancel", crash_goal._setup, run, recover, check, process="goal control")


def _finished_setup(root: Path) -> None:
    crash_goal._setup(root, land=False)
    crash_goal._play(root, setbacks=False)
    for fifo in (root / "home" / "run" / "wake").iterdir():
        fifo.unlink()  # a copied directory may hold none


def _company_turns(home: Home) -> None:
    """Router and pool work until the goal rests again."""
    root = Path.cwd()
    with undisturbed(), far_side(root, partial(crash_goal._says, root=root, setbacks=False)):
        company = Company(home.path)
        try:
            company.play()
        finally:
            company.close()


def _landed(root: Path) -> None:
    _controlled(root, "completed")
    state = reducing.fold(crash_goal.events(root))
    assert state.landing == "landed", state.landing
    crash_goal._result(root, Home(root / "home"))


def _land_case() -> Case:
    run = partial(_control, verbs=("land",), serve=_company_turns, again=False)
    recover = partial(_control, verbs=("land",), serve=_company_turns, again=True)
    return Case("loom goal land", _finished_setup, run, recover, _landed, process="goal control")


CLI = (
    _send,
    _start_case(),
    _replace_case(),
    _stop_case(),
    _retry_case(),
    _rm_case(),
    SCHEDULE_RM,
    Case("loom run", _run_setup, _run, _run, _goal_made, _goals_whole, process="run"),
    _control_case(),
    _land_case(),
    _up,
)
