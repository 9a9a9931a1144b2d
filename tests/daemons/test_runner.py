"""The plain agent's runner: what a message becomes. Real processes; every one works until nothing is left."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from runner_bench import Bench, call, script
from support import ROOT, wait_until

from loom.daemons import surroundings
from loom.spool import agents, bodies, locks, mailbox, wake
from loom.wire import exits
from loom.wire.errors import BadInput

OK = "print(json.dumps({'status': 'ok', 'result': given}))"


def test_messages_are_answered_in_order_and_put_away(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    stems = [bench.send(f"message {n}") for n in range(3)]
    assert bench.drain() == (0, "")
    for number, stem in enumerate(stems):
        reply = bench.reply(stem)
        assert (reply.body, reply.from_, reply.origin, reply.error) == (f"message {number}", "x", stem, False)
        assert bench.agent.processed(stem).exists()
    assert bench.left() == []


def test_the_prompt_and_the_options_reach_the_model(tmp_path: Path) -> None:
    said = "import json, sys; r = json.load(sys.stdin); print(json.dumps([r['messages'][0], r['options']]))"
    program = Bench(tmp_path / "other").program("said.py", said)
    bench = Bench(tmp_path, f"exec/{program}", "be kind", options={"seed": 7})
    stem = bench.send("hello")
    assert bench.drain() == (0, "")
    system, options = json.loads(bench.reply(stem).body)
    assert (system["role"], system["text"], options) == ("system", "be kind", {"seed": 7})


def test_a_conversation_grows_and_threads_are_apart(tmp_path: Path) -> None:
    said = "import json, sys; print([m['text'] for m in json.load(sys.stdin)['messages']], end='')"
    program = Bench(tmp_path / "other").program("said.py", said)
    bench = Bench(tmp_path, f"exec/{program}")
    first, other, second = bench.send("a"), bench.send("b", thread="t"), bench.send("c")
    assert bench.drain() == (0, "")
    assert bench.reply(first).body == "['a']"
    assert bench.reply(other).body == "['b']"
    assert bench.reply(second).body == "['a', \"['a']\", 'c']"
    assert bench.reply(other).thread == "t"


def test_a_body_in_a_blob_is_read_and_one_that_is_lost_fails_its_message(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    text = "lorem ipsum\n" * 150_000
    big, after = bench.send(text), bench.send("small")
    assert bench.drain() == (0, "")
    answer = bench.reply(big)
    assert answer.data is not None and answer.data["body_blob"]
    assert bench.reply(after).body == "small"
    for blob in bench.home.blobs.rglob("*"):
        if blob.is_file():
            blob.unlink()
    lost = bench.send("x", data={"body_blob": "0" * 64})
    assert bench.drain() == (0, "")
    assert bench.error(lost)["error_type"] == "bad_input" and "lost" in bench.reply(lost).body


# -- tools -----------------------------------------------------------------------------------------------------


def test_tools_are_called_and_their_results_given_to_the_model(tmp_path: Path) -> None:
    bench = Bench(tmp_path, script(tmp_path, call("echo", a=1), {"text": "done"}), tools=("echo",))
    bench.tool("echo", OK)
    stem = bench.send("go")
    assert bench.drain() == (0, "")
    assert bench.reply(stem).body == "done"
    assert bench.results(stem) == [{"status": "ok", "result": {"a": 1}}]
    assert [line["t"] for line in bench.turn(stem)] == [
        "open",
        "request",
        "reply",
        "intent",
        "result",
        "request",
        "reply",
    ]


def test_programs_get_the_variables_of_the_protocol_and_no_keys(tmp_path: Path) -> None:
    spec = {"tools": ("env",), "env": {"GREETING": "hi", "LOOM_WORKSPACE": str(tmp_path)}}
    bench = Bench(tmp_path, script(tmp_path, call("env"), {"text": "done"}), **spec)
    bench.tool("env", "print(json.dumps({'status': 'ok', 'result': dict(os.environ)}))")
    stem = bench.send("go")
    assert bench.drain(OPENAI_API_KEY="sk-very-secret")[0] == 0
    (result,) = bench.results(stem)
    seen = result["result"]
    assert seen["LOOM_HOME"] == str(bench.home.path) and seen["LOOM_AGENT"] == "x"
    assert seen["LOOM_AGENT_DIR"] == str(bench.agent.path) and seen["LOOM_WORKSPACE"] == str(tmp_path)
    assert seen["GREETING"] == "hi" and "LOOM_UNSAFE_NO_SANDBOX" not in seen
    assert "sk-very-secret" not in json.dumps(seen)


@pytest.mark.parametrize(
    "answer, error",
    [
        (call("ehco"), "did you mean 'echo'?"),
        ({"calls": [{"name": "echo", "input": None, "raw": "{broken"}]}, "not one JSON object"),
        (call("breaks"), "exited with 3"),
        (call("babbles"), "is not JSON"),
    ],
)
def test_a_tool_s_trouble_is_told_to_the_model(tmp_path: Path, answer: dict[str, object], error: str) -> None:
    model = tmp_path / "model.py"
    model.write_text(
        f"#!{sys.executable}\nimport json, sys\n"
        "asked = json.load(sys.stdin)['messages']\n"
        f"answer = {answer!r}\n"
        "print(json.dumps({'reply': {'text': '', **answer} if asked[-1]['role'] == 'user' else {'text': 'I see'}}))\n"
    )
    model.chmod(0o755)
    bench = Bench(tmp_path, f"exec/{model}", tools=("echo", "breaks", "babbles"))
    bench.tool("echo", OK)
    bench.tool("breaks", "sys.exit(3)")
    bench.tool("babbles", "print('hello')")
    stem = bench.send("go")
    assert bench.drain() == (0, "")
    assert bench.reply(stem).body == "I see"
    (result,) = bench.results(stem)
    assert result["status"] == "error" and error in result["error"]


# -- failures --------------------------------------------------------------------------------------------------


def test_a_failure_is_a_reply_and_a_record_and_the_next_message_is_answered(tmp_path: Path) -> None:
    model = script(tmp_path, {"match": "bad", "error": "bad_input", "message": "no sense"}, {"text": "fine"})
    bench = Bench(tmp_path, model)
    bad, good = bench.send("bad"), bench.send("good", thread="t")
    assert bench.drain() == (0, "")
    reply = bench.reply(bad)
    assert reply.error and reply.body == "no sense"
    assert reply.data is not None and reply.data["exit_status"] == exits.BAD_INPUT
    error = bench.error(bad)
    assert (error["attempts"], error["error_type"], error["last_error"]) == (1, "bad_input", "no sense")
    assert bench.reply(good).body == "fine"


def test_a_retried_message_is_another_attempt_with_another_reply(tmp_path: Path) -> None:
    bench = Bench(tmp_path, script(tmp_path, {"error": "bad_input", "message": "not yet"}))
    stem = bench.send("hello")
    assert bench.drain() == (0, "")
    script(tmp_path, {"text": "now"})
    assert mailbox.retry(bench.agent, "x", stem, agents.now_text())
    assert bench.drain() == (0, "")
    assert bench.reply(stem, attempt=0).error
    assert bench.reply(stem, attempt=1).body == "now"
    assert bench.agent.processed(stem).exists()


def test_an_empty_answer_is_asked_about_once_and_then_fails(tmp_path: Path) -> None:
    bench = Bench(tmp_path, script(tmp_path, {"text": ""}, {"match": "was empty", "text": "after all"}))
    stem = bench.send("hello")
    assert bench.drain() == (0, "")
    assert bench.reply(stem).body == "after all"
    (tmp_path / "second").mkdir()
    never = Bench(tmp_path / "second", script(tmp_path, {"text": " \n"}))
    stem = never.send("hello")
    assert never.drain() == (0, "")
    assert never.error(stem)["error_type"] == "empty_answer"


def test_passing_errors_are_tried_again_and_given_up_after_five(tmp_path: Path) -> None:
    later = {"error": "try_later", "retry_after": 0}
    bench = Bench(tmp_path, script(tmp_path, later, later, later, later, {"text": "at last"}))
    stem = bench.send("hello")
    assert bench.drain() == (0, "")
    assert bench.reply(stem).body == "at last"
    (tmp_path / "second").mkdir()
    never = Bench(tmp_path / "second", script(tmp_path, *[later] * 6))
    stem = never.send("hello")
    assert never.drain() == (0, "")
    assert never.error(stem)["error_type"] == "try_later"


def test_a_deadline_ends_a_model_call(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    program = Bench(tmp_path / "other").program("hangs.py", f"open({str(gate)!r}).read()")
    bench = Bench(tmp_path, f"exec/{program}")
    runner = bench.start()
    wait_until(lambda: agents.read_hint(bench.agent.status) == "idle")  # coming up takes none of the message's time
    now_ms = time.time_ns() // 1_000_000
    late, soon = bench.send("hello", deadline_ms=now_ms - 1), bench.send("hello", deadline_ms=now_ms + 1500)
    wake.ring(bench.home.wake_fifo("x"))
    for stem in (late, soon):
        wait_until(lambda stem=stem: bench.agent.error_of(stem).exists())
    runner.terminate()
    assert runner.communicate(timeout=30) == ("", "") and runner.returncode == 0
    for stem in (late, soon):
        reply = bench.reply(stem)
        assert reply.data is not None and reply.data["exit_status"] == exits.DEADLINE
        assert bench.error(stem)["error_type"] == "deadline"
    assert [line["t"] for line in bench.turn(soon)] == ["open", "request"]


@pytest.mark.parametrize(
    "name, text, reason",
    [
        ("1700000000000-01HF7YAT000000000000000000.msg", "{", "malformed"),
        ("1700000000000-01HF7YAT000000000000000000.msg", '{"v":2}', "newer_version"),
        ("not-a-name.msg", "{}", "bad_name"),
    ],
)
def test_an_unreadable_message_is_set_aside_and_the_next_one_answered(
    tmp_path: Path, name: str, text: str, reason: str
) -> None:
    bench = Bench(tmp_path)
    (bench.agent.inbox / name).write_text(text)
    stem = bench.send("hello")
    assert bench.drain() == (0, "")
    assert bench.reply(stem).body == "hello"
    record = json.loads((bench.agent.unreadable / f"{name}.error.json").read_text())
    assert record["reason"] == reason


# -- the process ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["openai/m", "script/none", "nowhere/m", "anthropic/m"])
def test_a_model_that_cannot_work_ends_it_before_it_claims_anything(tmp_path: Path, model: str) -> None:
    """With the status that is not tried again: a person has to change something."""
    bench = Bench(tmp_path, model)
    stem = bench.send("hello")
    code, said = bench.drain()
    assert code == exits.CONFIG and said.startswith("loom: ") and said.count("\n") == 1
    assert bench.left() == [f"{stem}.msg"]


def test_one_runner_at_a_time(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    first = bench.start()
    wait_until(lambda: locks.holder(bench.agent.lock))
    code, said = bench.drain()
    assert code == exits.TRY_LATER and "another process" in said
    first.terminate()
    first.communicate(timeout=30)
    assert first.returncode == 0


def test_a_waiting_runner_is_woken_by_a_ring(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    read, write = os.pipe()  # with a supervisor, which we are: alone it would look by itself every two seconds
    runner = bench.start(pass_fds=(read,), LOOM_ALONE_FD=str(read))
    wait_until(lambda: agents.read_hint(bench.agent.status) == "idle")
    stem = bench.send("hello")
    assert wake.ring(bench.home.wake_fifo("x"))
    wait_until(lambda: bench.agent.processed(stem).exists())
    runner.terminate()
    runner.communicate(timeout=30)
    os.close(read)
    os.close(write)


def test_readiness_is_told_with_the_lock_and_what_was_claimed_is_finished(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    stem = bench.send("hello")
    (bench.agent.inbox / f"{stem}.msg").rename(bench.agent.in_progress / f"{stem}.msg")
    read, write = os.pipe()
    runner = subprocess.Popen(
        [sys.executable, str(ROOT / "runners" / "agent"), str(bench.agent.path)],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "LOOM_READY_FD": str(write)},
        pass_fds=(write,),
    )
    os.close(write)
    assert os.read(read, 1) == b"\n"
    os.close(read)
    assert locks.is_held(bench.agent.lock)
    wait_until(lambda: bench.agent.processed(stem).exists())
    assert bench.reply(stem).body == "hello"
    runner.terminate()
    assert runner.wait(30) == 0


@pytest.mark.parametrize("words, status", [((), 2), (("a", "b"), 2), (("/nowhere",), 66), (("--help",), 2)])
@pytest.mark.parametrize("name", ["agent", "planner", "executor", "verifier", "keeper", "router"])
def test_every_runner_says_how_it_is_called(name: str, words: tuple[str, ...], status: int) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "runners" / name), *words],
        capture_output=True,
        text=True,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)},
        timeout=30,
        check=False,
    )
    assert (done.returncode, done.stdout) == (status, "")
    assert done.stderr.count("\n") == 1


# -- pictures, schemas, long conversations ------------------------------------------------------------------------

LOOKED = "import json, sys; r = json.load(sys.stdin); print(json.dumps([r['messages'], r['options']]))"
DIGEST = "0" * 64


def test_a_message_whose_pictures_are_lost_or_wrong_fails_and_no_other(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    odd = [
        *({"images": x} for x in ("a", [1], [{"media_type": "image/png"}], [{"media_type": "a/b", "blob": DIGEST}])),
        {"images": [{"media_type": "image/png", "blob": "../../etc"}]},
        {"images": [{"media_type": "image/png", "blob": DIGEST}]},
        {"images": [{"media_type": "image/png", "blob": DIGEST}] * 21},
    ]
    stems = [bench.send("look", data=data) for data in odd]
    fine = bench.send("hello", data={"images": [], "else": 1})
    assert bench.drain() == (0, "")
    assert [bench.error(stem)["error_type"] for stem in stems] == ["bad_input"] * len(odd)
    assert "lost" in bench.reply(stems[-2]).body
    assert bench.reply(fine).body == "hello"


def test_a_picture_that_was_spoiled_is_the_message_s_fault(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    images = bodies.attach(bench.home.blobs, [("image/png", b"a picture")])
    assert images is not None
    digest = images["images"][0]["blob"]
    context = surroundings.model_context(bench.home, {}, "/", {})
    assert context.blob(digest) == b"a picture"
    assert Path(context.blob_path(digest)).read_bytes() == b"a picture"
    Path(context.blob_path(digest)).write_bytes(b"another one")
    with pytest.raises(BadInput, match="lost"):
        context.blob(digest)
    Path(context.blob_path(digest)).unlink()
    with pytest.raises(BadInput, match="lost"):
        context.blob(digest)


def test_a_conversation_too_long_for_the_model_is_cut_and_the_log_says_so(tmp_path: Path) -> None:
    program = Bench(tmp_path / "other").program("looked.py", LOOKED)
    bench = Bench(tmp_path, f"exec/{program}", options={"context_tokens": 100, "seed": 7})
    small = bench.send("one")
    assert bench.drain() == (0, "")
    assert json.loads(bench.reply(small).body)[1] == {"seed": 7}  # the rest is no setting of the model
    long = bench.send("x" * 280)
    assert bench.drain() == (0, "")
    messages, _ = json.loads(bench.reply(long).body)
    assert [m["text"] for m in messages] == ["x" * 280]
    (cut,) = [r for r in bench.log() if r["event"] == "history_cut"]
    assert cut["what"] == "history: the oldest 2 of 2 messages were left out (window 100 tokens)"


@pytest.mark.parametrize("name", ["context_tokens", "max_steps"])
@pytest.mark.parametrize("count", [0, -1, "many", True, 1.5])
def test_an_option_that_is_no_number_is_a_fault_of_the_agent(tmp_path: Path, name: str, count: object) -> None:
    status, err = Bench(tmp_path, options={name: count}).drain()
    assert (status, f"option {name} is" in err) == (exits.CONFIG, True)


def test_an_agent_with_a_schema_answers_with_json_or_fails_the_message(tmp_path: Path) -> None:
    bench = Bench(tmp_path, schema={"type": "array", "items": {"type": "integer"}})
    good, bad = bench.send("these: [1, 2]"), bench.send("one", thread="t")
    assert bench.drain() == (0, "")
    assert bench.reply(good).body == "[1,2]"
    error = bench.error(bad)
    assert (error["error_type"], "3 tries" in error["last_error"]) == ("schema", True)


def test_a_schema_that_cannot_be_used_is_a_fault_of_the_agent(tmp_path: Path) -> None:
    status, err = Bench(tmp_path, schema={"$ref": "http://example.org"}).drain()
    assert (status, "$.$ref" in err) == (exits.CONFIG, True)
