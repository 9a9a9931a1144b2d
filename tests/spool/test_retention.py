"""gc: each condition under which something goes or stays, by itself; the clock is given."""

from __future__ import annotations

import base64
import fcntl
import gzip
import json
import os
import time
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from loom.core.retention import Policy
from loom.spool import blobs, fs, litter, locks, mailbox, references, retention, schedules, turns
from loom.spool.broom import Broom, Crowd, Report
from loom.spool.journal import Journal
from loom.spool.layout import AgentDir, Home
from loom.wire import goal as goal_wire
from loom.wire import ids, message
from loom.wire.chat import ChatMessage, ChatRequest
from loom.wire.errors import TryLater
from loom.wire.goal import GoalSpec
from loom.wire.message import Message
from loom.wire.schedule import Intent, Post, Slots
from loom.wire.times import day_of

DAY_S = 86_400
T0_MS = 1_790_000_000_000


def stem(number: int) -> str:
    return ids.message_stem(T0_MS + number, number.to_bytes(10, "big"))


class World:
    """A home with agents `a` (which answers) and `b` (which gets the answers)."""

    def __init__(self, path: Path) -> None:
        self.home = Home(path)
        self.a, self.b = self.agent("a"), self.agent("b")
        self.home.blobs.mkdir(mode=0o700)

    def agent(self, name: str) -> AgentDir:
        made = self.home.agent(name)
        mailbox.create(made)
        return made

    def write(self, path: Path, data: bytes = b"x") -> Path:
        fs.ensure_dir(path.parent)
        path.write_bytes(data)
        return path

    def request(self, number: int, place: str = "processed", box: AgentDir | None = None, **fields: Any) -> str:
        """A message to `a`, in one of its states."""
        name, box = stem(number), box or self.a
        found = Message(ids.ulid_of(name), "user", T0_MS, f"question {number}", reply_to="b", **fields)
        where = {"processed": box.processed(name), "failed": box.failed / f"{name}.msg",
                 "inbox": box.inbox / f"{name}.msg", "in-progress": box.in_progress / f"{name}.msg",
                 "unreadable": box.unreadable / f"{name}.msg"}[place]  # fmt: skip
        self.write(where, message.encode(found))
        return name

    def reply(self, request: str, place: str = "sent", attempt: int = 0, **fields: Any) -> tuple[str, bytes]:
        """What `a` answered, in its outbox or in `.sent/`."""
        asked = Message(ids.ulid_of(request), "user", T0_MS, "", reply_to="b")
        name, reply = message.reply_to(asked, request, "a", attempt, f"answer to {request}", 1, **fields)
        data = message.encode(reply)
        self.write(self.a.sent(name) if place == "sent" else self.a.outbox / f"{name}.msg", data)
        return name, data

    def gc(self, days: float = 8, **options: Any) -> Report:
        """gc, so many days from now."""
        return retention.collect(self.home, now_s=time.time() + days * DAY_S, **options)

    def files(self) -> set[str]:
        return {str(p.relative_to(self.home.path)) for p in self.home.path.rglob("*") if p.is_file()}

    def archived(self) -> list[dict[str, Any]]:
        return [
            json.loads(line)
            for path in sorted(self.home.archive.glob("*.ndjson.gz"))
            for line in unpacked(path).splitlines()
        ]  # fmt: skip

    def goal(self, name: str) -> Path:
        models = dict.fromkeys(("planner", "executor", "verifier"), "builtin")
        spec = GoalSpec(name, "Do it.", "user", 1, models)
        return self.write(self.home.goal(name).document, goal_wire.encode(spec))


@pytest.fixture
def world(quick_path: Path) -> World:
    return World(quick_path / "home")


def unpacked(path: Path) -> bytes:
    return gzip.decompress(path.read_bytes())


def tree(path: Path) -> dict[str, tuple[int, str]]:
    """Everything below a path: mode, and the digest of the bytes."""
    return {
        str(p.relative_to(path)): (p.lstat().st_mode, sha256(p.read_bytes()).hexdigest() if p.is_file() else "")
        for p in path.rglob("*")
    }


# -- messages that are finished ----------------------------------------------------------------------------------


def test_what_is_finished_goes_to_the_archive_with_its_names_and_bytes(world: World):
    name = world.request(1)
    reply, data = world.reply(name)
    world.write(world.b.processed(reply), data)
    world.write(world.a.turn(name, 0), b'{"t":"open"}\n')
    before = {p: (world.home.path / p).read_bytes() for p in world.files()}
    report = world.gc()
    assert report.gone == {"processed": 2, "sent": 1, "turn": 1} and not report.stays
    kept = {f"agents/{line['agent']}/{line['file']}": line["text"].encode() for line in world.archived()}
    assert kept == before
    assert not any(p.suffix == ".msg" for p in world.home.path.rglob("*"))
    assert [p.name for p in world.home.archive.glob("*.gz")] == [f"{day_of(T0_MS)}.ndjson.gz"]
    assert not list(world.a.processed_days.iterdir()) and not list(world.a.sent_days.iterdir())


def test_a_second_run_finds_nothing_and_changes_nothing(world: World):
    world.reply(world.request(1))
    world.gc()
    before = tree(world.home.path)
    report = world.gc()
    assert not report.gone and not report.stays and tree(world.home.path) == before


def test_what_is_young_stays_and_so_does_everything_when_the_clock_was_set_back(world: World):
    world.reply(world.request(1))
    before = tree(world.home.path)
    for days in (6.9, 0, -100):
        assert not world.gc(days).gone
    assert {p: v for p, v in tree(world.home.path).items() if p != "tidy.lock"} == before


def test_a_dry_run_changes_nothing_and_foresees_what_goes(world: World):
    for number in range(5):
        name = world.request(number)
        world.reply(name)
        world.write(world.a.turn(name, 0), b"{}\n")
    world.reply(world.request(6), "outbox")
    world.write(world.home.path / ".tmp" / "litter")
    before = tree(world.home.path)
    said: list[tuple[str, str]] = []
    foreseen = world.gc(dry_run=True, tell=lambda path, what, why: said.append((path.name, why)))
    assert tree(world.home.path) == before
    done = world.gc()
    assert foreseen.gone == done.gone == {"processed": 5, "sent": 5, "turn": 5, "litter": 1}
    assert foreseen.stays == done.stays == {"its reply waits for the router": 1}
    assert (f"{stem(6)}.msg", "its reply waits for the router") in said


@pytest.mark.parametrize("whose", ["a", "b", "c"])
def test_a_processed_message_stays_while_its_name_stands_in_anybodys_outbox(world: World, whose: str):
    """It could be delivered once more, and would be worked on twice."""
    reply, data = world.reply(world.request(1))
    copy = world.write(world.b.processed(reply), data)
    outgoing = world.write(world.agent(whose).outbox / f"{reply}.msg", data)
    assert world.gc().stays["its name stands in an outbox"] == 1
    assert copy.exists()
    outgoing.unlink()
    world.gc()
    assert not copy.exists()


def test_a_processed_part_stays_while_the_reply_it_is_a_part_of_stands_in_the_outbox(world: World):
    name = world.request(1)
    reply, _ = world.reply(name, "outbox", parts=("one", "two"))
    parts = [world.write(world.b.processed(ids.reply_stem("a", name, 0, k)),
                         message.encode(Message(ids.ulid_of(ids.reply_stem("a", name, 0, k)), "a", 1, "", origin=name)))
             for k in (1, 2)]  # fmt: skip
    assert world.gc().stays["its name stands in an outbox"] == 2
    fs.move(world.a.outbox / f"{reply}.msg", world.a.sent(reply))
    world.gc()
    assert not any(p.exists() for p in parts)


def test_the_senders_outbox_is_looked_into_once_more_than_the_round_before(world: World, monkeypatch: Any):
    """The clock was set back and the message sent, delivered and processed after our round: only this look sees it."""
    name = world.request(1)
    reply, data = world.reply(name, "outbox", parts=("one",))
    part = ids.reply_stem("a", name, 0, 1)
    copy = message.encode(replace(message.decode(data, reply), id=ids.ulid_of(part), parts=None))
    copies = [world.write(world.b.processed(reply), data), world.write(world.b.processed(part), copy)]
    monkeypatch.setattr(retention.Mail, "_look_round", lambda self: None)
    assert world.gc().stays["its name stands in an outbox"] == 2
    assert all(copy.exists() for copy in copies)


@pytest.mark.parametrize("place", ["inbox", "in-progress", "failed"])
@pytest.mark.parametrize("attempt", [0, 2])
@pytest.mark.parametrize("says_origin", [True, False])
def test_a_sent_reply_stays_while_its_request_is_not_finished(
    world: World, place: str, attempt: int, says_origin: bool
):
    """The look would miss it, and the message would be answered twice."""
    name = world.request(1, place)
    reply, _ = world.reply(name, attempt=attempt, **({} if says_origin else {"origin": ""}))
    assert world.gc().stays["the message it answers is not finished"] == 1
    assert world.a.sent(reply).exists()


def test_a_sent_reply_whose_request_is_gone_goes(world: World):
    reply, _ = world.reply(stem(1))
    assert world.gc().gone == {"sent": 1}
    assert not world.a.sent(reply).exists()


@pytest.mark.parametrize("place", ["inbox", ".in-progress"])
def test_request_and_reply_stay_until_the_reply_is_acknowledged(world: World, place: str):
    name = world.request(1)
    reply, data = world.reply(name)
    there = world.write(world.b.inbox / ("" if place == "inbox" else place) / f"{reply}.msg", data)
    assert world.gc().stays == {"its reply is not yet acknowledged": 1, "it is not yet acknowledged": 1}
    fs.move(there, world.b.processed(reply))
    world.gc()
    assert not world.a.processed(name).exists() and not world.a.sent(reply).exists()


def test_a_reply_in_parts_is_acknowledged_when_all_parts_are(world: World):
    name = world.request(1)
    world.reply(name, parts=("one", "two"))
    second = ids.reply_stem("a", name, 0, 2)
    world.write(world.b.inbox / f"{second}.msg", b"{}")
    assert set(world.gc().stays) == {"its reply is not yet acknowledged", "it is not yet acknowledged"}


def test_an_order_stays_while_its_goal_is_under_way(world: World):
    """The router publishes an order once more that it has no report of."""
    document = world.goal("20260101-goal-1234")
    name = world.request(1, kind="execute", goal="20260101-goal-1234")
    assert world.gc().stays == {"its goal is under way": 1}
    (document.parent / "resting").write_text("completed\n")
    world.gc()
    assert not world.a.processed(name).exists()


def test_what_failed_is_unreadable_or_refused_waits_for_a_person(world: World):
    world.request(1, "failed")
    world.write(world.a.error_of(stem(1)), b'{"attempts":1}')
    world.write(world.a.turn(stem(1), 0), b"{}\n")
    for directory in (world.a.unreadable, world.a.refused):
        world.write(directory / f"{stem(2)}.msg")
        world.write(directory / f"{stem(2)}.msg.error.json", b"{}")
    before = world.files()
    world.gc(1000)
    assert world.files() - {"tidy.lock"} == before


def test_attempts_are_counted_for_as_long_as_the_name_is_kept(world: World):
    name = world.request(1)
    world.write(world.a.error_of(name), b'{"attempts":1}')
    first, _ = world.reply(name, attempt=0, error=True)
    waiting, data = world.reply(name, attempt=1)
    there = world.write(world.b.inbox / f"{waiting}.msg", data)
    world.gc()
    assert world.a.processed(name).exists() and mailbox.attempts(world.a, name) == 1
    assert not world.a.sent(first).exists()
    there.unlink()
    assert world.gc().gone == {"processed": 1, "sent": 1, "error": 1}
    assert not world.a.error_of(name).exists()


@pytest.mark.parametrize("place", ["inbox", "in-progress", "processed", "failed"])
def test_a_turn_stays_as_long_as_its_message(world: World, place: str):
    name = world.request(1, place)
    world.reply(name, "outbox")
    turn = world.write(world.a.turn(name, 0), b"{}\n")
    torn = world.write(turn.with_name(f"{turn.name}.torn.3"), b"\xff")
    world.gc()
    assert turn.exists() and torn.exists()


def test_what_is_kept_is_not_even_listed(world: World, monkeypatch: pytest.MonkeyPatch):
    """A run costs what has grown old, however much is kept."""
    for number in range(3):
        world.write(world.a.turn(world.request(number), 0), b"{}\n")
    looked: list[Path] = []
    real = fs.names

    def noted(directory: Path, *more: Any) -> Any:
        looked.append(directory)
        return real(directory, *more)

    monkeypatch.setattr(fs, "names", noted)
    now_s = T0_MS / 1000 + 6 * DAY_S
    monkeypatch.setattr(retention, "_FEW", 0)
    assert retention.collect(world.home, now_s=now_s).gone == {}
    day = world.a.processed(stem(0)).parent
    assert world.a.processed_days in looked and day not in looked
    looked.clear()
    retention.collect(world.home, now_s=now_s + 2 * DAY_S)
    assert day in looked and world.a.turns in looked


def test_a_day_that_is_yet_to_come_is_looked_into(world: World):
    """Its sender's clock was years ahead: by its name it would be kept until then."""
    name = ids.message_stem(T0_MS + 70 * 365 * DAY_S * 1000, bytes(10))
    path = world.write(world.a.processed(name), message.encode(Message(ids.ulid_of(name), "user", T0_MS, "from afar")))
    assert world.gc().gone == {"processed": 1}
    assert not path.exists()


def test_what_only_looks_like_a_day_harms_nothing(world: World):
    odd = world.write(world.a.processed_days / "2026-99-99" / "note")
    name = world.request(1)
    assert world.gc().gone == {"processed": 1}
    assert odd.exists() and not world.a.processed(name).exists()


def test_a_turn_without_its_message_goes_with_what_was_cut_off_it(world: World):
    turn = world.write(world.a.turn(stem(1), 3), b"{}\n")
    world.write(turn.with_name(f"{turn.name}.torn.3"), b"\xff\0")
    assert world.gc().gone == {"turn": 2}
    assert [line.get("text") or line["base64"] for line in world.archived()] == ["{}\n", "/wA="]


def test_a_file_of_many_mebibytes_stands_on_several_lines(world: World):
    data = b'{"x":"' + "ü".encode() * (3 << 19) + b'"}\n' + b"\0\xff" * 100
    world.write(world.a.turn(stem(1), 0), data)
    world.gc()
    lines = world.archived()
    assert [line.get("more", False) for line in lines] == [*[True] * (len(lines) - 1), False] and len(lines) > 3
    parts = [line["text"].encode() if "text" in line else base64.b64decode(line["base64"]) for line in lines]
    assert b"".join(parts) == data and not world.a.turn(stem(1), 0).exists()


def test_a_message_that_cannot_be_read_is_told_and_stays(world: World):
    world.write(world.a.processed(stem(1)), b"nothing like a message")
    os.symlink("/etc/passwd", world.a.processed(stem(2)))
    assert world.gc().stays == {"it cannot be read": 2}


def test_a_day_that_is_archived_already_grows(world: World):
    world.request(1)
    world.gc()
    first = world.home.archive_of(day_of(T0_MS)).read_bytes()
    world.request(2)
    world.gc()
    assert world.home.archive_of(day_of(T0_MS)).read_bytes().startswith(first)
    assert [line["file"][-44:-4] for line in world.archived()] == [stem(1), stem(2)]


class Recorder(fs.Calls):
    """Notes every change in order."""

    def __init__(self) -> None:
        self.log: list[tuple[str, str]] = []

    def sync_file_system(self, path: str) -> None:
        self.log.append(("syncfs", path))
        super().sync_file_system(path)

    def rename(self, source: str, target: str) -> None:
        self.log.append(("rename", target))
        super().rename(source, target)

    def fsync_dir(self, path: str) -> None:
        self.log.append(("fsync_dir", path))
        super().fsync_dir(path)

    def unlink(self, path: str) -> None:
        self.log.append(("unlink", path))
        super().unlink(path)


def test_what_was_seen_is_durable_and_archived_before_anything_goes(world: World, monkeypatch: pytest.MonkeyPatch):
    """A power cut must not bring back an outbox entry whose processed copy is gone: moves are not synced."""
    world.reply(world.request(1))
    recorder = Recorder()
    monkeypatch.setattr(fs, "calls", recorder)
    world.gc()
    archive = str(world.home.archive_of(day_of(T0_MS)))
    steps = [kind if kind != "unlink" else "go" for kind, path in recorder.log
             if kind == "syncfs" or path in (archive, str(world.home.archive)) or path.endswith(".msg")]  # fmt: skip
    assert steps[-5:] == ["syncfs", "rename", "fsync_dir", "go", "go"]


def test_one_gc_at_a_time(world: World):
    lock = locks.acquire(world.home.tidy_lock)
    assert lock is not None
    with lock, pytest.raises(TryLater):
        world.gc()
    world.gc()


# -- a full disk, a mover ----------------------------------------------------------------------------------------


def test_an_empty_day_goes_and_a_mover_who_meets_that_makes_it_again(world: World, monkeypatch: pytest.MonkeyPatch):
    """gc removes the directory between the mover's look and its move."""
    name = world.request(1, "in-progress")
    day = world.a.processed(name).parent
    real, left = fs._rename_noreplace, [2]

    def meets_gc(source: str, target: str) -> None:
        if target == str(world.a.processed(name)) and left[0]:
            left[0] -= 1
            world.gc()
            assert not day.exists()
        real(source, target)

    monkeypatch.setattr(fs, "_rename_noreplace", meets_gc)
    mailbox.acknowledge(world.a, name)
    assert world.a.processed(name).exists() and left == [0]


def test_a_directory_that_goes_while_it_is_made_is_no_error(world: World, monkeypatch: pytest.MonkeyPatch):
    """Somebody made it before us and gc took it away again: whoever needs it tries again."""
    place = world.a.processed_days / "2026-01-01"

    class Calls(fs.Calls):
        def mkdir(self, path: str, mode: int) -> None:
            raise FileExistsError(path)

    monkeypatch.setattr(fs, "calls", Calls())
    fs.ensure_dir(place)
    assert not place.exists()


# -- logs, crashes, litter, filters ------------------------------------------------------------------------------


def test_logs_are_packed_after_a_day_and_removed_after_thirty(world: World):
    log = world.write(world.a.logs / "2026-01-01.ndjson", b"one\ntwo\n")
    world.write(world.a.logs / "stderr.log", b"x")
    packed = log.with_name("2026-01-01.ndjson.gz")
    assert not world.gc(0.5).gone
    assert world.gc(1.5).gone == {"packed log": 1}
    assert not log.exists() and unpacked(packed) == b"one\ntwo\n" and packed.stat().st_mode & 0o777 == 0o600
    world.write(log, b"three\n")  # the clock was set back
    world.gc(1.5)
    assert not log.exists() and unpacked(packed) == b"one\ntwo\nthree\n"
    world.write(log, b"one\ntwo\nthree\n")  # we were killed before the packed log was taken away
    world.gc(1.5)
    assert not log.exists() and unpacked(packed) == b"one\ntwo\nthree\n"
    assert not world.gc(29).gone
    assert world.gc(31).gone == {"log": 1} and not packed.exists()
    assert (world.a.logs / "stderr.log").exists()


def test_steps_of_a_pipe_go_after_seven_days_unless_its_journal_names_them(world: World):
    instance = world.agent("p~a→b")
    gone, held = (world.write(instance.pipe_steps / "1" / f"{stem(n)}.msg") for n in (1, 2))
    journal = world.write(instance.pipe_state / "journal.ndjson", f'{{"message":"{stem(2)}"}}\n'.encode())
    assert not world.gc(6).gone
    assert not retention.collect(world.home, now_s=time.time() + 8 * DAY_S, policy=Policy(steps=9)).gone
    assert world.gc().gone == {"step": 1}
    assert (gone.exists(), held.exists(), journal.exists()) == (False, True, True)


def test_steps_that_a_pipe_may_not_have_named_yet_stay_whatever_the_setting(world: World):
    """It writes them before the record of its journal."""
    step = world.write(world.agent("p~a→b").pipe_steps / "1" / f"{stem(1)}.msg")
    for days, gone in ((1.4, {}), (1.6, {"step": 1})):
        found = retention.collect(world.home, now_s=time.time() + days * DAY_S, policy=Policy(steps=0))
        assert found.gone == gone and step.exists() == (not gone)


ODD = {
    "agents/a/logs/2020-01-01.ndjson": "it is no regular file",
    "agents/a/logs/2020-01-02.ndjson.gz": "it is no regular file",
    f"agents/a/crashes/{stem(1)}.json": "it is no regular file",
    f"pipes/p~a→b/steps/1/{stem(1)}.msg": "it is no regular file",
    f"filters/{stem(1)}/lock": "its lock is no regular file",
    f"blobs/ab/ab{'0' * 62}": "",
    f"blobs/ab/.tmp/ab{'0' * 62}": "",
}


@pytest.mark.parametrize("kind", ["directory", "link", "fifo"])
@pytest.mark.parametrize("place", ODD)
def test_what_is_no_file_of_loom_stays_and_holds_up_nothing(world: World, place: str, kind: str):
    odd = world.home.path / place
    fs.ensure_dir(odd.parent)
    if kind == "directory":
        world.write(odd / "file")
    elif kind == "link":
        odd.symlink_to(world.write(world.home.path / "elsewhere"))
    else:
        os.mkfifo(odd)
    world.reply(world.request(1))
    for dry_run in (True, False):
        report = world.gc(100, dry_run=dry_run)
        assert report.gone == {"processed": 1, "sent": 1}
        assert set(report.stays) == ({ODD[place]} if ODD[place] else set())
    assert os.path.lexists(odd) and (odd / "file").exists() == (kind == "directory")


@pytest.mark.parametrize("name", ["2020-01-01.ndjson", "2020-01-01.ndjson.gz"])
def test_a_log_that_cannot_be_packed_for_what_lies_there_stays(world: World, name: str):
    log = world.write(world.a.logs / "2020-01-01.ndjson")
    if log.name == name:
        log.unlink()
    (world.a.logs / name).mkdir()
    report = world.gc(1.5)
    assert (report.gone, report.stays) == ({}, {"it is no regular file": 1})


def test_a_file_in_the_place_of_a_filter_stays(world: World):
    odd = world.write(world.home.filters / stem(1))
    world.reply(world.request(1))
    report = world.gc()
    assert (report.gone, report.stays) == ({"processed": 1, "sent": 1}, {"it is no directory": 1})
    assert odd.exists()


@pytest.mark.parametrize("journal", ["directory", "no directory above"])
def test_steps_stay_when_the_journal_is_none(world: World, journal: str):
    instance = world.agent("p~a→b")
    step = world.write(instance.pipe_steps / "1" / f"{stem(1)}.msg")
    if journal == "directory":
        world.write(instance.pipe_state / "journal.ndjson" / "file")
    else:
        world.write(instance.pipe_state)
    world.reply(world.request(1))
    report = world.gc()
    assert report.gone == {"processed": 1, "sent": 1}
    assert report.stays == {"the journal of its pipe cannot be read": 1} and step.exists()


def test_a_link_in_the_place_of_tmp_is_not_followed(world: World):
    file = world.write(world.home.path.parent / "elsewhere" / "file")
    (world.a.path / ".tmp").symlink_to(file.parent)
    world.gc(1000)
    assert file.exists()


def test_todays_log_is_not_packed_whatever_its_age(world: World):
    now_s = time.time() + 3 * DAY_S
    log = world.write(world.a.logs / f"{day_of(int(now_s * 1000))}.ndjson")
    assert not retention.collect(world.home, now_s=now_s).gone and log.exists()


def test_crash_records_go_after_ninety_days(world: World):
    record = world.write(world.a.crashes / f"{stem(1)}.json", b"{}")
    world.write(world.a.crashes / "notes.json", b"{}")
    assert not world.gc(89).gone
    assert world.gc(91).gone == {"crash": 1} and not record.exists()


_AGENT, _GOAL = "agents/a", "goals/20260101-goal-1234"
LITTER = [
    *(".", "agents", "goals", "heads", "archive", "secrets", "blobs/ab"),
    *(_AGENT, f"{_AGENT}/inbox", f"{_AGENT}/inbox/.failed", f"{_AGENT}/inbox/.unreadable", f"{_AGENT}/outbox"),
    *(f"{_AGENT}/outbox/.refused", f"{_AGENT}/turns", f"{_AGENT}/conversations", f"{_AGENT}/logs", f"{_AGENT}/crashes"),
    *(_GOAL, f"{_GOAL}/control", f"{_GOAL}/subtasks/s/0"),
]


@pytest.mark.parametrize("place", LITTER)
def test_litter_goes_when_nothing_in_it_has_changed_for_36_hours(world: World, place: str):
    file = world.write(world.home.path / place / ".tmp" / "half")
    deep = world.write(world.home.path / place / ".tmp" / "tree" / "deep" / "file").parents[1]
    os.symlink("/", deep / "link")
    assert not world.gc(1.4).gone
    assert world.gc(1.6).gone == {"litter": 2}
    assert not file.exists() and not deep.exists() and Path("/etc").exists()


def test_a_tree_in_which_somebody_still_works_is_no_litter(world: World):
    """Its directory is old; a file in it is not."""
    world.write(world.home.goals / ".tmp" / "tree" / "deep" / "file")

    class OneIsYoung(Broom):  # no call sets a ctime
        def is_old(self, path: Path, days: float) -> bool:
            return path.name != "file" and super().is_old(path, days)

    broom = OneIsYoung(world.home, time.time() + 1.6 * DAY_S, Policy(), dry_run=False)
    assert not litter.is_litter(broom, world.home.goals / ".tmp" / "tree")


@pytest.mark.parametrize("place", ["goals/20260101-goal-1234/workspace", "goals/20260101-goal-1234/subtasks/s/0/tree",
                                   "agents/a/tools", "agents/a/project", "tools"])  # fmt: skip
def test_a_directory_of_that_name_that_belongs_to_people_is_left_alone(world: World, place: str):
    file = world.write(world.home.path / place / ".tmp" / "file")
    world.gc(1000)
    assert file.exists()


def test_goals_journals_and_heads_stay_for_ever(world: World):
    world.goal("20260101-goal-1234")
    goal = world.home.goal("20260101-goal-1234")
    book = Journal(goal.journal, world.home.blobs, world.home.head(goal.id))
    book.append("goal.created", {}, "goal.md", {"text": "y" * 70_000})
    book.note_head()
    book.close()
    before = world.files()
    world.gc(10_000)
    world.gc(20_000)
    assert world.files() - {"tidy.lock"} == before


def test_a_filter_that_was_left_goes_when_messages_do_and_not_while_it_is_at_work(world: World):
    place = world.home.filter_box(stem(1)).path
    world.write(place / f"{stem(1)}.msg")
    world.write(place / "turns" / "x")
    fd = os.open(world.write(place / "lock", b""), os.O_RDWR)
    fcntl.flock(fd, fcntl.LOCK_EX)
    assert world.gc(8).stays == world.gc(8, dry_run=True).stays == {"it is at work": 1}
    os.close(fd)
    assert not world.gc(6).gone
    assert world.gc(8).gone == {"filter": 1} and not place.exists()


def test_what_a_killed_filter_left_of_itself_is_litter(world: World):
    place = world.write(world.home.filter_box(stem(1)).path / "agent.json").parent
    assert not world.gc(1.4).gone
    assert world.gc(1.6).gone == {"filter": 1} and not place.exists()


# -- blobs -------------------------------------------------------------------------------------------------------


def blob(world: World, data: bytes) -> str:
    return blobs.put(world.home.blobs, data)


def is_there(world: World, digest: str) -> bool:
    return blobs.is_there(world.home.blobs, digest)


def test_a_blob_without_a_reference_is_set_aside_and_goes_at_the_second_look(world: World):
    digest = blob(world, b"nobody's")
    assert not world.gc(6).gone
    assert world.gc(8).gone == {"blob": 1}
    assert blobs.get(world.home.blobs, digest) == b"nobody's"
    assert not world.gc(1).gone  # 36 hours from when it was set aside
    assert world.gc(2).gone == {"blob set aside": 1} and not is_there(world, digest)


def referrer(world: World, where: str) -> Callable[[str], Path]:
    goal = world.home.goal("20260101-goal-1234").path
    name = f"{stem(1)}.msg"
    places = {
        "waiting": world.a.inbox / name,
        "in progress": world.a.in_progress / name,
        "failed": world.a.failed / name,
        "unreadable": world.a.unreadable / name,
        "outbox": world.a.outbox / name,
        "refused": world.a.refused / name,
        "turn": world.a.turns / "x.ndjson",
        "torn": world.a.turns / "x.ndjson.torn.5",
        "conversation": world.a.conversation("main"),
        "journal": goal / "journal.ndjson",
        "goal": goal / "goal.md",
        "control": goal / "control" / "x.json",
        "attempt": goal / "subtasks" / "s" / "0" / "checks.json",
        "filter": world.home.filter_box(stem(2)).path / f"{stem(2)}.msg",
    }
    return lambda digest: world.write(places[where], b'{"some":"' + b"x" * 70_000 + digest.encode() + b'"}')


REFERRERS = """waiting,in progress,failed,unreadable,outbox,refused,turn,torn,conversation,journal,goal,control,attempt
filter"""


@pytest.mark.parametrize("where", REFERRERS.replace("\n", ",").split(","))
def test_a_blob_stays_as_long_as_something_refers_to_it(world: World, where: str):
    """Also by way of another blob, and when it stands across two pieces of a large file."""
    end = blob(world, b"the end of the chain")
    middle = blob(world, b'{"refers":"' + end.encode() + b'"}')
    path = referrer(world, where)(middle)
    world.gc(8, policy=Policy(messages=10_000))
    assert not list(world.home.blobs.glob("*/.tmp/*"))
    path.unlink()
    world.gc(8, policy=Policy(messages=10_000))
    assert len(list(world.home.blobs.glob("*/.tmp/*"))) == 2


def test_a_young_blob_keeps_what_it_refers_to(world: World, monkeypatch: pytest.MonkeyPatch):
    """Its own reference may not be written yet."""
    old = blob(world, b"old")
    young = blob(world, b'{"refers":"' + old.encode() + b'"}')
    real = os.lstat

    def lstat(path: Any, **given: Any) -> Any:
        found = real(path, **given)
        if str(path).endswith(young):
            return os.stat_result((*found[:9], time.time() + 8 * DAY_S))
        return found

    monkeypatch.setattr(os, "lstat", lstat)
    assert not world.gc(8).gone


def test_references_across_pieces_are_found(world: World):
    digest = blob(world, b"x")
    for offset in range((1 << 20) - 66, (1 << 20) + 2):
        path = world.write(world.a.inbox / "m.msg", b" " * offset + digest.encode() + b'"')
        assert list(references.mentions(path)) == [digest], offset


@pytest.mark.parametrize("where", ["archive/2026-01-01.ndjson.gz", "agents/a/logs/x.ndjson", "run/x", "index/x",
                                   "goals/20260101-goal-1234/workspace/a.json"])  # fmt: skip
def test_archives_logs_and_workspaces_keep_no_blob(world: World, where: str):
    digest = blob(world, b"x")
    world.write(world.home.path / where, digest.encode())
    assert world.gc(8).gone["blob"] == 1


def test_what_is_referred_to_again_comes_back(world: World):
    digest = blob(world, b"x")
    world.gc(8)
    path = world.home.blobs / digest[:2] / digest
    assert not path.exists()
    world.write(world.a.inbox / f"{stem(1)}.msg", digest.encode())
    world.gc(100)
    assert path.read_bytes() == b"x" and not blobs.aside_of(world.home.blobs, digest).exists()


def test_stored_again_while_it_is_set_aside_it_is_whole_in_its_place(world: World):
    digest = blob(world, b"x")
    world.gc(8)
    assert blob(world, b"x") == digest
    assert blobs.path_of(world.home.blobs, digest).read_bytes() == b"x"
    world.gc(2)
    assert blobs.get(world.home.blobs, digest) == b"x" and not blobs.aside_of(world.home.blobs, digest).exists()


def test_a_writer_that_finds_a_blob_may_rely_on_it_whenever_gc_comes(world: World):
    """gc runs between the look that finds it and the reference, at each step of storing it, and once more after."""
    for step in range(6):
        data = f"stored {step}".encode()
        digest = blob(world, data)

        class Meets(fs.Calls):
            count = 0

            def _gc(self, step: int = step) -> None:
                Meets.count += 1
                if Meets.count == step:
                    fs.calls, mine = fs.Calls(), fs.calls
                    world.gc(8, policy=Policy(messages=10_000))
                    fs.calls = mine

            def fsync(self, fd: int) -> None:
                self._gc()
                super().fsync(fd)
                self._gc()

            def fsync_dir(self, path: str) -> None:
                self._gc()
                super().fsync_dir(path)
                self._gc()

        fs.calls = Meets()
        try:
            assert blob(world, data) == digest
        finally:
            fs.calls = fs.Calls()
        if step in (0, 5):
            world.gc(8, policy=Policy(messages=10_000))
        assert blobs.get(world.home.blobs, digest) == data
        world.write(world.a.inbox / f"{stem(step)}.msg", digest.encode())
        world.gc(8, policy=Policy(messages=10_000))
        world.gc(100, policy=Policy(messages=10_000))
        assert blobs.path_of(world.home.blobs, digest).read_bytes() == data


def test_a_file_that_may_not_be_read_keeps_all_blobs(world: World, monkeypatch: pytest.MonkeyPatch):
    blob(world, b"x")
    closed = world.write(world.a.inbox / "m.msg")
    real = fs._open_regular

    def refuse(path: Path) -> int:
        if path == closed:
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(fs, "_open_regular", refuse)
    report = world.gc(8)
    assert not report.gone and list(report.stays) == [f"{closed} may not be read, and may refer to any of them"]


def test_turns_refer_to_what_they_keep_in_blobs(world: World):
    """As turns are written by those who write them."""
    name = world.request(1, "in-progress")
    turn = turns.Turn(world.a.turn(name, 0), world.home.blobs)
    turn.open("boot", "1.1")
    turn.request(ChatRequest("m", (ChatMessage("user", "z" * 100_000),)))
    turn.close()
    assert len(list(world.home.blobs.glob("*/?*[0-9a-f]"))) == 1
    world.gc(1000)
    world.gc(2000)
    assert turns.Turn(world.a.turn(name, 0), world.home.blobs).steps[0].request.messages[0].text == "z" * 100_000


# -- how much it remembers ---------------------------------------------------------------------------------------


def test_a_crowd_knows_everybody_and_almost_nobody_else():
    crowd = Crowd()
    for number in range(20_000):
        crowd.add(stem(number))
    assert all(stem(number) in crowd for number in range(20_000))
    assert sum(stem(number) in crowd for number in range(20_000, 40_000)) <= 2


def test_a_message_that_a_slot_may_still_lead_to_stays(world: World) -> None:
    """Whoever comes next delivers it once more, and must find it."""
    name = world.request(1)
    place = world.home.schedule("job")
    fs.ensure_dir(place.path)
    schedules.write_slots(place, Slots(0, intent=Intent(0, (Post(name, "a", "x"),))))
    world.gc()
    assert world.a.processed(name).exists()
    schedules.write_slots(place, Slots(0))
    world.gc()
    assert not world.a.processed(name).exists()
