"""The process of a pipe's instance: real commands, real jq, real kills; what it was given comes out once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from support import wait_until

from loom.spool import agents, mailbox
from loom.spool.home import open_home
from loom.spool.layout import AgentDir, Home
from loom.wire import exits, ids
from loom.wire.agent import AgentSpec
from loom.wire.message import Message, decode, encode
from loom.wire.weave import Operator, encode_operators

ROOT = Path(__file__).parents[2]
NAME = "p~a→b"
LONG_S = 3600.0


def stem(number: int) -> str:
    return ids.message_stem(1_790_000_000_000 + number, number.to_bytes(10, "big"))


def command(cmd: str, timeout_s: float = 30.0) -> Operator:
    return Operator("command", {"cmd": cmd, "timeout_s": timeout_s})


def window(size: int, timeout_s: float = LONG_S) -> Operator:
    return Operator("window", {"size": size, "timeout_s": timeout_s})


TAP = Operator("tap", {"label": "seen"})


@dataclass(frozen=True)
class Instance:
    """One instance of a pipe in a home of its own."""

    home: Home
    box: AgentDir
    place: Path

    def chain(self, *operators: Operator) -> Instance:
        options = {"operators": encode_operators(operators), "cwd": str(self.place)}
        agents.create(self.home, AgentSpec(NAME, "pipe", runner="pipe", options=options), "", "up")
        return self

    def send(self, number: int, body: str, **fields: Any) -> str:
        name = stem(number)
        mailbox.deliver(self.box, name, encode(Message(ids.ulid_of(name), "a", 1, body, **fields)))
        return name

    def life(self, **env: str) -> int:
        """One whole life: everything that waits is worked on, then it leaves; the exit status."""
        child = self._begin(env)
        _, said = child.communicate(timeout=60)
        assert "Traceback" not in said.decode(), said.decode()
        return child.returncode

    def killed_at(self, book: str) -> None:
        """A life that ends by SIGKILL as soon as a command has made this file."""
        child = self._begin({})
        try:
            wait_until((self.place / book).exists)
        finally:
            child.kill()
            child.communicate(timeout=60)

    def _begin(self, env: Mapping[str, str]) -> subprocess.Popen[bytes]:
        argv = [sys.executable, str(ROOT / "runners" / "pipe"), str(self.box.path), "--drain"]
        given = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "LC_ALL": "C.UTF-8", **env}
        return subprocess.Popen(argv, env=given, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def replies(self) -> dict[str, Message]:
        return {name[:-4]: decode((self.box.outbox / name).read_bytes(), name[:-4])
                for name in sorted(os.listdir(self.box.outbox)) if name.endswith(".msg")}  # fmt: skip

    def reply(self, request: str, attempt: int = 0) -> Message:
        return self.replies()[ids.reply_stem(NAME, request, attempt)]

    def loose(self) -> list[Message]:
        """What left by itself: not under the name of a reply to anything that was sent."""
        sent = {ids.reply_stem(NAME, stem(n), attempt) for n in range(60) for attempt in (0, 1)}
        return [message for name, message in self.replies().items() if name not in sent]

    def runs(self, book: str = "runs") -> list[str]:
        path = self.place / book
        return path.read_text().splitlines() if path.exists() else []

    def log(self, event: str) -> list[dict[str, Any]]:
        files = sorted(self.box.logs.glob("*.ndjson"))
        lines = [json.loads(line) for file in files for line in file.read_text().splitlines()]
        return [line for line in lines if line["event"] == event]


@pytest.fixture
def pipe(tmp_path: Path) -> Instance:
    home = open_home(tmp_path / "home", {"LOOM_ALLOW_FILESYSTEM": "1"})
    return Instance(home, home.agent(NAME), tmp_path)


# -- each operator -------------------------------------------------------------------------------------------------


def test_every_line_of_a_command_is_a_message(pipe: Instance):
    name = pipe.chain(command("tr ' ' '\\n'")).send(1, "one two three", thread="t")
    assert pipe.life() == 0
    reply = pipe.reply(name)
    assert (reply.parts, reply.from_, reply.thread, reply.origin) == (("one", "two", "three"), NAME, "t", name)


def test_one_line_is_the_answer_itself_and_none_is_none(pipe: Instance):
    pipe.chain(command("grep -v skip"))
    one, none = pipe.send(1, "this"), pipe.send(2, "skip")
    assert pipe.life() == 0
    assert (pipe.reply(one).body, pipe.reply(one).parts) == ("this", None)
    assert pipe.reply(none).parts == ()


def test_a_command_sees_where_it_runs_and_no_secret(pipe: Instance):
    name = pipe.chain(command("echo $PWD $LOOM_AGENT $A_KEY")).send(1, "x")
    assert pipe.life(A_KEY="secret") == 0
    assert pipe.reply(name).body == f"{pipe.place} {NAME}"


def test_a_tap_copies_and_goes_on(pipe: Instance):
    name = pipe.chain(TAP).send(1, "hello", data={"x": 1})
    assert pipe.life() == 0
    assert (pipe.reply(name).body, pipe.reply(name).data) == ("hello", {"x": 1})
    assert decode((pipe.box.pipe_state / "tap" / "seen" / f"{name}.msg").read_bytes(), name).body == "hello"


def test_a_window_makes_one_of_many_and_names_it_after_the_first(pipe: Instance):
    pipe.chain(window(2))
    names = [pipe.send(n, f"body {n}") for n in (1, 2, 3)]
    assert pipe.life() == 0
    assert [pipe.reply(name).parts for name in names] == [(), (), ()]
    (batch,) = pipe.loose()
    assert [one["body"] for one in json.loads(batch.body)] == ["body 1", "body 2"]
    assert (batch.from_, batch.origin) == (NAME, names[1])
    assert batch.id == ids.ulid_of(ids.reply_stem(f"{NAME}/0", names[0], 0, 1))


def test_what_a_window_holds_leaves_when_its_time_is_over(pipe: Instance):
    pipe.chain(window(9, timeout_s=0.01))
    pipe.send(1, "one")
    assert pipe.life() == 0  # it may be over in this life already, and surely is in the next
    assert pipe.life() == 0
    assert [[one["body"] for one in json.loads(batch.body)] for batch in pipe.loose()] == [["one"]]


def test_a_buffer_holds_until_its_condition_is_true(pipe: Instance):
    pipe.chain(Operator("buffer", {"until": 'any(.body == "end")', "timeout_s": LONG_S}))
    for number, body in enumerate(["one", "two", "end", "three"]):
        pipe.send(number, body)
    assert pipe.life() == 0
    (batch,) = pipe.loose()
    assert [one["body"] for one in json.loads(batch.body)] == ["one", "two", "end"]
    assert batch.data is None


def test_a_buffer_whose_time_is_over_says_so(pipe: Instance):
    pipe.chain(Operator("buffer", {"until": "false", "timeout_s": 0.01}))
    pipe.send(1, "one")
    assert [pipe.life(), pipe.life()] == [0, 0]
    (batch,) = pipe.loose()
    assert batch.data == {"_buffer_timeout": True}


def test_dedupe_drops_what_it_has_seen(pipe: Instance):
    pipe.chain(Operator("dedupe", {"key": ".body"}))
    names = [pipe.send(number, body) for number, body in enumerate(["a", "b", "a"])]
    assert pipe.life() == 0
    assert [pipe.reply(name).parts for name in names] == [None, None, ()]


def test_dedupe_remembers_as_many_keys_as_the_settings_say(pipe: Instance):
    pipe.home.config.write_text("retention: {dedupe_keys: 2}\n")
    pipe.chain(Operator("dedupe", {"key": ".body"}))
    names = [pipe.send(number, body) for number, body in enumerate(["a", "b", "b", "c", "a"])]
    assert pipe.life() == 0
    assert [pipe.reply(name).parts for name in names] == [None, None, (), None, None]


def test_a_throttle_lets_through_so_many_and_the_rest_later(pipe: Instance):
    pipe.chain(Operator("throttle", {"max": 2, "per_s": LONG_S}))
    names = [pipe.send(number, f"body {number}") for number in range(3)]
    assert pipe.life() == 0
    assert [pipe.reply(name).parts for name in names] == [None, None, ()]
    pipe.chain(Operator("throttle", {"max": 2, "per_s": 0.01}))  # another chain: what was held goes on as it is
    assert pipe.life() == 0
    assert [(one.body, one.from_, one.origin) for one in pipe.loose()] == [("body 2", NAME, names[2])]


def test_accumulate_folds_and_tells_each_state(pipe: Instance):
    pipe.chain(Operator("accumulate", {"expr": "((.[0] // {n: 0}).n + (.[1].body | tonumber)) | {n: .}"}))
    names = [pipe.send(number, body) for number, body in enumerate(["1", "2", "x", "3"])]
    assert pipe.life() == 0
    assert [pipe.reply(name).body for name in names] == ['{"n":1}', '{"n":3}', "x", '{"n":6}']
    assert "expr: exit 5" in pipe.log("operator")[0]["why"]


@pytest.mark.parametrize("status", [1, 128, 200, 255])  # perl's die and ssh's errors end with 255: no signal's number
def test_a_command_that_refuses_drops_the_message_whatever_its_status(pipe: Instance, status: int):
    pipe.chain(command(f"exit {status}"))
    name = pipe.send(1, "secret")
    assert pipe.life() == 0
    assert pipe.reply(name).body == "" and f"exit {status}" in pipe.log("operator")[0]["why"]


def test_operators_work_one_after_the_other(pipe: Instance):
    pipe.chain(command("tr ' ' '\\n'"), Operator("dedupe", {"key": ".body"}), window(2), command("jq -c 'map(.body)'"))
    name = pipe.send(1, "a b a c d")
    assert pipe.life() == 0
    assert pipe.reply(name).parts == ()
    assert sorted(one.body for one in pipe.loose()) == ['["a","b"]', '["c","d"]']


# -- failures ------------------------------------------------------------------------------------------------------


def test_a_failure_goes_downstream_and_no_command_reads_its_text(pipe: Instance):
    pipe.chain(command("touch called; tr a-z A-Z"))
    name = pipe.send(1, "it broke", error=True, data={"error_type": "x"})
    assert pipe.life() == 0
    assert pipe.reply(name).parts == ()
    (failure,) = pipe.loose()
    assert (failure.body, failure.error, failure.data) == ("it broke", True, {"error_type": "x"})
    assert not (pipe.place / "called").exists()
    assert mailbox.failed(pipe.box) == []


def test_a_command_that_hangs_is_ended_and_changes_nothing(pipe: Instance):
    name = pipe.chain(command("cat >/dev/null; sleep 1000", timeout_s=0.2)).send(1, "hello")
    assert pipe.life() == 0
    assert pipe.reply(name).body == "hello"
    assert "did not end within 0.2 s" in pipe.log("operator")[0]["why"]


def test_a_command_that_dies_changes_nothing(pipe: Instance):
    name = pipe.chain(command("kill -SEGV $$")).send(1, "hello")
    assert pipe.life() == 0
    assert pipe.reply(name).body == "hello"
    assert "SIGSEGV" in pipe.log("operator")[0]["why"]


@pytest.mark.parametrize("cmd, words", [
    ("yes", "more than 10000 lines"),
    ("seq 10001", "more than 10000 lines"),
    ("head -c 2000000 /dev/zero | tr '\\0' x", "stopped"),
    (f"yes {'x' * 999} | head -n 3000", "more than 1048576 bytes"),
    ("yes ''", "more than 1048576 bytes"),
    ("no-such-program-anywhere", "not there"),
    ("./not-executable", "not there"),
])  # fmt: skip
def test_a_command_that_floods_or_is_missing_fails_the_message_which_can_be_tried_again(
    pipe: Instance, cmd: str, words: str
):
    (pipe.place / "not-executable").write_text("x")
    name = pipe.chain(TAP, command(cmd)).send(1, "hello")
    assert pipe.life() == 0
    failure = pipe.reply(name)
    assert failure.error
    assert words in failure.body
    assert mailbox.failed(pipe.box) == [name]
    mailbox.retry(pipe.box, NAME, name, "now")
    pipe.chain(TAP, command("cat"))
    assert pipe.life() == 0
    assert pipe.reply(name, attempt=1).body == "hello"


def test_a_batch_that_cannot_be_worked_on_is_a_failure_downstream(pipe: Instance):
    pipe.chain(window(1), command("no-such-program-anywhere"))
    name = pipe.send(1, "hello")
    assert pipe.life() == 0
    assert pipe.reply(name).parts == ()
    (failure,) = pipe.loose()
    assert failure.error
    assert "not there" in failure.body


def test_without_jq_it_is_a_matter_of_configuration(pipe: Instance):
    pipe.chain(Operator("dedupe", {"key": ".body"})).send(1, "hello")
    assert pipe.life(PATH=str(pipe.place)) == exits.CONFIG
    assert len(os.listdir(pipe.box.inbox)) > 0


def test_a_chain_that_cannot_be_read_is_too(pipe: Instance):
    options = {"operators": [{"operator": "windw"}]}
    agents.create(pipe.home, AgentSpec(NAME, "pipe", runner="pipe", options=options), "", "up")
    assert pipe.life() == exits.CONFIG


def test_a_body_in_a_blob_is_read_whole_and_one_that_is_too_long_goes_into_one(pipe: Instance):
    pipe.chain(command("wc -c"))
    name = pipe.send(1, "…", data={"body_blob": "0" * 64})
    assert pipe.life() == 0
    assert pipe.reply(name).error
    assert "lost" in pipe.reply(name).body


# -- kills ---------------------------------------------------------------------------------------------------------

KILLED_ONCE = "test -e killed || { touch killed; sleep 1000; }; cat"


def counted(number: int) -> Operator:
    return command(f"echo {number} >> runs; cat")


@pytest.mark.parametrize("chain, runs", [
    ((counted(1), command(KILLED_ONCE), counted(2)), ["1", "2"]),
    ((counted(1), window(1), command(KILLED_ONCE), counted(2)), ["1", "2"]),
    ((command("cat; echo; echo more"), counted(1), command(KILLED_ONCE), counted(2)), ["1", "2", "1", "2"]),
])  # fmt: skip
def test_a_killed_pipe_goes_on_behind_the_last_operator_that_was_done(
    pipe: Instance, chain: Sequence[Operator], runs: list[str]
):
    name = pipe.chain(*chain).send(1, "hello")
    pipe.killed_at("killed")
    assert pipe.life() == 0
    assert sorted(pipe.runs()) == sorted(runs)
    bodies = [one.body for one in pipe.loose()] or [pipe.reply(name).body, *(pipe.reply(name).parts or ())]
    assert any("hello" in body for body in bodies)
    assert mailbox.in_progress(pipe.box) == []
    assert mailbox.failed(pipe.box) == []


def test_a_message_at_which_it_dies_each_time_is_failed_after_three_deaths(pipe: Instance):
    name = pipe.chain(command("touch reached; sleep 1000")).send(1, "hello")
    for _ in range(3):
        pipe.killed_at("reached")
        (pipe.place / "reached").unlink()
    assert pipe.life() == 0
    assert "died 3 times" in pipe.reply(name).body


def test_its_journal_is_written_anew_when_it_is_long_and_nothing_is_forgotten(pipe: Instance):
    pipe.chain(Operator("window", {"size": 2, "timeout_s": LONG_S}))
    first = pipe.send(1, "one")
    assert pipe.life() == 0
    journal = pipe.box.pipe_state / "journal.ndjson"
    with journal.open("a") as file:  # thousands of messages that came and were answered
        for number in range(2100):
            file.write(json.dumps({"t": "enter", "message": f"x{number}"}) + "\n")
            file.write(json.dumps({"t": "answered", "message": f"x{number}"}) + "\n")
    pipe.send(2, "two")
    assert pipe.life() == 0
    assert len(journal.read_text().splitlines()) < 20
    (batch,) = pipe.loose()
    assert [one["body"] for one in json.loads(batch.body)] == ["one", "two"]
    assert ids.ulid_of(first) in batch.body
