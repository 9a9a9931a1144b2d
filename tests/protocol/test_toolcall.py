"""A tool call ends in time with one result and leaves no process, however the tool behaves.

The tools here are real programs written by the test; each sees LOOM_MARK, by which what is left of it is found.
"""

from __future__ import annotations

import os
import resource
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from toolkit import ALL_TOOLS, TOOLS, alive

from loom.core.schema import check_input
from loom.proc import toolchild
from loom.proc.toolbox import Tool, find_tools
from loom.proc.toolcall import ToolResult, call_tool
from loom.wire import errors, hang
from loom.wire.chat import ToolSpec

SPEC = ToolSpec("trial", "a tool of the test", {"type": "object"})
SH, PYTHON = "#!/bin/sh\n", "#!/usr/bin/env python3\n"
OK = """printf '{"status":"ok","result":1}\\n'\n"""
FAST_S = 20  # no call here may come near to this; the tools that hang would do so for ever


@pytest.fixture
def mark() -> Iterator[str]:
    """The value of LOOM_MARK for this test's tools; at the end no process with it may be left."""
    value = str(uuid4())
    yield value
    assert alive(f"LOOM_MARK={value}") == []


@pytest.fixture
def call(tmp_path: Path, mark: str) -> Callable[..., ToolResult]:
    """Write a tool and call it."""

    def calls(text: str, input: dict | None = None, **more) -> ToolResult:
        path = tmp_path / "trial"
        path.write_text(text)
        path.chmod(0o755)
        env = {"LOOM_MARK": mark} | more.pop("env", {})
        began, before = time.monotonic(), os.listdir("/proc/self/fd")
        try:
            return call_tool(Tool(path, SPEC), input or {}, env=env, cwd=str(tmp_path), **more)
        finally:
            assert time.monotonic() - began < FAST_S
            assert len(os.listdir("/proc/self/fd")) == len(before)

    return calls


# --- tools that behave -------------------------------------------------------------------------------------------


def test_the_result_is_what_the_tool_printed_last(call):
    assert call(SH + OK) == ToolResult("ok", 1)


def test_an_error_is_one_line_without_control_characters(call):
    text = PYTHON + r"""print(r'{"status":"error","error":"no\u001b[1m \n\u202eluck"}')"""
    assert call(text) == ToolResult("error", error="no [1m luck")


def test_the_input_arrives_on_stdin(call):
    text = PYTHON + "import json,sys; print(json.dumps({'status':'ok','result':json.load(sys.stdin)}))"
    assert call(text, {"a": ["ü", None]}).result == {"a": ["ü", None]}


@pytest.mark.parametrize(
    "said, wanted", [("2.5", 2.5), ("0", 0.0), ("-1", None), ("true", None), ('"3"', None), ("1e999", None)]
)
def test_retry_after_is_seconds_or_nothing(said, wanted, call):
    got = call(SH + f"""printf '{{"status":"error","error":"busy","retry_after":{said}}}'""")
    assert got.status == "error" and got.retry_after_s == wanted


def test_progress_lines_before_the_last_are_handed_on(call):
    seen: list[dict] = []
    got = call(SH + """echo '{"done":1}'; echo; echo '{"done":2}';""" + OK, on_progress=seen.append)
    assert seen == [{"done": 1}, {"done": 2}] and got == ToolResult("ok", 1)


def test_an_error_of_the_callers_own_progress_handler_ends_the_tool_and_is_raised(call):
    def full(_progress: dict) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        call(SH + "echo '{}'; echo '{}'; exec sleep 1000", on_progress=full)


def test_a_tool_sees_only_what_it_is_given(call, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-1")
    monkeypatch.setenv("LOOM_HOME", "/of/the/caller")
    text = PYTHON + "import json,os; print(json.dumps({'status':'ok','result':dict(os.environ)}))"
    names = set(call(text, env={"LOOM_GOAL": "g"}).result)
    assert {"LOOM_GOAL", "LOOM_MARK", "PATH"} <= names
    assert names <= {"LOOM_GOAL", "LOOM_MARK", "PATH", "LANG", "LC_ALL", "LC_CTYPE", "TMPDIR", "HOME"}


def test_a_tool_inherits_three_descriptors(call):
    inheritable = os.dup(0)
    os.set_inheritable(inheritable, True)
    text = PYTHON + (
        "import json,os\n"
        "fds = sorted(map(int, os.listdir('/proc/self/fd')))[:-1]  # the last is of the listing itself\n"
        "print(json.dumps({'status':'ok','result':fds}))"
    )
    try:
        assert call(text).result == [0, 1, 2]
    finally:
        os.close(inheritable)


def test_a_tool_leads_its_session_with_default_signals(call):
    old = signal.signal(signal.SIGTERM, signal.SIG_IGN), signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2])
    text = (
        SH
        + """
        read -r line < /proc/self/stat # $$ is a number in a namespace of its own
        set -- $line
        masks=$(awk '/SigIgn|SigBlk/ {printf ",\\"%s\\"", $2}' /proc/$1/status)
        echo "{\\"status\\":\\"ok\\",\\"result\\":[$1,$6$masks]}"
    """
    )
    try:
        pid, session, *masks = call(text).result
    finally:
        signal.signal(signal.SIGTERM, old[0])
        signal.signal(signal.SIGHUP, old[1])
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGUSR2])
    assert pid == session
    # Above bit 30 stand the signals that glibc keeps for itself: whoever started this test may have ignored them.
    assert [int(mask, 16) & 0x7FFFFFFF for mask in masks] == [0, 0]


@pytest.mark.parametrize("tool", ALL_TOOLS)
def test_shipped_tools_answer_through_a_call(tool, tmp_path, mark):
    (tmp_path / "a").write_text("x")
    asked = {
        "read-file": {"path": "a"},
        "write-file": {"path": "b", "content": "y"},
        "search-files": {"query": "x"},
        "run-shell": {"command": "cat a"},
    }.get(tool, {})
    found = find_tools([tool], [TOOLS])[tool]
    assert check_input(found.spec.input_schema, asked) == []
    env = {"LOOM_WORKSPACE": str(tmp_path), "LOOM_UNSAFE_NO_SANDBOX": "1", "LOOM_MARK": mark}
    assert call_tool(found, asked, env=env, cwd=str(tmp_path)).status == "ok"


# --- tools that do not -------------------------------------------------------------------------------------------

MISBEHAVIOUR = {
    # name: (the tool, what the error says, options of the call)
    "hangs": (SH + "exec sleep 1000", "did not finish within 0.3 s", {"timeout_s": 0.3}),
    "hangs-after-its-result": (SH + OK + "exec sleep 1000", "did not finish within 0.3 s", {"timeout_s": 0.3}),
    "hangs-with-closed-output": (SH + "exec sleep 1000 >&- 2>&-", "did not finish", {"timeout_s": 0.3}),
    "ignores-sigterm": (SH + "trap '' TERM\nsleep 1000\nsleep 1000", "did not finish", {"timeout_s": 0.3}),
    "stops-itself": (SH + "kill -STOP $$", "did not finish", {"timeout_s": 0.3}),
    "floods-one-line": (SH + "exec tr '\\0' x < /dev/zero", "more than 1048576 bytes", {}),
    "floods-lines": (SH + "exec yes", "a line that is not JSON ('y')", {}),
    "floods-progress": (SH + "exec yes '{\"n\":1}'", "more than 4096 bytes", {"max_output_bytes": 4096}),
    "floods-stderr": (SH + "yes >&2", "did not finish", {"timeout_s": 0.3}),
    "result-too-large": (SH + 'printf \'{"a":"%05000d"}\\n\' 1', "more than 4096", {"max_output_bytes": 4096}),
    "exits-3": (SH + "echo 'no such table' >&2; exit 3", "exited with 3; its last words: no such table", {}),
    "exits-3-after-saying-ok": (SH + OK + "exit 3", "printed a result but exited with 3", {}),
    "dies-by-signal": (SH + "kill -SEGV $$", "was killed by SIGSEGV", {}),
    "kills-its-group": (SH + "kill -KILL 0", "was killed by SIGKILL", {}),
    "prints-nothing": (SH + "cat > /dev/null", "printed a result that is empty", {}),
    "prints-garbage": (SH + "echo hello", "is not JSON ('hello')", {}),
    "prints-escapes": (SH + "printf '\\033[2J\\007x'", "is not JSON ('[2J x')", {}),
    "prints-bytes": (SH + 'printf \'{"status":"ok","result":"\\377"}\'', "is not JSON", {}),
    "prints-half": (SH + """printf '{"status":"ok"'""", "is not JSON", {}),
    "prints-a-list": (SH + "echo '[1]'", "is not a JSON object", {}),
    "prints-no-status": (SH + "echo '{}'", "has no status", {}),
    "prints-nan": (SH + """echo '{"status":"ok","result":NaN}'""", "is not JSON", {}),
    "prints-infinity": (SH + """echo '{"status":"ok","result":1e999}'""", "not finite", {}),
    "prints-a-huge-integer": (SH + """echo '{"status":"ok","result":99999999999999999999}'""", "64 bits", {}),
    "prints-half-a-pair": (SH + """printf '{"status":"ok","result":"\\\\ud800"}'""", "surrogate", {}),
    "nests-deep": (
        PYTHON + "print('{\"status\":\"ok\",\"result\":' + '['*100 + ']'*100 + '}')",
        "more than 64 levels",
        {},
    ),
    "nests-very-deep": (PYTHON + "print('['*100000 + ']'*100000)", "is not JSON", {}),
    "raises": (PYTHON + "raise ValueError('a\\x1b[1mb')", "exited with 1; its last words: ValueError: a [1mb", {}),
    "has-no-interpreter": ("#!/no/such/interpreter\n", "could not be started: No such file", {}),
    "is-no-program": ("just text\n", "could not be started: Exec format error", {}),
    "wants-no-such-variable": (SH + OK, "could not be started: embedded null byte", {"env": {"A": "\0"}}),
}


@pytest.mark.parametrize("text, says, options", MISBEHAVIOUR.values(), ids=MISBEHAVIOUR)
def test_misbehaviour_is_an_answer(text, says, options, call):
    got = call(text, **options)
    assert got.status == "error" and got.result is None
    shape = hang.shape_of(got.error)
    assert shape in ("tool_overdue", "tool_deaf") if "did not finish" in says else not shape
    words = got.error.removeprefix(f"{shape}: ")
    assert says in words and words.startswith("trial ") and words.isprintable()


BACKGROUND = {
    "a-child": "sleep 1000 &",
    "a-child-that-floods": "yes '{}' &",
    "a-child-that-ignores-all": "(trap '' TERM HUP INT; sleep 1000; sleep 1000) &",
    "a-child-in-its-own-session": "setsid sleep 1000 &",
    "a-daemon": "(setsid setsid sh -c 'sleep 1000; sleep 1000' &)",
    "a-silent-daemon": "(setsid sleep 1000 </dev/null >/dev/null 2>&1 &)",
    "a-stopped-child": "(setsid sh -c 'kill -STOP $$' &)",
}


@pytest.mark.parametrize("command", BACKGROUND.values(), ids=BACKGROUND)
def test_what_a_tool_leaves_behind_is_ended_and_holds_up_nobody(command, call):
    got = call(SH + command + "\n" + ("" if "yes" in command else OK))
    assert got == ToolResult("ok", 1) or "yes" in command


@pytest.mark.parametrize("command", BACKGROUND.values(), ids=BACKGROUND)
def test_it_is_ended_also_when_the_tools_time_is_over(command, call):
    assert call(SH + command + "\nsleep 1000\n", timeout_s=0.2).status == "error"


def test_a_timeout_lets_the_tool_clean_up_first(call, tmp_path):
    text = SH + f"trap 'echo cleaned > {tmp_path}/note; exit 1' TERM\nsleep 1000 & wait\n"
    assert call(text, timeout_s=1.0).status == "error"
    assert (tmp_path / "note").read_text() == "cleaned\n"


def test_a_timeout_of_the_shell_tool_ends_its_shell(tmp_path, mark):
    tool = find_tools(["run-shell"], [TOOLS])["run-shell"]
    env = {"LOOM_WORKSPACE": str(tmp_path), "LOOM_UNSAFE_NO_SANDBOX": "1", "LOOM_MARK": mark}
    asked = {"command": "trap '' TERM; (setsid sleep 1000 &); sleep 1000; sleep 1000"}
    got = call_tool(tool, asked, env=env, cwd="/", timeout_s=0.5)
    assert "did not finish within 0.5 s" in got.error


@pytest.mark.parametrize("reads", ["", "head -c 10 > /dev/null; ", "exec <&-; ", "cat > /dev/null; "])
def test_a_huge_input_is_fed_as_far_as_it_is_wanted(reads, call):
    assert call(SH + reads + OK, {"text": "x" * 5_000_000}) == ToolResult("ok", 1)


def test_a_huge_input_meets_a_huge_output_without_deadlock(call):
    text = PYTHON + (
        "import sys\n"
        "for _ in range(100): print('{\"n\":\"' + 'x'*9000 + '\"}', flush=True); print('e'*9000, file=sys.stderr)\n"
        'print(\'{"status":"ok","result":%d}\' % len(sys.stdin.read()))\n'
    )
    assert call(text, {"text": "x" * 3_000_000}).result == 3_000_012


def test_a_tool_that_is_gone_is_an_answer(tmp_path):
    got = call_tool(Tool(tmp_path / "gone", SPEC), {}, env={}, cwd="/")
    assert got.error.startswith("trial could not be started: No such file or directory")


def test_a_missing_directory_is_an_answer(call, tmp_path):
    path = tmp_path / "t"
    path.write_text(SH + OK)
    path.chmod(0o755)
    got = call_tool(Tool(path, SPEC), {}, env={}, cwd=str(tmp_path / "gone"))
    assert str(tmp_path / "gone") in got.error


# --- our own side ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spare", [0, 1, 2, 3, 4, 5, 6, 7, 40])
def test_our_lack_of_descriptors_is_raised_and_leaves_nothing(spare, call):
    lowest_free = os.dup(0)
    os.close(lowest_free)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    before = len(os.listdir("/proc/self/fd"))
    outcome: ToolResult | errors.Disk
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free + spare, hard))
    try:
        outcome = call_tool(Tool(TOOLS / "list-files", SPEC), {}, env={}, cwd="/")
    except errors.Disk as error:
        outcome = error
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert len(os.listdir("/proc/self/fd")) == before
    assert "LOOM_WORKSPACE" in str(outcome) if spare == 40 else "Too many open files" in str(outcome)


def test_a_tool_dies_with_the_process_that_called_it(tmp_path, mark):
    os.mkfifo(tmp_path / "began")
    tool = tmp_path / "trial"
    tool.write_text(SH + f"read -r pid rest < /proc/self/stat\necho $pid > {tmp_path}/began\nexec sleep 1000\n")
    tool.chmod(0o755)
    code = (
        "from pathlib import Path; from loom.proc.toolcall import *; from loom.wire.chat import ToolSpec;"
        f"call_tool(Tool(Path({str(tool)!r}), ToolSpec('trial','',{{}})), {{}}, env={{'LOOM_MARK':{mark!r}}}, cwd='/')"
    )
    runner = subprocess.Popen([sys.executable, "-c", code], cwd=TOOLS.parent)
    said = (tmp_path / "began").read_text()
    assert said.strip().isdigit(), f"the tool was gone at once; its runner: {runner.poll()}"
    pidfd = os.pidfd_open(int(said))
    try:
        runner.kill()
        runner.wait()
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        assert poll.poll(1000 * FAST_S), "the tool outlived its runner"
    finally:
        os.close(pidfd)


def test_children_that_were_there_before_a_call_are_left_alone(call):
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as bystander:
        assert call(SH + "(setsid sleep 1000 &)\n" + OK).status == "ok"
        assert bystander.communicate(b"alive")[0] == b"alive"


def test_a_call_is_not_a_subreaper_afterwards(call):
    call(SH + OK)
    assert toolchild._become_subreaper() is False
    toolchild._prctl(toolchild.PR_SET_CHILD_SUBREAPER, 0)


# --- calls that somebody else kills ------------------------------------------------------------------------------

KILLED_TWICE = SH + """echo start >> starts; [ $(wc -l < starts) -gt 2 ] || kill -KILL $$\n""" + OK


@pytest.mark.parametrize("idempotent, status, starts", [(True, "ok", 3), (False, "error", 1)])
def test_a_killed_call_is_made_again_only_when_it_may_be_repeated(tmp_path, idempotent, status, starts):
    path = tmp_path / "trial"
    path.write_text(KILLED_TWICE)
    path.chmod(0o755)
    tool = Tool(path, ToolSpec("trial", "a tool of the test", {"type": "object"}, idempotent=idempotent))
    assert call_tool(tool, {}, env={}, cwd=str(tmp_path)).status == status
    assert len((tmp_path / "starts").read_text().splitlines()) == starts
