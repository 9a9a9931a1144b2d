"""`loom conformance`: what loom ships keeps every rule, in any language; and each rule is broken by who breaks it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support import ROOT
from toolkit import ALL_TOOLS

from loom.cli import conformance_runner as runner
from loom.cli import conformance_tool as tool
from loom.cli.conformance import Broken

SH_AGENT = ROOT / "runners" / "sh-agent"
NEEDS = ("jq", "flock", "sha256sum", "iconv")
missing = [need for need in NEEDS if shutil.which(need) is None]
in_shell = pytest.mark.skipif(bool(missing), reason=f"sh-agent needs {', '.join(missing)} (Debian: apt-get install jq)")


def conformance(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "loom", "conformance", *args],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=110,
    )


@pytest.mark.slow
@in_shell
def test_a_runner_in_posix_shell_keeps_every_rule():
    said = conformance(str(SH_AGENT), "--as", "runner", "--json")
    *rules, result = [json.loads(line) for line in said.stdout.splitlines()]
    assert [rule for rule in rules if not rule["kept"]] == []
    assert (said.returncode, result["rules"], result["broken"]) == (0, len(runner.RULES), 0)


@pytest.mark.slow
def test_the_runner_of_loom_keeps_every_rule():
    said = conformance(str(ROOT / "runners" / "agent"), "--as", "runner")
    assert said.returncode == 0, said.stdout
    assert said.stderr == f"loom: {len(runner.RULES)} of {len(runner.RULES)} rules are kept\n"


@pytest.mark.parametrize("name", ALL_TOOLS)
def test_every_tool_of_loom_keeps_every_rule(name: str, tmp_path: Path):
    for rule in tool.RULES:
        rule.try_it(str(ROOT / "tools" / name), tmp_path)


def test_what_is_no_program_is_66_and_the_kind_has_to_be_said():
    assert conformance("./nothing", "--as", "tool").returncode == 66
    assert conformance(str(SH_AGENT)).returncode == 2


# What is changed in the shell runner, by the rule that then is broken: a name of runner's, the text, what stands there.
WRONG = {
    "another name for the reply": (runner._answers, r"loom1\0reply", r"loom2\0reply"),
    "no origin": (runner._answers, "origin: (if .origin", "unused: (if .origin"),
    "no lock": (runner._lock, 'flock -n 9 || {', "true || {"),
    "deaf to SIGTERM": (runner._serves, "trap 'stop=yes' TERM INT", "trap '' TERM INT"),
    "what was claimed before is left": (runner._resumes, 'for path in inbox/.in-progress/*.msg; do', "for path in; do"),
    "no look": (runner._looks, '[ -e "$found" ] || continue', "continue"),
    "a failure is acknowledged": (runner._failure_resumes, 'if .error then .data', "if false then .data"),
    "attempts are not counted": (runner._fails, '--argjson n $(($3 + 1))', "--argjson n 1"),
    "deaths are not counted": (runner._third_death, '"$deaths" -ge 3', '"$deaths" -ge 300'),
    "links are followed": (runner._odd, '[ ! -L "$1" ] || { echo link; return; }', ""),
    "newer versions are read": (runner._odd, 'elif .v > 1 then "newer_version"', ""),
    "nothing said of being called wrongly": (runner._usage, "exit 66", "exit 1"),
    "an ill end": (runner._many, '[ -z "$drain" ] || exit 0', '[ -z "$drain" ] || exit 3'),
}  # fmt: skip


@in_shell
@pytest.mark.parametrize("what", WRONG)
def test_a_runner_that_breaks_a_rule_is_found(what: str, tmp_path: Path):
    rule, right, wrong = WRONG[what]
    text = SH_AGENT.read_text()
    assert right in text
    program = tmp_path / "runner"
    program.write_text(text.replace(right, wrong))
    program.chmod(0o755)
    with pytest.raises(Broken):
        rule(str(program), tmp_path)


TOOL = """#!/bin/sh
case "${1:-}" in
describe) echo '{"name":"good","description":"d","input_schema":{"type":"object"}}' ;;
invoke)
    jq -ces 'if length == 1 and (.[0] | type) == "object" then {status: "ok", result: 1} else error end' 2>/dev/null ||
    echo '{"status":"error","error":"e"}' ;;
*) exit 2 ;;
esac
"""
WRONG_TOOLS = {
    "another name": (tool._describe, '"name":"good"', '"name":"other"'),
    "no schema": (tool._describe, ',"input_schema":{"type":"object"}', ""),
    "every word is good": (tool._usage, "exit 2", "echo help"),
    "takes anything": (tool._rubbish, 'if length == 1 and (.[0] | type) == "object" then', "if true then"),
}


@in_shell
@pytest.mark.parametrize("what", ["", *WRONG_TOOLS])
def test_a_tool_that_breaks_a_rule_is_found(what: str, tmp_path: Path):
    program = tmp_path / "good"
    rule, right, wrong = WRONG_TOOLS.get(what, (None, "", ""))
    program.write_text(TOOL.replace(right, wrong) if right else TOOL)
    program.chmod(0o755)
    if rule is None:
        for each in tool.RULES:
            each.try_it(str(program), tmp_path)
        return
    with pytest.raises(Broken):
        rule(str(program), tmp_path)
