"""Programs as models: real processes, their output in both forms, their statuses, and their end."""

from __future__ import annotations

import json
import os
import select
import signal
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from model_far_side import chat, collect

from loom.models.base import ModelContext
from loom.models.exec import ExecModel
from loom.models.exec_output import Output
from loom.models.registry import check_model, open_model
from loom.wire import errors
from loom.wire.chat import ChatMessage, ChatReply, ChatRequest, Image, TextDelta, ToolCall, Usage


@pytest.fixture
def program(tmp_path):
    """Makes an executable of Python or shell source and opens it as exec/./NAME."""

    def make(source: str, **more: object) -> ExecModel:
        path = tmp_path / "model"
        path.write_text(source if source.startswith("#!") else f"#!{sys.executable}\n{source}")
        path.chmod(0o755)
        context = ModelContext(env=dict(os.environ), cwd=str(tmp_path))
        model = open_model("exec/./model", context)
        assert isinstance(model, ExecModel)
        env = {"PATH": os.environ["PATH"]}
        return ExecModel(model.name, str(path), env, str(tmp_path), **more) if more else model  # type: ignore[arg-type]

    return make


def test_a_filter_is_a_model(program):
    text, reply = collect(program("#!/bin/sh\nexec tr a-z A-Z\n"), chat("hello"))
    assert '"TEXT":"HELLO"' in text
    assert reply.stop == "end"


def test_plain_text_is_the_answer_to_the_last_byte(program):
    assert collect(program("#!/bin/sh\nprintf 'one\\n\\n two \\n'"), chat())[0] == "one\n\n two \n"


def test_it_may_ignore_its_input(program):
    assert collect(program("#!/bin/sh\necho hi"), chat("x" * 1_000_000))[0] == "hi\n"


def test_chunks_are_handed_on_as_they_come_and_a_reply_completes_them(program):
    reply = {"calls": [{"name": "read", "input": {"n": 1}}], "usage": {"input_tokens": 5}, "model": "mine"}
    lines = [{"text": "a"}, {"note": "ignored"}, {"text": "b"}, {"reply": reply}, {"text": "too late"}]
    text, got = collect(program("#!/bin/sh\n" + "".join(f"echo '{json.dumps(x)}'\n" for x in lines)), chat())
    assert text == "ab"
    assert got == ChatReply("ab", (ToolCall("call_0_0", "read", {"n": 1}),), "tool_calls", Usage(5), "mine")


def test_text_comes_before_the_program_has_ended(program):
    stream = program("#!/bin/sh\nprintf 'a word'\nsleep 600\n").stream(chat())
    assert next(stream) == TextDelta("a word")
    stream.close()


def test_a_program_that_writes_much_before_it_reads_does_not_deadlock(program):
    source = "import sys\nsys.stdout.write('x' * 3_000_000)\nsys.stdout.flush()\nsys.stdin.read()\n"
    assert len(collect(program(source), chat("y" * 3_000_000))[0]) == 3_000_000


def test_much_on_stderr_does_not_block_and_only_the_end_is_kept(program):
    source = "import sys\nsys.stderr.write('noise\\n' * 500_000 + 'the end\\n')\nsys.exit(3)\n"
    with pytest.raises(errors.WorkFailed, match="ended with status 3: the end"):
        collect(program(source), chat())


@pytest.mark.parametrize(
    "status, kind",
    [
        (75, errors.TryLater),
        (69, errors.Unavailable),
        (78, errors.Config),
        (65, errors.BadInput),
        (1, errors.WorkFailed),
        (2, errors.WorkFailed),
    ],
)
def test_statuses_mean_what_they_mean_everywhere(program, status, kind):
    with pytest.raises(errors.LoomError) as caught:
        collect(program(f"#!/bin/sh\necho half\necho 'no \x1b[31mluck' >&2\nexit {status}\n"), chat())
    assert type(caught.value) is kind
    assert "no [31mluck" in str(caught.value)


def test_a_program_that_is_killed_has_failed(program):
    with pytest.raises(errors.WorkFailed, match="killed by signal 9"):
        collect(program("#!/bin/sh\nkill -9 $$\n"), chat())


def test_its_environment_holds_no_secrets(program, tmp_path):
    program("#!/bin/sh\nexec env\n")
    env = {"PATH": os.environ["PATH"], "HOME": "/h", "OPENAI_API_KEY": "sk-x", "LANG": "C", "EDITOR": "vi"}
    context = ModelContext(env=env, cwd=str(tmp_path), extra_env={"LOOM_AGENT": "anna"})
    text, _ = collect(open_model("exec/./model", context), chat())
    names = {line.partition("=")[0] for line in text.splitlines()} - {"PWD", "SHLVL", "_", "OLDPWD", "LC_CTYPE"}
    assert names == {"PATH", "HOME", "LANG", "LOOM_AGENT"}


def test_too_much_output_ends_it(program):
    with pytest.raises(errors.WorkFailed, match="over 1000 bytes"):
        collect(program("#!/bin/sh\nexec yes\n", max_output_bytes=1000), chat())


@pytest.mark.parametrize(
    "limits, said", [({"deadline_s": 0.2}, "did not finish"), ({"idle_s": 0.2}, "printed nothing")]
)
def test_a_program_that_is_too_slow_is_stopped(program, limits, said):
    with pytest.raises(errors.Unavailable, match=said):
        collect(program("#!/bin/sh\nsleep 600\n", **limits), chat())


GROUP = "#!/bin/sh\ntrap '' TERM INT HUP\nsleep 600 &\necho $$ $!\nwait\n"


def pids(line: str) -> list[int]:
    return [int(word) for word in line.split()]


def gone(pid: int) -> bool:
    """Not running: a zombie that somebody else has yet to reap counts as gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return True


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at /proc")
def test_closing_the_stream_ends_the_whole_group(program):
    stream = program(GROUP).stream(chat())
    leader, child = pids(next(stream).text)
    end_of_child = os.pidfd_open(child)
    stream.close()
    assert select.select([end_of_child], [], [], 30)[0]
    os.close(end_of_child)
    assert gone(leader) and gone(child)


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="needs pidfd")
def test_a_background_child_that_keeps_the_pipe_open_does_not_hold_up_the_answer(program):
    text, _ = collect(program("#!/bin/sh\nsleep 600 &\necho done\n"), chat())
    assert text == "done\n"


def test_without_pidfd_it_works_all_the_same(program, monkeypatch):
    monkeypatch.delattr(os, "pidfd_open", raising=False)
    assert collect(program("#!/bin/sh\nsleep 600 &\ncat >/dev/null\necho done\n"), chat())[0] == "done\n"


# finding it


def test_a_bare_name_is_looked_for_on_path_only(tmp_path):
    here = tmp_path / "here"
    here.write_text("#!/bin/sh\n")
    here.chmod(0o755)
    check_model("exec/cat", ModelContext(env={"PATH": "/usr/bin:/bin"}))
    check_model("exec/here", ModelContext(env={"PATH": str(tmp_path)}))
    with pytest.raises(errors.NotFound, match=r"exec/\./here"):
        check_model("exec/here", ModelContext(env={"PATH": "/usr/bin:/bin"}, cwd=str(tmp_path)))


@pytest.mark.parametrize(
    "name, kind, said",
    [
        ("exec/no-such-program-here", errors.NotFound, "on PATH"),
        ("exec/./absent", errors.NotFound, "absent"),
        ("exec//absent/x", errors.NotFound, "/absent/x"),
        ("exec/tr a-z A-Z", errors.NotFound, "no arguments"),
        ("exec/./plain", errors.Config, "chmod \\+x"),
        ("exec/./", errors.NotFound, "no such program"),
    ],
)
def test_a_program_that_is_not_there_is_known_at_once(tmp_path, name, kind, said):
    (tmp_path / "plain").write_text("x")
    context = ModelContext(env={"PATH": "/usr/bin:/bin"}, cwd=str(tmp_path))
    for tried in (check_model, open_model):
        with pytest.raises(kind, match=said):
            tried(name, context)


def test_a_script_whose_interpreter_is_missing_says_so(program):
    with pytest.raises(errors.NotFound, match="interpreter"):
        collect(program("#!/no/such/interpreter\n"), chat())


def test_a_script_without_a_first_line_says_what_it_needs(tmp_path):
    (tmp_path / "x").write_text("echo hi\n")
    (tmp_path / "x").chmod(0o755)
    with pytest.raises(errors.Config, match="#!/bin/sh"):
        collect(open_model("exec/./x", ModelContext(env=dict(os.environ), cwd=str(tmp_path))), chat())


# reading what it prints


def read(*pieces: bytes) -> ChatReply:
    output = Output("exec/x", chat())
    texts = [t for p in pieces for t in output.feed(p)] + output.finish()
    reply = output.reply()
    assert reply.text == "".join(texts)
    return reply


@pytest.mark.parametrize(
    "printed, text",
    [
        (b"", ""),
        (b"\n", "\n"),
        (b"hi", "hi"),
        (b'{"text": "a"}', "a"),  # the last line may lack its newline
        (b'\n{"text": "a"}\n\n{"text": "b"}\n', "ab"),  # blank lines say nothing
        (b'{"answer": 42}\n', '{"answer": 42}\n'),  # JSON that is not ours is text
        (b'{"answer": 42}\n{"text": "x"}\n', '{"answer": 42}\n{"text": "x"}\n'),  # the first line decides
        (b"{not json\n", "{not json\n"),
        (b"[1]\n", "[1]\n"),
        ("käse 🧀".encode(), "käse 🧀"),
        (b"\xff", "\ufffd"),
        (b'{"reply": {"text": "whole"}}\n', "whole"),
        (b'{"text": "wh"}\n{"reply": {"text": "whole"}}\n', "whole"),
        (b'{"text": "wh"}\n{"reply": {}}\n', "wh"),
    ],
)
def test_output_is_read_the_same_however_it_is_cut(printed, text):
    assert read(printed).text == text
    assert read(*[printed[i : i + 1] for i in range(len(printed))]).text == text
    for cut in range(len(printed) + 1):
        assert read(printed[:cut], printed[cut:]).text == text


@pytest.mark.parametrize(
    "printed",
    [
        b'{"text": "a"}\noops\n',
        b'{"text": 1}\n',
        b'{"reply": []}\n',
        b'{"reply": {"calls": {}}}\n',
        b'{"reply": {"calls": [{"name": 1}]}}\n',
        b'{"reply": {"stop": "soon"}}\n',
        b'{"reply": {"stop": []}}\n',
        b'{"text": "a"}\n{"reply": {"text": "other"}}\n',
        b'{"text": "a"}\n{"reply": {"text": 1}}\n',
    ],
)
def test_chunks_that_are_none_are_a_broken_stream(printed):
    with pytest.raises(errors.BrokenStream):
        read(printed)


LINES = st.sampled_from([b'{"text": "a"}\n', b'{"reply": {"text": "a"}}\n', b"\n", b'{"reply": {"usage": [1]}}\n'])


@given(st.lists(st.binary(max_size=20) | LINES, max_size=6), st.integers(0, 60))
def test_any_output_gives_a_reply_or_an_error_of_ours_and_cuts_do_not_matter(pieces, cut):
    whole = b"".join(pieces)
    outcomes = []
    for parts in (pieces, [whole], [whole[:cut], whole[cut:]]):
        try:
            outcomes.append(read(*parts))
        except errors.LoomError as error:
            outcomes.append(str(error))
    assert outcomes[0] == outcomes[1] == outcomes[2]


@pytest.mark.skipif(sys.platform != "linux", reason="PDEATHSIG is Linux only")
def test_a_program_dies_with_a_caller_that_was_killed(tmp_path: Path):
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    program = tmp_path / "waits"
    program.write_text(f"#!/bin/sh\necho $$ > {tmp_path}/pid\necho up > {gate}\nexec sleep 600\n")
    program.chmod(0o700)
    pid = os.fork()
    if pid == 0:
        try:
            model = open_model(f"exec/{program}", ModelContext(env=dict(os.environ)))
            list(model.stream(ChatRequest("m", (ChatMessage("user", "hi"),))))
        finally:
            os._exit(1)
    with gate.open() as file:
        assert file.readline() == "up\n"
    child = os.pidfd_open(int((tmp_path / "pid").read_text()))
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    ended, _, _ = select.select([child], [], [], 30)
    os.close(child)
    assert ended, "the program outlives the caller"


def test_a_program_gets_the_schema_and_where_the_pictures_lie(tmp_path):
    path = tmp_path / "model"
    path.write_text(
        f"#!{sys.executable}\nimport json, sys\nr = json.load(sys.stdin)\n"
        "print(json.dumps([r['messages'], r['schema']]))"
    )
    path.chmod(0o755)
    context = ModelContext(env=dict(os.environ), cwd=str(tmp_path), blob_path=lambda digest: f"{tmp_path}/{digest}")
    image = Image("image/png", "ab")
    asked = ChatRequest("m", (ChatMessage("user", "look", images=(image,)),), schema={"type": "array"})
    text, _ = collect(open_model("exec/./model", context), asked)
    (message,), schema = json.loads(text)
    assert message["images"] == [{"media_type": "image/png", "blob": "ab", "path": f"{tmp_path}/ab"}]
    assert schema == {"type": "array"}
