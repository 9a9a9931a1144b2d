"""From a command line to an exit status: help, wrong words, and what becomes of an error."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from importlib.util import find_spec

import click
import pytest
from cli_user import Loom

from loom.cli.groups import LazyGroup, load
from loom.cli.main import COMMANDS
from loom.cli.words import ELSEWHERE

ECHO = ("agent", "start", "x", "--model", "builtin/echo")


def test_the_version_is_one_line(loom: Loom) -> None:
    said = loom("--version")
    assert (said.status, said.err) == (0, "")
    assert said.out.startswith("loom 0.")


@pytest.mark.parametrize("words", [(), ("--help",), ("-h",), ("help",)])
def test_help_lists_every_command_with_its_line(loom: Loom, words: tuple[str, ...]) -> None:
    said = loom(*words)
    assert (said.status, said.err) == (0, "")
    for name, (_, text) in COMMANDS.items():
        assert f"  {name} " in said.out and text in said.out


def test_help_of_a_command_is_its_own_help(loom: Loom) -> None:
    said = loom("agent", "start", "--help")
    assert said.status == 0 and said == loom("help", "agent", "start") == loom("agent", "start", "-h")


def test_a_message_without_text_says_that_there_is_nothing_to_send(loom: Loom) -> None:
    said = loom("send", "worker")
    assert (said.status, said.err) == (65, "loom: stdin is empty; there is nothing to send\n")


@pytest.mark.parametrize("words", sorted({meant.removeprefix("loom ") for meant in ELSEWHERE.values()}))
def test_what_is_proposed_exists(loom: Loom, words: str) -> None:
    assert loom(*words.split(), "--help").status == 0


def commands() -> list[tuple[str, click.Command]]:
    """Every command that is there, groups opened."""
    found: list[tuple[str, click.Command]] = []
    for name, (module, _) in COMMANDS.items():
        if find_spec(module) is None:
            continue
        command = load(module)
        found.append((name, command))
        if isinstance(command, LazyGroup):
            found += [(f"{name} {sub}", load(target)) for sub, (target, _) in command.table.items()]
    return found


@pytest.mark.parametrize("name, command", commands())
def test_every_command_and_every_option_has_a_help_text(name: str, command: click.Command) -> None:
    assert command.help or isinstance(command, click.Group)
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, f"{name} {parameter.opts}"


@pytest.mark.parametrize(
    "words, hint",
    [
        (("agnet",), "did you mean 'agent'?"),
        (("playbook",), "not part of this version"),
        (("agent", "strat"), "did you mean 'start'?"),
        (("agent",), "see: loom agent --help"),
        (("agent", "start", "x", "--modle", "y"), "--model"),
        (("agent", "start"), "'NAME'"),
        (("agent", "start", "x", "--restart", "sometimes"), "on-failure"),
        (("agent", "start", "x", "--max-input", "many"), "--max-input"),
        (("--homes", "/"), "see: loom help"),
        (("--home",), "needs a directory"),
        (("send",), "'NAME'"),
        (("agent", "start", "a", "--prompt"), "requires an argument; see: loom agent start --help"),
        (("run", "-q", "hi"), "it stands before the command: loom -q run …"),
        (("agent", "ps", "--home", "/x"), "it stands before the command: loom --home agent ps …"),
        (("agent", "logs", "x", "-n", "x"), "'x' is not a whole number"),
        (("agent", "stop", "x", "--timeout", "soon"), "'soon' is not a duration in seconds"),
        (("ps",), "did you mean 'loom agent ps'?"),
        (("start",), "did you mean 'loom agent start'?"),
        (("status",), "did you mean 'loom supervisor status'?"),
        (("version",), "did you mean 'loom --version'?"),
        (("agent", "list"), "did you mean 'loom agent ps'?"),
        (("agent", "kill", "a"), "did you mean 'loom agent stop'?"),
        (("supervisor", "restart"), "did you mean 'loom supervisor stop'?"),
        (("run", "--budget", "3"), "'--budget' is planned and not part of this version"),
        (("goal", "steer"), "'goal steer' is planned and not part of this version"),
        (("agent", "start", "a", "--budget", "3"), "no such option '--budget'"),
        (("send", "x", "a", "b"), "unexpected extra argument"),
    ],
)
def test_a_wrong_word_is_one_line_and_status_2(loom: Loom, words: tuple[str, ...], hint: str) -> None:
    said = loom(*words)
    assert (said.status, said.out) == (2, "")
    assert said.err.startswith("loom: ") and said.err.count("\n") == 1
    assert hint in said.err
    assert not loom.home.exists()


def test_with_json_the_last_line_of_stdout_is_the_error(loom: Loom) -> None:
    loom.make_home()
    said = loom("agent", "show", "nobody", "--json")
    (last,) = said.objects
    assert last["event"] == "error"
    assert last["error"]["type"] == "not_found"
    assert last["error"]["exit_status"] == said.status == 66
    assert "nobody" in last["error"]["message"] and last["error"]["hint"]
    assert said.err.count("\n") == 1


def test_json_behind_a_double_dash_is_no_option(loom: Loom) -> None:
    assert loom("agent", "show", "--", "--json").out == ""


def test_debug_adds_the_traceback(loom: Loom) -> None:
    plain, debug = loom("agent", "show", "nobody"), loom("--debug", "agent", "show", "nobody")
    assert "Traceback" not in plain.err
    assert "Traceback" in debug.err and debug.err.endswith(plain.err)
    assert debug.status == plain.status == 66


def test_home_wins_over_the_variable(loom: Loom) -> None:
    assert loom("--home", "elsewhere", *ECHO, "--prompt", "hi").out == "hi\n"
    assert not loom.home.exists()
    assert (loom.place / "elsewhere" / "version").exists()


def test_quiet_says_only_errors(loom: Loom) -> None:
    assert "stored" in loom("secret", "set", "k", stdin="v").err
    assert loom("-q", "secret", "set", "k", stdin="v").err == ""
    assert loom("-q", "secret", "rm", "nothing").err.startswith("loom: ")


FAILS = """
import os
from loom.wire.errors import Budget

def cli_call():
    {raises}

class Command:
    def make_context(self, name, args, **extra):
        import contextlib
        return contextlib.nullcontext(self)
    def invoke(self, context):
        cli_call()

cli = Command()
"""
MAIN = "import sys, loom.cli.main as m; m.COMMANDS['fails'] = ('fails', ''); sys.exit(m.main(sys.argv[1:]))"


def run_failing(loom: Loom, raises: str, *args: str) -> subprocess.CompletedProcess[str]:
    (loom.place / "fails.py").write_text(FAILS.format(raises=raises))
    env = {**loom.env, "PYTHONPATH": f"{loom.env['PYTHONPATH']}:{loom.place}"}
    command = [sys.executable, "-c", MAIN, *args]
    return subprocess.run(command, capture_output=True, text=True, env=env, timeout=30, check=False)


@pytest.mark.parametrize(
    "raises, status, line",
    [
        ("raise Budget('spent', hint='earn')", 79, "loom: spent; earn\n"),
        ("raise OSError(28, 'No space left on device', '/f')", 74, "No space left on device (/f); free some space"),
        ("raise KeyError('x')", 70, "loom: KeyError: 'x'; this is a bug of loom"),
        ("raise KeyboardInterrupt", 130, ""),
        ("os.kill(os.getpid(), 15)", 143, ""),
        ("raise BrokenPipeError(32, 'Broken pipe')", 0, ""),
    ],
)
def test_what_went_wrong_becomes_a_line_and_a_status(loom: Loom, raises: str, status: int, line: str) -> None:
    done = run_failing(loom, raises, "fails")
    assert done.returncode == status
    assert line in done.stderr
    assert done.stderr.count("\n") == (1 if line else 0)


def test_a_bug_shows_its_traceback_with_debug_and_its_object_with_json(loom: Loom) -> None:
    done = run_failing(loom, "raise KeyError('x')", "--debug", "fails", "--json")
    assert "Traceback" in done.stderr
    assert '"type":"bug"' in done.stdout.splitlines()[-1]


def test_a_reader_that_leaves_ends_it_quietly(loom: Loom) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    process = loom.start("help", stdout=writer)
    os.close(writer)
    _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (0, b"")


@pytest.mark.parametrize("number, status", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_follower_with_its_status(loom: Loom, number: int, status: int) -> None:
    loom(*ECHO, "--prompt", "hi")
    process = loom.start("agent", "logs", "x", "-f")
    assert process.stdout is not None and process.stdout.readline()
    process.send_signal(number)
    _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (status, b"")
