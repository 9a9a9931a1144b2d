"""What must be true of a home that came to rest, whatever was killed on the way there. It reads the files only.

promised   every name that a client was told is accepted is there, with the bytes it was sent with
once       each message ended once: a reply under its name, or a recorded failure with its failure reply
routed     the target of a route has exactly the replies of its source, byte by byte
recorded   each reply is the one its turn records, and stands in its conversation once
asked      a model that counts outside was asked at most once per reply and once more per crash
nothing else   no file in the home is left unexplained
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from loom.spool import mailbox, ndjson
from loom.spool.layout import AgentDir, Home
from loom.wire import ids, message
from loom.wire.jsontext import loads_object

_NAME = re.compile(r"\d{13}-[0-7][0-9A-HJKMNP-TV-Z]{25}")


@dataclass(slots=True)
class Report:
    """messages: finished by an agent. failed: by error_type; unrecorded: those of them without an error.json.

    resumed: turns opened more than once; deaths: openings that came to nothing. torn, litter: files left by kills.
    """

    messages: int = 0
    promised: int = 0
    routed: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    unrecorded: int = 0
    deaths: int = 0
    resumed: int = 0
    torn: int = 0
    litter: int = 0


@dataclass(frozen=True, slots=True)
class Turn:
    """What a turn's record says: its model replies, how often it was opened, and deaths without progress."""

    replies: tuple[str, ...]
    opens: int
    deaths: int


class Oracle:
    """`promised`: agent → names; `routes`: source → target. Raises AssertionError naming what is wrong."""

    def __init__(self, home: Home, boxes: Sequence[AgentDir], routes: Mapping[str, str]) -> None:
        self.home, self.boxes, self.routes = home, boxes, routes
        self.report = Report()
        self.seen: set[Path] = set()  # files that have been explained

    def check(self, promised: Mapping[str, Iterable[str]]) -> Report:
        replies: dict[str, dict[str, bytes]] = {}
        ended: dict[str, dict[str, Path]] = {}
        for box in self.boxes:
            ended[box.name] = self._ended(box)
            replies[box.name] = self._replies(box, ended[box.name])
        for name, stems in promised.items():
            wanted = list(stems)
            lost = set(wanted) - ended[name].keys()
            assert not lost, f"{name}: {len(lost)} accepted messages are nowhere: {sorted(lost)[:3]}"
            self.report.promised += len(wanted)
        for source, target in self.routes.items():
            self._routed(source, replies[source], self.home.agent(target), ended[target])
        for box in self.boxes:
            self._conversations(box, ended[box.name])
        self._nothing_else()
        return self.report

    def _ended(self, box: AgentDir) -> dict[str, Path]:
        """All messages of an agent by name; each must have come to one end."""
        for place in (box.inbox, box.in_progress, box.unreadable, box.outbox, box.refused):
            left = [n for n in _files(place) if n.endswith((".msg", ".error.json"))]
            assert not left, f"{place} holds {left[:3]}"
        found: dict[str, Path] = {}
        for path in [*_under(box.inbox / ".processed"), *(p for p in _under(box.failed) if p.name.endswith(".msg"))]:
            stem = ids.stem_of(path.name)
            assert stem is not None, f"odd name: {path}"
            assert stem not in found, f"a message ended twice: {path}, {found[stem]}"
            found[stem] = path
            self.seen.add(path)
        self.report.messages += len(found)
        return found

    def _replies(self, box: AgentDir, ended: Mapping[str, Path]) -> dict[str, bytes]:
        """The bytes of each reply by its name; every message has one, and none is over."""
        sent = {p.name.removesuffix(".msg"): p for p in _under(box.outbox / ".sent")}
        found: dict[str, bytes] = {}
        for stem, path in ended.items():
            turn = self._turn(box, stem)
            name = ids.reply_stem(box.name, stem, 0)
            assert name in sent, f"{box.name}: no reply to {stem}"
            found[name] = sent[name].read_bytes()
            self.seen.add(sent[name])
            reply = message.decode(found[name], name)
            if path.parent == box.failed:
                self._failed(box, stem, reply, turn)
                continue
            assert not reply.error, f"{box.name}: {stem} is processed and its reply reports a failure"
            self._as_recorded(box, stem, reply, turn)
        assert found.keys() == sent.keys(), f"{box.name} sent {sorted(sent.keys() - found.keys())[:3]} to no message"
        return found

    def _as_recorded(self, box: AgentDir, stem: str, reply: message.Message, turn: Turn) -> None:
        assert turn.replies == (reply.body,), f"{box.name}: {stem}: recorded {turn.replies}, sent {reply.body!r}"

    def _failed(self, box: AgentDir, stem: str, reply: message.Message, turn: Turn) -> None:
        """Two failures there may be: a message over which its runner died three times without any progress, and one
        whose model program was killed."""
        assert reply.error and reply.data, f"{box.name}: {stem} failed without a failure reply"
        kind = str(reply.data["error_type"])
        self.report.failed[kind] += 1
        record = mailbox.read_error(box, stem)
        self.seen.add(box.error_of(stem))
        if record is None:  # killed between the move and the record; a retry writes it (docs/protocol.md section 4)
            self.report.unrecorded += 1
        else:
            assert (record["error_type"], record["last_error"]) == (kind, reply.body), f"{box.name}: {stem}: {record}"
        is_poison = kind == "poison" and turn.deaths >= 3
        is_killed = kind == "work_failed" and "was killed by signal 9" in reply.body
        assert (is_poison or is_killed) and not turn.replies, f"{box.name}: {stem}: {reply}, {turn}"

    def _turn(self, box: AgentDir, stem: str) -> Turn:
        path = box.turn(stem, 0)
        self.seen.add(path)
        replies: list[str] = []
        opens = deaths = since = 0
        for record in _records(path):
            if record["t"] == "open":
                deaths += opens > 0 and since == 0
                opens, since = opens + 1, 0
                continue
            since += 1
            if record["t"] == "reply":
                replies.append(str(record["reply"]["text"]))  # type: ignore[index]
        self.report.deaths += deaths
        self.report.resumed += opens > 1
        return Turn(tuple(replies), opens, deaths)

    def _routed(self, source: str, replies: Mapping[str, bytes], target: AgentDir, ended: Mapping[str, Path]) -> None:
        lost, more = replies.keys() - ended.keys(), ended.keys() - replies.keys()
        assert not lost and not more, f"{source} to {target.name}: {len(lost)} lost, {len(more)} from nowhere"
        for stem, data in replies.items():
            assert ended[stem].read_bytes() == data, f"{target.name}: {stem} has other bytes than were sent"
        self.report.routed += len(replies)

    def _conversations(self, box: AgentDir, ended: Mapping[str, Path]) -> None:
        """Each answered message has its two lines, once, in the conversation it belongs to."""
        said: Counter[tuple[str, str, str]] = Counter()
        for path in _under(box.path / "conversations"):
            if path.suffix == ".ndjson":
                for record in _records(path):
                    said[(path.stem, str(record["name"]), str(record["role"]))] += 1
            self.seen.add(path)
        wanted = set()
        for stem, path in ended.items():
            if path.parent != box.failed:
                thread = message.decode(path.read_bytes(), stem).thread or "main"
                wanted |= {(thread, stem, "user"), (thread, stem, "assistant")}
        twice = [key for key, count in said.items() if count > 1]
        assert not twice, f"{box.name}: said twice: {twice[:3]}"
        assert said.keys() == wanted, (
            f"{box.name}: {len(wanted - said.keys())} unsaid, {len(said.keys() - wanted)} over"
        )

    def _nothing_else(self) -> None:
        """Litter lies in `.tmp/`, torn ends beside their files, and every other file has a name of the protocol."""
        for path in _under(self.home.path):
            if path in self.seen:
                continue
            if path.parent.name == ".tmp":
                assert self._is_litter(path), f"odd litter: {path}"
                self.report.litter += 1
            elif ".ndjson.torn." in path.name:
                self.report.torn += 1
            else:
                assert self._is_known(path), f"nobody knows this file: {path}"
                if path.parent.name == "logs" and path.suffix == ".ndjson":
                    self._log(path)

    def _is_litter(self, path: Path) -> bool:
        return bool(re.fullmatch(r"[0-9a-f]{20}", path.name))

    def _is_known(self, path: Path) -> bool:
        return is_known(self.home, path)

    def _log(self, path: Path) -> None:
        """A line may be torn by a kill, at the end of a page; none may be glued to it."""
        lines, _ = ndjson.whole_lines(path.read_bytes())
        for line in lines:
            try:
                loads_object(line)
            except ValueError:
                assert line.count(b'{"ts":') <= 1, f"{path}: two lines in one: {line[:200]!r}"
                self.report.torn += 1


_OF_HOME = {"version", "routes.json", "start.lock", "logs/supervisor.log", "run/boot_id", "run/supervisor.lock"}
_OF_HOME |= {"run/supervisor.pid", "run/supervisor.json", "run/filters.sock"}
_OF_AGENT = {"agent.json", "prompt.md", "want", "status", "pid", "model", "started_at", "stopped_at", "last_exit"}
_OF_AGENT |= {"heartbeat", "why", "lock", "logs/stderr.log", "routed.json"}


def is_known(home: Home, path: Path) -> bool:
    """Whether the protocol has this name, for a file of an agent or of the home itself."""
    place = str(path.relative_to(home.path))
    if place in _OF_HOME or place.startswith("run/wake/"):
        return True
    parts = path.relative_to(home.path).parts
    if parts[0] != "agents":
        return False
    rest = "/".join(parts[2:])
    if rest in _OF_AGENT or re.fullmatch(r"logs/\d{4}-\d\d-\d\d\.ndjson", rest):
        return True
    return parts[2] == "crashes" and bool(_NAME.fullmatch(path.stem)) and path.suffix == ".json"


def calls_are_bounded(calls: Path, replies: int, crashes: int) -> int:
    """Calls that a model program counted itself; asked again only after a crash."""
    count = calls.read_bytes().count(b"\n") if calls.exists() else 0
    assert replies <= count <= replies + crashes, f"{count} calls for {replies} replies and {crashes} crashes"
    return count


def _records(path: Path) -> list[dict[str, object]]:
    """All records of an NDJSON file, which must be whole to its last byte."""
    lines, rest = ndjson.whole_lines(path.read_bytes())
    assert rest == b"", f"{path} ends in the middle of a line: {rest[:80]!r}"
    return [loads_object(line) for line in lines]


def _files(directory: Path) -> list[str]:
    try:
        return os.listdir(directory)
    except FileNotFoundError:
        return []


def _under(directory: Path) -> list[Path]:
    return [Path(place) / name for place, _, names in os.walk(directory) for name in names]
