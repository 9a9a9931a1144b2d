"""`loom agent start` as a Unix filter: stdin is the message, stdout the answer, stderr everything else."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
from pathlib import Path

import pytest
from cli_user import Loom
from support import wait_until

ECHO = ("agent", "start", "x", "--model", "builtin/echo")


def test_the_answer_goes_to_stdout_and_nothing_else_anywhere(loom: Loom) -> None:
    said = loom(*ECHO, "--stdin", stdin="hello\n")
    assert (said.status, said.out, said.err) == (0, "hello\n", "")


def test_a_missing_newline_is_added_and_nothing_else_changed(loom: Loom) -> None:
    text = "  tab\there \r\n\x1b[31mrot\x1b[0m \u202e \x9b ünï 🧵"
    said = loom(*ECHO, stdin=text)
    assert said.out == text + "\n"


def test_prompt_replaces_stdin(loom: Loom) -> None:
    assert loom(*ECHO, "--prompt", "hi", stdin="not this").out == "hi\n"


def test_it_touches_no_mailbox_and_leaves_only_its_log(loom: Loom) -> None:
    loom(*ECHO, stdin="hello")
    agent = loom.home / "agents" / "x"
    assert [p.name for p in agent.iterdir()] == ["logs"]
    assert loom.left() == []
    events = [record["event"] for record in loom.log("x")]
    assert events == ["filter_start", "model_reply", "filter_end"]
    assert len({record["filter"] for record in loom.log("x")}) == 1
    assert loom("agent", "ps", "-a", "--json").objects[0]["agents"] == []


def test_what_is_left_under_its_name_can_be_removed(loom: Loom) -> None:
    loom(*ECHO, stdin="hello")
    assert loom("agent", "rm", "x").status == 0
    assert not (loom.home / "agents" / "x").exists()


def test_json_tells_the_turn_as_events(loom: Loom) -> None:
    said = loom(*ECHO, "--json", stdin="hello")
    start, *_, result = events = said.objects
    assert [e["event"] for e in events] == ["start", "text", "usage", "result"]
    assert (start["v"], start["agent"], start["model"]) == (1, "x", "builtin/echo")
    assert (result["text"], result["exit_status"]) == ("hello", 0)


def test_the_system_prompt_comes_from_a_flag_or_a_file(loom: Loom) -> None:
    program = loom.program(
        "system.py", "import json, sys; print([m['text'] for m in json.load(sys.stdin)['messages']])"
    )
    (loom.place / "role.md").write_text("from a file")
    model = ("agent", "start", "x", "--model", f"exec/{program}", "--prompt", "hi")
    assert loom(*model, "--system", "be brief").out == "['be brief', 'hi']\n"
    assert loom(*model, "--system-file", "role.md").out == "['from a file', 'hi']\n"
    assert loom(*model, "--system-file", "none.md").status == 66


def test_variables_reach_the_program_and_ours_cannot_be_set(loom: Loom) -> None:
    program = loom.program("env.py", "import os; print(os.environ['GREETING'], os.environ['LOOM_AGENT'])")
    model = ("agent", "start", "x", "--model", f"exec/{program}", "--prompt", "hi")
    assert loom(*model, "--env", "GREETING=hey=you").out == "hey=you x\n"
    assert loom(*model, "--env", "LOOM_UNSAFE_NO_SANDBOX=1").status == 2
    assert loom(*model, "--env", "novalue").status == 2


BAD = [
    (("agent", "start", "X", "--model", "builtin/echo"), 2, "not valid"),
    (("agent", "start", "../x", "--model", "builtin/echo"), 2, "not valid"),
    (("agent", "start", "router", "--model", "builtin/echo"), 2, "reserved"),
    (("agent", "start", "planner-9", "--model", "builtin/echo"), 2, "reserved"),
    (("agent", "start", "x"), 2, "--model"),
    (("agent", "start", "x", "--model", "builtin/ecko"), 2, "did you mean 'echo'?"),
    (("agent", "start", "x", "--model", "opneai/gpt"), 2, "did you mean 'openai'?"),
    (("agent", "start", "x", "--model", "openai/gpt"), 78, "loom secret set openai"),
    (("agent", "start", "x", "--model", "exec/no-such-program"), 66, "no such program"),
    (("agent", "start", "x", "--model", "script/none.ndjson"), 66, "no such file"),
    ((*ECHO, "--thread", "a b"), 2, "thread"),
    ((*ECHO, "--tools", "read-fil"), 66, "did you mean read-file?"),
    ((*ECHO, "--tools", "Rm"), 2, "name of a tool"),
    ((*ECHO, "-w", "nowhere"), 66, "nowhere"),
    ((*ECHO, "--stdin", "--prompt", "a"), 2, "two inputs"),
    ((*ECHO, "--restart", "never"), 2, "needs --detach"),
    ((*ECHO, "--resume", "--thread", "t"), 2, "does not go with --resume"),
    (("agent", "start", "x", "--resume"), 66, "left unfinished"),
    (("agent", "start", "x", "--resume", "abc"), 2, "not a message's name"),
    (("agent", "start", "x", "--resume", "1700000000000-01HF7YAT00000000000000000A"), 66, "was left"),
    ((*ECHO, "--prompt", " \n"), 65, "empty"),
]


@pytest.mark.parametrize("words, status, hint", BAD)
def test_what_cannot_work_is_refused_in_one_line_before_anything_is_made(
    loom: Loom, words: tuple[str, ...], status: int, hint: str
) -> None:
    said = loom(*words, stdin="hello")
    assert (said.status, said.out) == (status, ""), said
    assert hint in said.err and said.err.count("\n") == 1
    assert loom.left() == []


@pytest.mark.parametrize(
    "data, hint",
    [
        (b"", "empty"),
        (b" \n\t\n", "empty"),
        (b"a\xffb", "no UTF-8 at byte 1"),
        (b"a\0b", "NUL"),
        (b"\x7fELF\x02\x01\x01\0\0\0\xfe", "not text"),
    ],
)
def test_input_that_says_nothing_or_is_no_text_is_refused(loom: Loom, data: bytes, hint: str) -> None:
    said = loom(*ECHO, stdin=data)
    assert (said.status, said.out) == (65, "")
    assert hint in said.err
    assert not loom.home.exists()


def test_fifty_megabytes_are_refused_while_they_are_read(loom: Loom) -> None:
    said = loom.shell("head -c 50000000 /dev/zero | tr '\\0' a | loom agent start x --model builtin/echo")
    assert (said.status, said.out) == (65, "")
    assert "8388608" in said.err and "--max-input" in said.err
    assert not loom.home.exists()


def test_max_input_moves_the_limit(loom: Loom) -> None:
    assert loom(*ECHO, "--max-input", "3", stdin="1234").status == 65
    assert loom(*ECHO, "--max-input", "4", stdin="1234").out == "1234\n"


def test_a_body_larger_than_a_message_lies_in_a_blob(loom: Loom) -> None:
    text = "lorem ipsum\n" * 200_000
    assert loom(*ECHO, stdin=text).out == text
    assert loom.left() == []


def test_a_server_that_cannot_be_reached_is_69_and_can_be_resumed(loom: Loom) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{unused.getsockname()[1]}"
        said = loom("agent", "start", "x", "--model", "ollama/m", "--timeout", "2.9", stdin="hello", OLLAMA_HOST=host)
    assert (said.status, said.out) == (69, "")
    (stem,) = loom.left()
    assert f"resume with: loom agent start x --resume {stem}" in said.err


def test_a_passing_error_is_tried_again_without_showing_anything_twice(loom: Loom) -> None:
    model = loom.script({"error": "try_later", "retry_after": 0}, {"text": "at last"})
    said = loom("agent", "start", "x", "--model", model, stdin="hello")
    assert (said.status, said.out) == (0, "at last\n")
    assert "trying again" in said.err


def test_text_that_broke_off_is_not_asked_for_again(loom: Loom) -> None:
    model = loom.script({"error": "broken_stream", "text": "half an ans"}, {"text": "never asked"})
    said = loom("agent", "start", "x", "--model", model, stdin="hello")
    assert (said.status, said.out) == (69, "half an ans")


def test_the_request_s_own_fault_leaves_nothing_to_resume(loom: Loom) -> None:
    said = loom("agent", "start", "x", "--model", loom.script({"error": "context_overflow"}), stdin="hello")
    assert said.status == 65
    assert loom.left() == []


def test_an_existing_agent_s_settings_are_the_defaults_and_flags_win(loom: Loom) -> None:
    loom("agent", "start", "x", "--model", "builtin/echo", "--system", "old", "--detach")
    program = loom.program("all.py", "import json, sys; print([m['text'] for m in json.load(sys.stdin)['messages']])")
    assert loom("agent", "start", "x", stdin="hello").out == "hello\n"
    changed = loom("agent", "start", "x", "--model", f"exec/{program}", stdin="hello")
    assert changed.out == "['old', 'hello']\n"


def test_the_configured_model_is_used_when_none_is_named(loom: Loom) -> None:
    loom.home.mkdir()
    (loom.home / "config.yml").write_text("model: builtin/extract\n")
    assert loom("agent", "start", "x", "--json", stdin="a").objects[0]["model"] == "builtin/extract"
    assert (
        loom("agent", "start", "x", "--json", stdin="a", LOOM_MODEL="builtin/echo").objects[0]["model"]
        == "builtin/echo"
    )
    assert loom(*ECHO, "--json", stdin="a", LOOM_MODEL="builtin/extract").objects[0]["model"] == "builtin/echo"


# -- tools -----------------------------------------------------------------------------------------------------


def test_tools_work_where_the_user_is_and_only_the_answer_goes_to_stdout(loom: Loom) -> None:
    (loom.place / "note.txt").write_text("the secret is 42")
    model = loom.script(
        {"text": "Let me look.", "calls": [{"name": "read-file", "input": {"path": "note.txt"}}]},
        {"text": "It is 42."},
    )
    said = loom("agent", "start", "x", "--model", model, "--tools", "read-file", stdin="what is it?")
    assert (said.status, said.out) == (0, "It is 42.\n")
    assert "Let me look." in said.err
    told = loom("agent", "start", "x", "--model", model, "--tools", "read-file", "--json", stdin="?").objects
    assert [e["event"] for e in told if e["event"] != "text"] == [
        "start",
        "usage",
        "tool_call",
        "tool_result",
        "usage",
        "result",
    ]
    (result,) = (e for e in told if e["event"] == "tool_result")
    assert "42" in json.dumps(result["result"])


def test_run_shell_needs_the_flag_that_says_what_it_means(loom: Loom) -> None:
    model = loom.script({"calls": [{"name": "run-shell", "input": {"command": "echo $((6*7))"}}]}, {"text": "done"})
    words = ("agent", "start", "x", "--model", model, "--tools", "run-shell", "--json")
    assert "refuses to run without --unsafe-no-sandbox" in loom(*words, stdin="?").err
    assert loom(*words, "--unsafe-no-sandbox", stdin="?").err == ""
    (refused,) = (e for e in loom(*words, stdin="?").objects if e["event"] == "tool_result")
    assert refused["status"] == "error"
    (ran,) = (e for e in loom(*words, "--unsafe-no-sandbox", stdin="?").objects if e["event"] == "tool_result")
    assert ran["status"] == "ok" and "42" in json.dumps(ran["result"])


# -- conversations ---------------------------------------------------------------------------------------------

HISTORY = "import json, sys; print([m['text'] for m in json.load(sys.stdin)['messages']], end='')"


def test_a_thread_remembers_and_without_one_nothing_is_kept(loom: Loom) -> None:
    model = f"exec/{loom.program('history.py', HISTORY)}"
    words = ("agent", "start", "x", "--model", model)
    assert loom(*words, "--thread", "t", stdin="one").out == "['one']\n"
    assert loom(*words, "--thread", "t", stdin="two").out == "['one', \"['one']\", 'two']\n"
    assert loom(*words, "--thread", "u", stdin="three").out == "['three']\n"
    assert loom(*words, stdin="four").out == "['four']\n"
    lines = (loom.home / "agents/x/conversations/t.ndjson").read_text().splitlines()
    assert [json.loads(line)["role"] for line in lines] == ["user", "assistant"] * 2


def blocking(loom: Loom, then: str = "print('done')") -> tuple[str, Path]:
    """(an exec/ model that says on a FIFO that it has begun and then waits for it, that FIFO)."""
    fifo = loom.place / "gate"
    os.mkfifo(fifo)
    source = f"open({str(fifo)!r}, 'w').write('begun'); open({str(fifo)!r}).read()\n{then}"
    return f"exec/{loom.program('blocks.py', source)}", fifo


def begin(loom: Loom, *words: str) -> tuple[subprocess.Popen[bytes], Path]:
    """A filter that is in the middle of its model call."""
    model, fifo = blocking(loom)
    process = loom.start("agent", "start", "x", "--model", model, *words, "--prompt", "hello")
    assert fifo.read_text() == "begun"
    return process, fifo


def test_a_conversation_has_one_turn_at_a_time(loom: Loom) -> None:
    process, fifo = begin(loom, "--thread", "t")
    said = loom(*ECHO, "--thread", "t", stdin="me too")
    assert said.status == 75 and "'t'" in said.err
    assert len(loom.left()) == 1, "the refused one leaves nothing"
    assert loom(*ECHO, "--thread", "other", stdin="me").status == 0
    fifo.write_text("go")
    out, _ = process.communicate(timeout=30)
    assert (process.returncode, out) == (0, b"done\n")


def test_a_damaged_conversation_is_named_and_left_alone(loom: Loom) -> None:
    words = (*ECHO, "--thread", "t")
    loom(*words, stdin="one")
    path = loom.home / "agents/x/conversations/t.ndjson"
    path.write_text("garbage\n" + path.read_text())
    before = path.read_text()
    said = loom(*words, stdin="two")
    assert said.status == 78 and f"{path}:1" in said.err
    assert path.read_text() == before and loom.left() == []


# -- interrupted, killed, resumed ------------------------------------------------------------------------------


@pytest.mark.parametrize("number, status", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_in_a_model_call_leaves_what_resume_goes_on_with(loom: Loom, number: int, status: int) -> None:
    process, fifo = begin(loom)
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (status, b"")
    (stem,) = loom.left()
    assert err.decode() == f"loom: interrupted; resume with: loom agent start x --resume {stem}\n"
    again = loom.start("agent", "start", "x", "--resume", stem)
    assert fifo.read_text() == "begun"
    fifo.write_text("go")
    out, err = again.communicate(timeout=30)
    assert (again.returncode, out, err) == (0, b"done\n", b"")
    assert loom.left() == []


def test_an_interrupted_filter_says_so_in_json_too(loom: Loom) -> None:
    process, _ = begin(loom, "--json")
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=30)
    last = json.loads(out.splitlines()[-1])
    assert last["error"]["type"] == "interrupted" and last["error"]["exit_status"] == process.returncode == 130
    assert loom.left()[0] in last["error"]["hint"]


def test_what_is_at_work_cannot_be_resumed_beside_it(loom: Loom) -> None:
    process, fifo = begin(loom)
    for words in ((), tuple(loom.left())):
        said = loom("agent", "start", "x", "--resume", *words)
        assert said.status == 75 and "at work" in said.err
    assert loom("agent", "start", "y", "--resume").status == 66, "it is another agent's"
    fifo.write_text("go")
    assert process.wait(30) == 0


def test_the_time_limit_ends_a_model_call_with_124(loom: Loom) -> None:
    model, _ = blocking(loom)
    process = loom.start("agent", "start", "x", "--model", model, "--timeout", "0.3", "--prompt", "hello")
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (124, b"")
    assert b"resume with" in err


def test_a_recorded_reply_is_not_paid_for_again(loom: Loom) -> None:
    """Killed between the model's call of a tool and the tool's result: the first reply is not asked for again."""
    fifo = loom.place / "gate"
    os.mkfifo(fifo)
    tools = loom.home / "tools"
    tools.mkdir(parents=True)
    spec = {"name": "waits", "description": "waits", "input_schema": {"type": "object"}, "idempotent": True}
    source = f"""
import json, sys
if sys.argv[1] == 'describe':
    print(json.dumps({spec!r}))
else:
    open({str(fifo)!r}, 'w').write('begun')
    open({str(fifo)!r}).read()
    print(json.dumps({{'status': 'ok', 'result': 1}}))
"""
    os.symlink(loom.program("waits", source), tools / "waits")
    counted = loom.program(
        "counted.py",
        """
import json, sys
asked = json.load(sys.stdin)['messages']
open('asked', 'a').write(f"{len(asked)}\\n")
if asked[-1]['role'] == 'tool':
    print(json.dumps({'text': 'finished'}))
else:
    print(json.dumps({'reply': {'text': '', 'calls': [{'name': 'waits', 'input': {}}]}}))
""",
    )
    process = loom.start("agent", "start", "x", "--model", f"exec/{counted}", "--tools", "waits", "--prompt", "go")
    assert fifo.read_text() == "begun"
    process.kill()
    process.wait(30)
    again = loom.start("agent", "start", "x", "--resume")
    assert fifo.read_text() == "begun"
    fifo.write_text("go")
    out, _ = again.communicate(timeout=30)
    assert (again.returncode, out) == (0, b"finished\n")
    assert (loom.place / "asked").read_text() == "1\n3\n"


def test_ctrl_c_does_not_wait_for_a_tool(loom: Loom) -> None:
    fifo = loom.place / "gate"
    os.mkfifo(fifo)
    model = loom.script(
        {"calls": [{"name": "run-shell", "input": {"command": f"echo begun > {fifo}; cat {fifo}"}}]}, {"text": "done"}
    )
    process = loom.start(
        "agent", "start", "x", "--model", model, "--tools", "run-shell", "--unsafe-no-sandbox", "--prompt", "go"
    )
    assert fifo.read_text() == "begun\n"
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 130
    said = loom("agent", "start", "x", "--resume", "--json")
    (result,) = (e for e in said.objects if e["event"] == "tool_result")
    assert "interrupted" in result["error"], "a tool that is not idempotent is never silently repeated"
    assert said.objects[-1]["text"] == "done"


# -- in a pipeline ---------------------------------------------------------------------------------------------


def test_a_reader_that_leaves_ends_it_quietly_and_nothing_is_left(loom: Loom) -> None:
    said = loom.shell("yes 'a line' | head -n 300000 | loom agent start x --model builtin/echo | head -n 1")
    assert (said.out, said.err) == ("a line\n", "")
    wait_until(lambda: loom.left() == [])


def test_a_full_disk_behind_stdout_is_74_and_the_answer_is_not_lost(loom: Loom) -> None:
    with Path("/dev/full").open("wb") as full:
        process = loom.start(*ECHO, "--prompt", "hello", stdout=full)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 74
    assert b"No space left" in err
    assert loom("agent", "start", "x", "--resume").out == "hello\n"


def test_filters_make_a_pipeline(loom: Loom) -> None:
    upper = loom.program("upper.py", "import json, sys; print(json.load(sys.stdin)['messages'][-1]['text'].upper())")
    text = " ".join(f"Sentence number {i} speaks of apples and of pears." for i in range(30))
    (loom.place / "text").write_text(text)
    said = loom.shell(f"loom agent start sum --model builtin/extract < text | loom agent start up --model exec/{upper}")
    assert (said.status, said.err) == (0, "")
    assert said.out.isupper() and 0 < len(said.out) < len(text) / 2


@pytest.mark.slow
def test_sixty_four_side_by_side_under_one_name_lose_neither_an_answer_nor_a_log_line(loom: Loom) -> None:
    said = loom.shell(
        "seq 1 64 | xargs -P 64 -I N sh -c 'echo answer N | loom agent start x --model builtin/echo || echo failed N'"
    )
    assert (said.status, said.err) == (0, "")
    assert sorted(said.out.splitlines()) == sorted(f"answer {n}" for n in range(1, 65))
    assert loom.left() == []
    seen: dict[str, list[str]] = {}
    for record in loom.log("x"):
        seen.setdefault(record["filter"], []).append(record["event"])
    assert len(seen) == 64
    assert all(events == ["filter_start", "model_reply", "filter_end"] for events in seen.values())


# -- answers that are spoiled, conversations that are too long ---------------------------------------------------------


def test_a_call_written_as_text_is_not_run_and_the_model_is_told(loom: Loom) -> None:
    written = {"text": 'I write.\n```json\n{"name": "write-file", "arguments": {"path": "a", "content": "b"}}\n```'}
    call = {"calls": [{"name": "write-file", "input": {"path": "c", "content": "d"}}]}
    model = loom.script(written, call, {"text": "written"})
    said = loom("agent", "start", "x", "--model", model, "--tools", "write-file", stdin="go")
    assert (said.status, said.out) == (0, "written\n")
    assert "a call of write-file written as text; asking again" in said.err
    assert (loom.place / "c").exists() and not (loom.place / "a").exists()


def test_a_turn_ends_after_as_many_steps_as_it_may_have(loom: Loom) -> None:
    calls = [{"calls": [{"name": "read-file", "input": {"path": f"{n}.txt"}}]} for n in range(3)]
    words = ("agent", "start", "x", "--model", loom.script(*calls, {"text": "done"}), "--tools", "read-file")
    said = loom(*words, "--max-steps", "2", stdin="go")
    assert (said.status, said.out) == (1, "") and "no answer after 2 steps" in said.err
    assert loom(*words, "--max-steps", "4", stdin="go").out == "done\n"


def test_the_same_call_again_and_again_is_told_and_ends_with_1(loom: Loom) -> None:
    (loom.place / "a").write_text("same")
    call = {"calls": [{"name": "read-file", "input": {"path": "a"}}]}
    said = loom("agent", "start", "x", "--model", loom.script(*[call] * 9), "--tools", "read-file", stdin="go")
    assert (said.status, said.out) == (1, "")
    assert "asking again" in said.err.splitlines()[0] and "again and again" in said.err.splitlines()[-1]
    assert sum(record["event"] == "tool_result" for record in loom.log("x")) == 4


def test_an_answer_without_end_is_1(loom: Loom) -> None:
    model = loom.script({"text": "I am stuck.\n" * 70, "stop": "length"})
    said = loom("agent", "start", "x", "--model", model, "--json", stdin="go")
    assert (said.status, said.objects[-1]["error"]["type"]) == (1, "repetition")


def test_a_history_that_does_not_fit_is_cut_and_told(loom: Loom) -> None:
    loom.home.mkdir()
    (loom.home / "config.yml").write_text(
        "providers: {lab: {dialect: openai, base_url: http://127.0.0.1:9/v1, context: 100}}\n"
    )
    loom("agent", "start", "x", "--model", "builtin/echo", "--thread", "t", stdin="y" * 400)
    said = loom("agent", "start", "x", "--model", "lab/m", "--thread", "t", "--timeout", "2.9", stdin="go")
    assert (said.status, said.out) == (69, "")
    assert said.err.splitlines()[0] == ("loom: history: the oldest 2 of 2 messages were left out (window 100 tokens)")
