"""`loom completion`: what a shell asks, and what a real bash makes of the answers."""

from __future__ import annotations

import shutil
import subprocess

import pytest
from cli_user import Loom


def could_be(loom: Loom, *words: str) -> set[str]:
    """What may stand in place of the last word, as bash asks for it."""
    told = {"COMP_WORDS": " ".join(words), "COMP_CWORD": str(len(words) - 1), "_LOOM_COMPLETE": "bash_complete"}
    said = loom(**told)
    assert said.status == 0 and said.err == "", said
    return {line.partition(",")[2] for line in said.out.splitlines() if line}


def test_commands_and_options(loom: Loom):
    assert could_be(loom, "loom", "sch") == {"schedule"}
    assert could_be(loom, "loom", "schedule", "r") == {"rm", "run-due"}
    assert "--catch-up" in could_be(loom, "loom", "schedule", "add", "--c")
    assert could_be(loom, "loom", "schedule", "add", "--overlap", "s") == {"skip"}
    assert could_be(loom, "loom", "-q", "--home", "x", "agent", "st") == {"start", "stop"}
    assert could_be(loom, "loom", "nonsense", "x") == set()
    assert not loom.home.exists(), "asking makes no home"


def test_names_of_what_is_in_the_home(loom: Loom):
    loom("agent", "start", "worker", "--model", "builtin/echo", "--detach")
    loom("schedule", "add", "nightly", "--every", "1d", "--to", "worker", "--body", "x")
    loom("secret", "set", "openai", stdin="sk-none")
    assert could_be(loom, "loom", "send", "wo") == {"worker"}
    assert could_be(loom, "loom", "agent", "stop", "") >= {"worker", "router"}
    assert could_be(loom, "loom", "schedule", "show", "") == {"nightly"}
    assert could_be(loom, "loom", "secret", "rm", "o") == {"openai"}


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_is_one_of_its_shell(loom: Loom, shell: str):
    script = loom("completion", shell).out
    assert "_LOOM_COMPLETE" in script
    if shutil.which(shell) is None:
        pytest.skip(f"there is no {shell} here")
    path = loom.place / "script"
    path.write_text(script)
    assert subprocess.run([shell, "-n", str(path)], timeout=60).returncode == 0


def test_bash_completes_with_it(loom: Loom):
    said = loom.shell(
        """bash --norc -c 'eval "$(loom completion bash)"; COMP_WORDS=(loom sched); COMP_CWORD=1
        _loom_completion loom sched loom; echo "${COMPREPLY[@]}"; complete -p loom'"""
    )
    assert said.out.splitlines()[0] == "schedule" and "_loom_completion" in said.out, said


def test_a_question_that_is_none_has_no_answer(loom: Loom):
    assert loom(_LOOM_COMPLETE="rubbish").status == 1
    assert loom("completion", "csh").status == 2
