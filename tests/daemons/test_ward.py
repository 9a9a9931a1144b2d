"""Thousands of agents: whoever is heard of is looked at before those of whom nothing was heard."""

from __future__ import annotations

from pathlib import Path

import pytest

from loom.core.supervision import Limits
from loom.daemons.ward import Ward
from loom.spool import agents
from loom.spool.home import open_home
from loom.spool.layout import Home
from loom.wire.agent import AgentSpec

COUNT = 100


class Silent:
    """A loop that hears nothing."""

    def listen(self, fd: int, handler: object) -> None: ...
    def unlisten(self, fd: int) -> None: ...
    def children(self) -> list[int]: ...
    def say(self, level: str, event: str, **fields: object) -> None: ...


class NoHands:
    """Nobody runs, and nobody is started."""

    def adopt(self, charge: object) -> None: ...
    def sweep(self, name: str) -> None: ...


@pytest.fixture
def home(tmp_path: Path) -> Home:
    home = open_home(tmp_path / "home")
    for number in range(COUNT):
        agents.create(home, AgentSpec(name=f"a{number}", model="builtin"), "", "demand")
    return home


@pytest.fixture
def ward(home: Home) -> Ward:
    made = Ward(home, NoHands(), {}, Limits(), Silent())  # type: ignore[arg-type]
    made.find()
    for name in list(made.dirty):
        made.serve(made.charges[name])
    made.dirty.clear()
    return made


def test_a_sweep_comes_in_slices_and_reaches_everybody_once(ward: Ward) -> None:
    ward.look_at_all()
    assert ward.dirty == set()
    seen: list[str] = []
    while names := ward.next_unhurried(7):
        assert len(names) <= 7
        seen += names
    assert sorted(seen) == sorted(ward.charges)


def test_one_new_directory_is_taken_in_without_listing_the_others(ward: Ward, home: Home) -> None:
    agents.create(home, AgentSpec(name="late", model="builtin"), "", "demand")
    (home.agents / "file").write_text("no agent")
    assert ward.take_in("late") is ward.charges["late"] and ward.dirty == {"late"}
    assert ward.take_in("file") is None and ward.take_in("never-there") is None and ward.take_in(".tmp") is None


def test_whether_it_is_needed_is_known_without_reading_and_read_anew_at_the_end(ward: Ward, home: Home) -> None:
    assert not ward.is_needed(but="router", anew=True)
    agents.write_want(home.agent("a7"), "up")
    assert not ward.is_needed(but="router")
    assert ward.is_needed(but="router", anew=True) and not ward.is_needed(but="a7", anew=True)
