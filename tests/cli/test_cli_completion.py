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


def test_models_tools_and_pipes(loom: Loom):
    assert could_be(loom, "loom", "run", "--model", "builtin/e") == {
        "builtin/echo",
        "builtin/extract",
        "builtin/executor",
    }
    assert not loom.home.exists()
    loom.program("x.py", "")
    for name, model in (("one", f"exec/{loom.place}/x.py"), ("two", "exec/./x.py|builtin/echo")):
        assert loom("agent", "start", name, "--model", model, "--detach").status == 0
    (loom.home / "config.yml").write_text("model: lab/big\nproviders: {lab: {base_url: 'http://127.0.0.1:9/v1'}}\n")
    for words in (("agent", "start", "x"), ("run",), ("schedule", "add", "x"), ("model", "test")):
        asked = could_be(loom, "loom", *words, *(["--model"] if words[0] != "model" else []), "")
        assert asked >= {"builtin", "builtin/echo", "lab/big", f"exec/{loom.place}/x.py"}
        assert not any("|" in name for name in asked), "a shell would make a pipeline of it"
    assert could_be(loom, "loom", "model", "ls", "l") == {"lab"}
    assert could_be(loom, "loom", "agent", "start", "x", "--tools", "read") == {"read-file"}
    assert could_be(loom, "loom", "agent", "start", "x", "--tools", "read-file,wr") == {"read-file,write-file"}
    assert could_be(loom, "loom", "agent", "start", "x", "--tools", "read-file,r") == {"read-file,run-shell"}
    (loom.home / "tools").mkdir(exist_ok=True)
    loom.program("home/tools/rock", "")
    assert could_be(loom, "loom", "agent", "start", "x", "--tools", "ro") == {"rock"}
    assert loom("pipe", "create", "lines", "[{operator: tap, label: x}]").status == 0
    assert could_be(loom, "loom", "route", "one", "--to", "two", "--pipe", "") == {"lines"}
    assert could_be(loom, "loom", "pipe", "create", "l") == {"lines"}
    assert could_be(loom, "loom", "route", "o") == {"one"}
    assert could_be(loom, "loom", "route", "one", "--to", "tw") == {"two"}


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
