"""Turn records and NDJSON files: what was written whole comes back, wherever the file was cut."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest

from loom.roles import chat
from loom.spool import fs, ndjson, threads, turns
from loom.spool.ndjson import Appender, Damaged
from loom.spool.turns import Turn
from loom.wire.chat import ChatMessage, ChatReply, ChatRequest, Image, ToolCall, ToolSpec, Usage

SPEC = ToolSpec("t", "a tool", {"type": "object"}, idempotent=True)
IMAGE = Image("image/png", "0" * 64)
SCHEMA = {"type": "object", "properties": {"n": {"minimum": 1}}}
FIRST = ChatRequest(
    "m/x",
    (ChatMessage("system", "s"), ChatMessage("user", "ü", images=(IMAGE,))),
    (SPEC,), 100, {"seed": 1}, SCHEMA,
)  # fmt: skip
CALL = ToolCall("c1", "t", {"a": [1, None, "x"]})
BROKEN = ToolCall("c2", "t", None, "{not json")
ASKS = ChatReply("thinking", (CALL, BROKEN), "tool_calls", Usage(1, 2, 3), "m")
ENDS = ChatReply("done", (), "end", Usage(4, 5), "m")
MORE = ChatRequest(
    "m/x",
    (*FIRST.messages, ChatMessage("assistant", "thinking", (CALL, BROKEN)), ChatMessage("tool", "r", call_id="c1")),
    (SPEC,), 100, {"seed": 1}, SCHEMA,
)  # fmt: skip


def path_in(quick_path: Path) -> Path:
    return quick_path / "turns" / "name.0.ndjson"


def opened(quick_path: Path) -> Turn:
    return Turn(path_in(quick_path), quick_path / "blobs")


def recorded(quick_path: Path, big: str = "") -> list[Any]:
    """A whole turn; the steps after each record, for comparison."""
    turn = opened(quick_path)
    seen = [snapshot(turn)]

    def then(done: object) -> None:
        seen.append(snapshot(turn))

    then(turn.open("boot", "1.1"))
    then(turn.request(FIRST))
    then(turn.reply(ASKS))
    then(turn.intent(CALL))
    then(turn.result("c1", {"status": "ok", "result": {"x": big}}))
    then(turn.intent(BROKEN))
    then(turn.result("c2", {"status": "error", "error": "no object"}))
    then(turn.request(MORE))
    then(turn.reply(ENDS))
    then(turn.release())
    turn.close()
    return seen


def snapshot(turn: Turn) -> Any:
    return [(s.request, s.reply, dict(s.intents), dict(s.results)) for s in turn.steps]


@pytest.mark.parametrize("big", ["", "x" * 70_000], ids=["small", "with a blob"])
def test_cut_at_every_byte_a_turn_gives_back_a_prefix_of_its_records(quick_path: Path, big: str):
    seen = recorded(quick_path, big)
    path = path_in(quick_path)
    data = path.read_bytes()
    assert len(data) < 5000 and data.count(b"\n") == len(seen) - 1
    for cut in range(len(data) + 1):
        path.write_bytes(data[:cut])
        turn = opened(quick_path)
        whole = data[:cut].count(b"\n")
        assert snapshot(turn) == seen[whole], f"cut at {cut}"
        turn.open("boot", "2.2")
        turn.close()
        assert path.read_bytes().count(b"\n") == whole + 1
        for torn in path.parent.glob("*.torn.*"):
            assert data[:cut].endswith(torn.read_bytes())
            torn.unlink()


def test_a_turn_goes_on_after_each_of_its_records(quick_path: Path):
    """Reopened after every single record, the file ends up the same but for the openings."""
    seen = recorded(quick_path / "one")
    steps: list[Any] = [
        lambda t: t.request(FIRST), lambda t: t.reply(ASKS), lambda t: t.intent(CALL),
        lambda t: t.result("c1", {"status": "ok", "result": {"x": ""}}), lambda t: t.intent(BROKEN),
        lambda t: t.result("c2", {"status": "error", "error": "no object"}), lambda t: t.request(MORE),
        lambda t: t.reply(ENDS),
    ]  # fmt: skip
    for number, step in enumerate(steps):
        turn = opened(quick_path / "two")
        turn.open("boot", f"{number}.1")
        step(turn)
        turn.close()
    turn = opened(quick_path / "two")
    assert snapshot(turn) == seen[-1] and turn.deaths == 0
    turn.close()


@pytest.mark.parametrize("levels", [60, 64, 100])
def test_a_deeply_nested_call_is_recorded_so_that_it_can_be_read(quick_path: Path, levels: int):
    value: Any = 1
    for _ in range(levels):
        value = {"a": value}
    call = ToolCall("c", "t", value)
    turn = opened(quick_path)
    turn.request(FIRST)
    turn.reply(ChatReply("", (call,), "tool_calls"))
    turn.intent(call)
    turn.result("c", {"status": "ok", "result": value})
    before = snapshot(turn)
    turn.close()
    turn = opened(quick_path)
    assert snapshot(turn) == before
    turn.close()


# O: open, B: open of another boot, p: any record of progress, r: released
@pytest.mark.parametrize("story, deaths", [
    ("", 0), ("O", 0), ("OO", 1), ("OOO", 2), ("OOOO", 3), ("OpO", 0), ("OpOO", 1), ("OpOpOpO", 0), ("OrO", 0),
    ("OrOO", 1), ("OBB", 1), ("OB", 0), ("OBO", 0), ("OOBOO", 2), ("OOpOO", 2), ("OprO", 0), ("pO", 0),
])  # fmt: skip
@pytest.mark.parametrize("reopened", [False, True])
def test_deaths_are_openings_without_progress_in_one_boot(quick_path: Path, story: str, deaths: int, reopened: bool):
    turn = opened(quick_path)
    for act in story:
        if reopened:
            turn.close()
            turn = opened(quick_path)
        match act:
            case "O":
                turn.open("this boot", "1.1")
            case "B":
                turn.open("that boot", "1.1")
            case "p":
                turn.request(FIRST)
            case "r":
                turn.release()
    assert turn.deaths == deaths
    turn.close()
    turn = opened(quick_path)
    assert turn.deaths == deaths
    turn.close()


def test_three_deaths_are_the_limit_of_the_protocol():
    assert turns.MAX_DEATHS == 3


def test_intent_and_result_are_synced_before_the_next_step_and_the_reply_with_its_intent(
    quick_path: Path, monkeypatch: pytest.MonkeyPatch
):
    synced = []

    class Watching(fs.Calls):
        def fdatasync(self, fd: int) -> None:
            synced.append(os.fstat(fd).st_size)
            super().fdatasync(fd)

    monkeypatch.setattr(fs, "calls", Watching())
    turn = opened(quick_path)
    turn.open("boot", "1.1")
    turn.request(FIRST)
    turn.reply(ASKS)
    assert synced == []
    for step in (lambda: turn.intent(CALL), lambda: turn.result("c1", {"status": "ok", "result": "x" * 70_000})):
        step()
        assert synced[-1] == path_in(quick_path).stat().st_size, "the whole record is covered by the sync"
    assert len(synced) == 2
    turn.close()


# -- ndjson ----------------------------------------------------------------------------------------------------


def appended(path: Path, *records: dict[str, Any]) -> None:
    file = Appender(path)
    for record in records:
        file.append(record)
    file.sync()
    file.close()


def test_cut_at_every_byte_an_appender_finds_the_whole_lines_and_goes_on(quick_path: Path):
    path = quick_path / "a.ndjson"
    records = [{"n": i, "text": "ü\n" * i} for i in range(4)]
    appended(path, *records)
    data = path.read_bytes()
    for cut in range(len(data) + 1):
        path.write_bytes(data[:cut])
        whole = data[:cut].count(b"\n")
        assert ndjson.read_objects(path) == records[:whole]
        file = Appender(path)
        assert file.records == records[:whole]
        file.append({"after": 1})
        file.close()
        assert ndjson.read_objects(path) == [*records[:whole], {"after": 1}]


@pytest.mark.parametrize("tail", [bytes(64), bytes(64) + b"\n", b"x\n", b"[]\n", b"\n", b'"a"\n{', b"\xff\n"])
def test_what_is_no_object_at_the_end_is_cut_off_and_kept(quick_path: Path, tail: bytes):
    path = quick_path / "a.ndjson"
    appended(path, {"n": 1})
    good = path.read_bytes()
    path.write_bytes(good + tail)
    file = Appender(path)
    file.close()
    assert (file.records, file.cut, path.read_bytes()) == ([{"n": 1}], len(tail), good)
    assert path.with_name(f"a.ndjson.torn.{len(good)}").read_bytes() == tail


def test_damage_in_the_middle_is_refused_with_its_place_and_left_alone(quick_path: Path):
    path = quick_path / "a.ndjson"
    path.write_bytes(b'{"n":1}\n{"n":\n{"n":3}\n')
    with pytest.raises(Damaged, match=r"a\.ndjson:2:"):
        Appender(path)
    assert path.read_bytes() == b'{"n":1}\n{"n":\n{"n":3}\n'
    assert ndjson.read_objects(path) == [{"n": 1}, {"n": 3}], "a reader leaves the damaged line out"


TORN = [b"", b'{"n":', bytes(300_000), b"\n" * 40, b"x\n" * 2000, b"x" * 5_000_000, bytes(200_000) + b"\n"]


@pytest.mark.parametrize("torn", TORN, ids=lambda torn: f"{torn[:4]!r} {len(torn)}")
@pytest.mark.parametrize("size", [0, 60, 9_000])
def test_the_end_of_a_long_file_is_read_and_mended_like_the_whole_of_it(quick_path: Path, torn: bytes, size: int):
    path = quick_path / "a.ndjson"
    lines = [b'{"n":%d,"text":"%s"}\n' % (n, b"u" * (n % 7 * size)) for n in range(150)]
    path.write_bytes(b"".join(lines) + torn)
    whole = Appender(path)
    whole.close()
    mended = path.read_bytes()
    assert mended == b"".join(lines)
    path.write_bytes(mended + torn)
    file = Appender(path, 20)
    file.append({"after": 1})
    file.close()
    assert len(file.records) >= 19, "a torn line counts as one"
    assert file.records == whole.records[-len(file.records) :]
    assert (file.cut, path.read_bytes()) == (len(torn), mended + b'{"after":1}\n')


def test_of_a_long_file_only_the_end_is_read(quick_path: Path, monkeypatch):
    path = quick_path / "a.ndjson"
    path.write_bytes(b'{"damaged":\n' + b"".join(b'{"n":%d}\n' % n for n in range(200_000)))
    taken: list[int] = []
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda fd, n, at: taken.append(n) or pread(fd, n, at))
    monkeypatch.setattr(fs, "read", lambda *_: pytest.fail("the whole file was read"))
    file = Appender(path, 100)
    file.close()
    assert [r["n"] for r in file.records] == list(range(199_900, 200_000))
    assert sum(taken) <= 64 << 10


def test_damage_near_the_end_of_a_long_file_is_refused_with_its_place(quick_path: Path):
    path = quick_path / "a.ndjson"
    path.write_bytes(b'{"n":1}\n' * 20_000 + b'{"n":\n{"n":3}\n')
    with pytest.raises(Damaged, match=r"a\.ndjson:20001:"):
        Appender(path, 100)


def test_a_conversation_gives_a_turn_all_that_it_takes_up():
    assert threads.LAST_LINES >= chat.MAX_HISTORY


def test_after_a_failed_write_no_record_is_glued_to_the_torn_one(quick_path: Path, monkeypatch):
    path = quick_path / "a.ndjson"
    file = Appender(path)
    file.append({"n": 1})

    class Full(fs.Calls):
        def write(self, fd: int, data: bytes | memoryview) -> int:
            if len(data) < 10:
                raise OSError(errno.ENOSPC, "no space")
            return os.write(fd, data[:10])

    with monkeypatch.context() as patch:
        patch.setattr(fs, "calls", Full())
        with pytest.raises(OSError):
            file.append({"n": 2, "long": "x"})
    with pytest.raises(OSError, match="open the file anew"):
        file.append({"n": 3})
    file.close()
    appended(path, {"n": 4})
    assert ndjson.read_objects(path) == [{"n": 1}, {"n": 4}]


@pytest.mark.parametrize("value", [float("nan"), "\ud800", object()], ids=["NaN", "surrogate", "object"])
def test_what_is_no_json_is_refused_and_the_file_goes_on(quick_path: Path, value: Any):
    path = quick_path / "a.ndjson"
    file = Appender(path)
    with pytest.raises((ValueError, TypeError)):
        file.append({"a": value})
    deep: Any = 1
    for _ in range(70):
        deep = {"a": deep}
    with pytest.raises(ValueError):
        file.append(deep)
    file.append({"n": 1})
    file.close()
    assert path.read_bytes() == b'{"n":1}\n'


def test_a_missing_file_has_no_objects(quick_path: Path):
    assert ndjson.read_objects(quick_path / "none") == []


def test_one_record_is_one_write(quick_path: Path, monkeypatch):
    writes = []

    class Watching(fs.Calls):
        def write(self, fd: int, data: bytes | memoryview) -> int:
            writes.append(bytes(data))
            return super().write(fd, data)

    file = Appender(quick_path / "a.ndjson")
    monkeypatch.setattr(fs, "calls", Watching())
    file.append({"a": "b\nc"})
    file.close()
    assert writes == [b'{"a":"b\\nc"}\n']
    assert json.loads(writes[0]) == {"a": "b\nc"}
