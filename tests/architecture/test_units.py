"""contrib/: systemd accepts the units, launchd's file is one, and every command in them is one of loom's."""

from __future__ import annotations

import configparser
import os
import plistlib
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from loom.cli.groups import load
from loom.cli.main import COMMANDS

CONTRIB = Path(__file__).parents[2] / "contrib"
UNITS = sorted((CONTRIB / "systemd").glob("*/*"))
PLISTS = sorted((CONTRIB / "launchd").glob("*.plist"))
PLACES = ("%h/.local/bin/loom", "/usr/local/bin/loom")  # where the units expect the command


def test_there_are_units():
    assert {path.suffix for path in UNITS} == {".service", ".timer"}
    assert PLISTS


@pytest.mark.parametrize("kind", ["user", "system"])
def test_systemd_accepts_them(kind: str, tmp_path: Path):
    """All of a kind together, so that timers find their services. The command itself is this checkout's."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("there is no systemd-analyze here (Debian: apt-get install systemd)")
    command = tmp_path / "loom"
    command.write_text(f"#!/bin/sh\nexec {sys.executable} -m loom\n")
    command.chmod(0o755)
    copies = []
    for path in (path for path in UNITS if path.parent.name == kind):
        text = path.read_text()
        for place in PLACES:
            text = text.replace(place, str(command))
        name = path.name.replace("@.", "@example.")  # an instance: a template cannot be checked
        (tmp_path / path.name).write_text(text)
        (tmp_path / name).write_text(text)
        copies.append(str(tmp_path / name))
    done = subprocess.run(
        ["systemd-analyze", f"--{kind}", "verify", "--man=no", *copies],
        capture_output=True,
        text=True,
        env={**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)},
        timeout=60,
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@pytest.mark.parametrize(
    "path", [p for p in UNITS if p.suffix == ".service"], ids=lambda p: f"{p.parent.name}/{p.name}"
)
def test_what_they_start_is_a_command_of_loom(path: Path):
    unit = _read(path)
    place, *words = shlex.split(unit["Service"]["ExecStart"])
    assert place in PLACES
    _is_command(words)


@pytest.mark.parametrize("kind", ["user", "system"])
def test_a_supervisor_that_finds_another_one_is_tried_until_that_has_gone(kind: str):
    """Which takes half a minute at least, and no start limit of systemd's may come before: docs/service.md says so."""
    unit = _read(CONTRIB / "systemd" / kind / "loom.service")
    assert unit["Service"]["Restart"] == "on-failure"
    assert "75" not in unit["Service"]["RestartPreventExitStatus"].split()
    interval_s, burst = float(unit["Unit"]["StartLimitIntervalSec"]), int(unit["Unit"].get("StartLimitBurst", "5"))
    assert interval_s == 0 or float(unit["Service"]["RestartSec"]) * burst > interval_s


def _read(path: Path) -> configparser.ConfigParser:
    unit = configparser.ConfigParser(interpolation=None, strict=False, delimiters=("=",))
    unit.optionxform = str  # type: ignore[assignment, method-assign]
    unit.read(path)
    return unit


@pytest.mark.parametrize("path", PLISTS, ids=lambda p: p.name)
def test_what_launchd_starts_is_a_command_of_loom(path: Path):
    job = plistlib.loads(path.read_bytes())
    assert job["Label"] == path.stem and job["ThrottleInterval"] >= 10
    _is_command(job["ProgramArguments"][1:])


def _is_command(words: list[str]) -> None:
    """It has these options and subcommands: click reads the line, and nothing is run."""
    words = [word for word in words if word != "-q"]
    command = load(COMMANDS[words[0]][0])
    context = command.make_context(words[0], words[1:], resilient_parsing=False)
    if hasattr(command, "get_command"):
        sub = command.get_command(context, words[1])
        sub.make_context(words[1], words[2:])
