"""`loom agent logs`: an agent's log as lines for people or as the NDJSON it is, to the end or for ever."""

from __future__ import annotations

import gzip
import os
import re
import time
import zlib
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from loom.cli import printing
from loom.cli.homes import look_into_home
from loom.cli.params import Count
from loom.spool import agents
from loom.wire import ids
from loom.wire.errors import NotFound, Usage
from loom.wire.jsontext import Malformed, dumps, loads_object
from loom.wire.times import rfc3339

LAST = 100
_FILE = re.compile(r"\d{4}-\d\d-\d\d\.ndjson(\.gz)?")
_AGO = re.compile(r"(\d+)([smhd])")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_STAMP = re.compile(r"\d{4}-\d\d-\d\d([T ]\d\d(:\d\d(:\d\d(\.\d+)?)?)?)?Z?")
_LOOK_S = 0.25  # where changes cannot be watched


@click.command("logs")
@click.argument("name")
@click.option("-f", "--follow", is_flag=True, help="Go on printing what is added, over midnight too.")
@click.option("-n", "--lines", type=Count(0), metavar="N", help=f"The last N lines; {LAST} by default.")
@click.option("--since", metavar="T", help="Only what came after: 90s, 10m, 2h, 1d ago, or a date or time in UTC.")
@click.option("--json", "as_json", is_flag=True, help="The lines as they are, NDJSON.")
def cli(name: str, follow: bool, lines: int | None, since: str | None, as_json: bool) -> None:
    """Print the log of agent NAME, or of the filters that ran under this name."""
    home = look_into_home()
    if not ids.is_instance(name):
        ids.check_agent(name, reserved_ok=True)
    directory = home.agent(name).logs
    if not directory.is_dir():
        agents.find(home, name)
        raise NotFound(f"{name} has no logs", hint=f"{directory} is no directory")
    after = since_text(since, time.time_ns() // 1000) if since is not None else ""
    tail = Tail(directory)
    limit = lines if lines is not None else None if since is not None else LAST
    found = deque((line for line in tail.new() if _ts(line) >= after), maxlen=limit)
    _show(found, as_json)
    if follow:
        for _ in _changes(directory):
            _show(tail.new(), as_json)


def since_text(text: str, now_us: int) -> str:
    """The beginning of RFC 3339 times that are later: what a record's `ts` is compared with. Raises Usage."""
    if ago := _AGO.fullmatch(text):
        return rfc3339(now_us - int(ago[1]) * _SECONDS[ago[2]] * 1_000_000)
    if _STAMP.fullmatch(text):
        return text.replace(" ", "T").removesuffix("Z")
    raise Usage(f"--since {text!r} is no time", hint="write 10m, 2h, 1d, 2026-01-31 or 2026-01-31T12:00:00")


class Tail:
    """What was added to a directory of daily logs since the last look, in order."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._done: dict[str, int] = {}  # bytes printed, by file
        self._told: set[str] = set()  # files that cannot be read

    def new(self) -> Iterator[bytes]:
        """Whole lines that were not there the last time. A file that cannot be read is told on stderr, once.

        Raises OSError when the directory cannot be listed.
        """
        names = sorted(name for name in os.listdir(self._directory) if _FILE.fullmatch(name))
        for name in names:
            try:
                yield from self._packed(name) if name.endswith(".gz") else self._lines(name)
            except (OSError, EOFError, zlib.error) as error:
                if name not in self._told:
                    self._told.add(name)
                    printing.error(f"{self._directory / name} cannot be read: {error}")

    def _packed(self, name: str) -> list[bytes]:
        if name in self._done or name.removesuffix(".gz") in self._done:
            return []
        self._done[name] = 1
        return gzip.decompress((self._directory / name).read_bytes()).splitlines()

    def _lines(self, name: str) -> Iterator[bytes]:
        at = self._done.setdefault(name, 0)
        try:
            with (self._directory / name).open("rb") as file:
                if at > os.fstat(file.fileno()).st_size:
                    at = 0  # somebody cut it
                file.seek(at)
                for line in file:
                    if not line.endswith(b"\n"):
                        break  # being written
                    at += len(line)
                    self._done[name] = at
                    yield line[:-1]
        except FileNotFoundError:
            pass  # packed or removed between listing and reading


def _show(lines: Any, as_json: bool) -> None:
    text = "".join(f"{line.decode('utf-8', 'replace') if as_json else human(line)}\n" for line in lines if line.strip())
    if text:
        printing.write(text)


def _ts(line: bytes) -> str:
    """The time of a record; the first thing on the lines we write."""
    if line.startswith(b'{"ts":"'):
        return line[7:34].decode("ascii", "replace")
    try:
        return str(loads_object(line).get("ts", ""))
    except Malformed:
        return ""


def human(line: bytes) -> str:
    """A record as `time level event key=value …`; a line that is none as it is."""
    try:
        record = loads_object(line)
    except Malformed:
        return " ".join(printing.plain(line.decode("utf-8", "replace")).split())
    ts = str(record.pop("ts", ""))[:23].replace("T", " ")
    level, event = str(record.pop("level", "info")), str(record.pop("event", ""))
    rest = " ".join(f"{key}={_value(value)}" for key, value in record.items())
    return " ".join(printing.plain(f"{ts} {level:<7} {event} {rest}").rstrip().splitlines())


def _value(value: Any) -> str:
    if isinstance(value, str) and value and not re.search(r'[\s"=]', value):
        return value
    return dumps(value).decode()


def _changes(directory: Path) -> Iterator[None]:
    """Once now and then whenever something in the directory may have changed, for ever."""
    yield
    try:
        import watchfiles

        for _ in watchfiles.watch(directory, debounce=50, step=20, rust_timeout=1000, yield_on_timeout=True):
            yield
    except (ImportError, OSError, RuntimeError):  # not there, or no inotify instance left
        while True:
            time.sleep(_LOOK_S)
            yield
