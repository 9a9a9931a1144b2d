"""What the supervisor reads and writes about one agent, without processes."""

from __future__ import annotations

from pathlib import Path

import pytest

from loom.core.supervision import Exit
from loom.daemons.charge import Charge, Process, exit_text
from loom.daemons.programs import command_of
from loom.spool import agents, fs
from loom.spool.home import open_home
from loom.spool.layout import programs_dir
from loom.wire.agent import AgentSpec
from loom.wire.errors import Config


@pytest.fixture
def charge(tmp_path: Path) -> Charge:
    home = open_home(tmp_path / "home")
    agents.create(home, AgentSpec(name="a", model="builtin"), "", "up")
    charge = Charge(home, "a")
    charge.refresh("", 0.0)
    charge.met = True
    return charge


@pytest.mark.parametrize(
    "noted, exit_",
    [
        ("75 12.345 2026-01-01T00:00:00.000000Z", Exit(code=75)),
        ("75 12.346 2026-01-01T00:00:00.000000Z", Exit()),  # of another incarnation
        ("SIGKILL 12.345 2026-01-01T00:00:00.000000Z", Exit()),
        ("", Exit()),
    ],
)
def test_what_a_runner_noted_itself_counts_when_it_is_of_this_incarnation(
    charge: Charge, noted: str, exit_: Exit
) -> None:
    fs.hint(charge.agent.last_exit, noted)
    assert charge.noted_exit(Process(12, 345, -1, False)) == exit_


@pytest.mark.parametrize(
    "exit_, text",
    [(Exit(0), "0"), (Exit(signal=9), "SIGKILL"), (Exit(signal=63), "SIG63"), (Exit(), "unknown")],
)
def test_an_exit_in_one_word(exit_: Exit, text: str) -> None:
    assert exit_text(exit_) == text


def test_an_empty_want_is_one_that_is_being_written(charge: Charge) -> None:
    """`echo down > want` empties the file first: until it is clear what was meant, what was wanted holds."""
    charge.agent.want.write_text("")
    charge.refresh("", 100.0)
    assert charge.wanted.want == "up" and charge.recheck_s is not None
    charge.agent.want.write_text("down\n")
    charge.refresh("", 100.1)
    assert charge.wanted.want == "down" and charge.recheck_s is None


def test_tokens_change_with_what_they_stand_for(charge: Charge) -> None:
    first = charge.wanted
    charge.refresh("", 0.0)
    assert charge.wanted == first
    charge.refresh("other settings", 0.0)
    assert charge.wanted.settings != first.settings
    agents.write_want(charge.agent, "up")
    charge.refresh("", 0.0)
    assert charge.wanted.asked != first.asked and charge.wanted.spec == first.spec
    fs.replace(charge.agent.prompt, b"Be brief.")
    charge.refresh("", 0.0)
    assert charge.wanted.spec != first.spec


def test_a_broken_spec_keeps_what_was_known(charge: Charge) -> None:
    fs.replace(charge.agent.spec, b"{")
    charge.refresh("", 0.0)
    assert charge.wanted.broken and charge.wanted.want == "up" and charge.runner == "agent"
    fs.remove(charge.agent.spec)
    charge.refresh("", 0.0)
    assert charge.absent and charge.wanted.want == "down" and not charge.wanted.broken


def test_a_command_is_an_absolute_path_or_a_shipped_runner(tmp_path: Path) -> None:
    program = tmp_path / "program"
    program.touch()
    assert command_of(str(program), tmp_path) == (str(program), str(tmp_path))
    for runner in ("../tools/run-shell", "./x", "no-such-runner", str(tmp_path / "missing"), ".hidden"):
        with pytest.raises(Config):
            command_of(runner, tmp_path)
    shipped = programs_dir("runners") / "agent"
    if shipped.exists():
        assert command_of("agent", tmp_path)[1:] == (str(shipped), str(tmp_path))
