"""Opening a home: made, checked, emptied after a boot; and refused, with what to do, when it is not usable."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest
from support import forked, in_namespace

from loom.spool import fs, home, locks, secrets
from loom.spool.layout import PROTOCOL_VERSION, Home
from loom.wire.errors import BadInput, Config, Disk, NotFound, Usage


@pytest.fixture
def ready(tmp_path: Path) -> Home:
    return home.open_home(tmp_path / "home", {})


def test_a_new_home_is_private_and_complete(tmp_path: Path):
    made = home.open_home(tmp_path / "a" / "home", {})
    for path in (made.path, *made.path.rglob("*")):
        assert stat.S_IMODE(path.lstat().st_mode) == (0o700 if path.is_dir() else 0o600), path
    assert made.version.read_text() == f"{PROTOCOL_VERSION}\n"
    assert all(d.is_dir() for d in made.directories())
    assert made.boot_id.read_text().strip() == locks.boot_id()


def test_opening_again_changes_nothing(ready: Home):
    def look() -> list[tuple[str, int]]:
        return sorted((str(p), p.lstat().st_mtime_ns) for p in ready.path.rglob("*"))

    before = look()
    assert home.open_home(ready.path, {}) == ready
    assert look() == before


@pytest.mark.parametrize("names", [["main.c"], ["run/data"], ["agents/x", "notes.txt"]])
def test_somebody_s_directory_is_refused_and_not_touched(tmp_path: Path, names: list[str]):
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("precious")
    before = sorted(str(p) for p in tmp_path.rglob("*"))
    with pytest.raises(Config) as error:
        home.open_home(tmp_path, {})
    assert "no loom home" in error.value.line() and "LOOM_HOME" in error.value.line()
    assert sorted(str(p) for p in tmp_path.rglob("*")) == before


@pytest.mark.parametrize("names", [[], ["config.yml"], [".cache"], ["lost+found"], ["run/boot_id", "agents", "logs"]])
def test_what_may_lie_in_a_home_may_be_there_before_it(tmp_path: Path, names: list[str]):
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("") if "." in name or "_" in name else (tmp_path / name).mkdir()
    assert home.open_home(tmp_path, {}).version.exists()


def test_a_name_that_is_no_utf_8_is_refused(tmp_path: Path):
    with pytest.raises(Config) as error:
        home.open_home(tmp_path / "a\udcff", {})
    assert error.value.line().isprintable()


def test_an_error_of_a_rename_names_what_was_to_be_written(ready: Home):
    ready.config.mkdir()
    with pytest.raises(OSError) as error:
        fs.replace(ready.config, b"")
    assert str(ready.config) in home.disk_error(error.value, "the disk refused").line()


@pytest.mark.parametrize("text", ["2\n", "10", "99999999999999999999"])
def test_a_newer_home_is_refused_and_not_touched(ready: Home, text: str):
    ready.version.write_text(text)
    ready.boot_id.write_text("another boot\n")
    with pytest.raises(Config) as error:
        home.open_home(ready.path, {})
    assert "upgrade loom" in error.value.line()
    assert ready.boot_id.read_text() == "another boot\n"


@pytest.mark.parametrize("text", ["", "one", "-1", "1.0", "\x1b[31m", "x" * 1000])
def test_a_version_that_is_none_is_refused(ready: Home, text: str):
    ready.version.write_text(text)
    with pytest.raises(Config) as error:
        home.open_home(ready.path, {})
    assert error.value.line().isprintable()


def test_a_version_that_is_no_file_is_refused(ready: Home, tmp_path: Path):
    ready.version.unlink()
    ready.version.mkdir()
    with pytest.raises(Config, match="directory"):
        home.open_home(ready.path, {})
    ready.version.rmdir()
    (tmp_path / "other").write_text("1\n")
    ready.version.symlink_to(tmp_path / "other")
    with pytest.raises(Config, match="link"):
        home.open_home(ready.path, {})


@pytest.mark.parametrize("boot", [b"another boot\n", b"", b"\0" * 36, b"\xff\xfe", b"x" * 1000])
def test_after_a_boot_run_is_emptied_and_nothing_else(ready: Home, boot: bytes):
    ready.boot_id.write_bytes(boot)
    os.mkfifo(ready.wake / "old")
    (ready.run / "supervisor.pid").write_text("1")
    (ready.agents / "keep").write_text("x")
    home.open_home(ready.path, {})
    assert sorted(os.listdir(ready.run)) == [".tmp", "boot_id", "slots", "wake"]
    assert os.listdir(ready.wake) == []
    assert (ready.agents / "keep").read_text() == "x"
    assert ready.boot_id.read_text().strip() == locks.boot_id()


def test_after_a_boot_a_link_in_place_of_run_is_not_followed(ready: Home, tmp_path: Path):
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").write_text("x")
    fs.remove_tree(ready.run)
    ready.run.symlink_to(precious)
    home.open_home(ready.path, {})
    assert (precious / "file").read_text() == "x"
    assert os.listdir(precious) == ["file"]
    assert not ready.run.is_symlink()


def test_a_home_killed_while_it_is_made_opens_the_next_time(quick_path: Path):
    """Killed before each of its changes, one after the other, until one opening comes through."""
    path = quick_path / "home"
    for n in range(1, 200):

        class Killing(fs.Calls):
            count = 0

        def counted(name: str, n: int = n) -> object:
            def call(self: Killing, *args: object) -> object:
                Killing.count += 1
                if Killing.count == n:
                    os._exit(137)
                return getattr(fs.Calls, name)(self, *args)

            return call

        for name in [m for m in vars(fs.Calls) if not m.startswith("_")]:
            setattr(Killing, name, counted(name))

        def work(killing: type[fs.Calls] = Killing) -> None:
            fs.calls = killing()
            home.open_home(path, {})

        fresh = forked(work)  # type: ignore[arg-type]
        if fresh.status == 0:
            break
        assert fresh.status == 137, fresh.said
        assert forked(lambda: home.open_home(path, {}) and None).status == 0, f"after a kill at call {n}"
        fs.remove_tree(path)
    assert n > 20


def test_a_home_that_is_a_file(tmp_path: Path):
    (tmp_path / "home").write_text("x")
    for path in (tmp_path / "home", tmp_path / "home" / "below"):
        with pytest.raises(Disk) as error:
            home.open_home(path, {})
        assert "set LOOM_HOME" in error.value.line()


@pytest.mark.parametrize("name", ["agents", "blobs", "goals"])
def test_a_link_inside_a_home_is_refused(ready: Home, tmp_path: Path, name: str):
    (tmp_path / "elsewhere").mkdir()
    (ready.path / name).rmdir()
    (ready.path / name).symlink_to(tmp_path / "elsewhere")
    ready.boot_id.unlink()
    with pytest.raises(Config, match=name):
        home.open_home(ready.path, {})


@pytest.mark.parametrize("code", [getattr(errno, n) for n in ("ENOSPC", "EROFS", "EACCES", "EMFILE", "EIO", "EEXIST")])
def test_an_error_of_the_disk_says_what_was_tried_and_what_to_do(code: int):
    error = home.disk_error(OSError(code, os.strerror(code), "/some/where"), "cannot open the home")
    assert "cannot open the home" in str(error) and "/some/where" in str(error) and error.hint
    assert home.disk_error(OSError(code, os.strerror(code), 5), "tried").line()
    assert "/b" in str(home.disk_error(OSError(code, "x", b"/b"), "tried"))


# -- other file systems, really mounted ------------------------------------------------------------------------

OPEN = """
import sys
from pathlib import Path
from loom.spool import home
from loom.wire.errors import LoomError
try:
    home.open_home(Path(sys.argv[1]), {})
    said = "opened"
except LoomError as error:
    said = f"{type(error).__name__}: {error.line()}"
assert sys.argv[2] in said, said
"""


def test_a_read_only_home_opens_for_reading_in_the_same_boot(ready: Home):
    path = ready.path
    in_namespace(OPEN, str(path), "opened", mounts=f"mount --bind {path} {path} && mount -o remount,bind,ro {path}")


def test_a_read_only_home_after_a_boot_says_so(ready: Home):
    ready.boot_id.unlink()
    path = ready.path
    read_only = f"mount --bind {path} {path} && mount -o remount,bind,ro {path}"
    in_namespace(OPEN, str(path), "read-only: set LOOM_HOME", mounts=read_only)


@pytest.mark.parametrize("name", ["agents", "heads", "run/wake"])
def test_a_directory_on_another_device_is_refused(ready: Home, name: str):
    """In `run/` it cannot even be emptied."""
    ready.boot_id.unlink()
    expected = "busy" if name.startswith("run") else "on another device"
    in_namespace(OPEN, str(ready.path), expected, mounts=f"mount -t tmpfs none {ready.path / name}")


AGENT = """
import sys
from pathlib import Path
from loom.spool import agents, home
from loom.wire.agent import AgentSpec
from loom.wire.errors import Config
made = home.open_home(Path(sys.argv[1]), {})
try:
    agents.create(made, AgentSpec("a", "builtin/echo"), "", "down")
except Config as error:
    assert "another device" in str(error), error
else:
    raise AssertionError("accepted")
assert not made.agent("a").spec.exists()
"""


def test_an_agent_whose_inbox_is_on_another_device_is_refused(ready: Home):
    inbox = ready.agent("a").inbox
    fs.ensure_dir(inbox)
    in_namespace(AGENT, str(ready.path), mounts=f"mount -t tmpfs none {inbox}")


GROUND = """
import sys
from pathlib import Path
from loom.spool import home
found = home.ground(Path(sys.argv[1]))
assert (found.name, found.durable, found.refused) == ("tmpfs", False, False), found
home.open_home(Path(sys.argv[1]) / "home", {})
"""


def test_tmpfs_works_and_is_known_not_to_be_durable(tmp_path: Path):
    in_namespace(GROUND, str(tmp_path), mounts=f"mount -t tmpfs none {tmp_path}")


@pytest.mark.parametrize("magic", [0x6969, 0x65735546, 0x01021997])
def test_a_file_system_without_trustworthy_locks_is_refused_unless_asked_for(tmp_path, monkeypatch, magic: int):
    monkeypatch.setattr(home, "_statfs_type", lambda path: magic)
    with pytest.raises(Config, match="cannot be relied on") as error:
        home.open_home(tmp_path / "home", {})
    assert home.ALLOW_ENV in error.value.line()
    assert home.open_home(tmp_path / "home", {home.ALLOW_ENV: "1"})


FULL = """
import errno, os, sys
from pathlib import Path
from loom.spool import fs, mailbox
from loom.spool.layout import Box
from loom.wire import ids, message
from loom.wire.message import Message

def letter(number, size=10):
    stem = ids.message_stem(1_790_000_000_000 + number, number.to_bytes(10, "big"))
    return stem, message.encode(Message(ids.ulid_of(stem), "user", 1, "x" * size))

root = Path(sys.argv[1])
box = Box(root / "box")
mailbox.create(box)
accepted, refused = [], []
for number in range(1000):
    stem, data = letter(number, 40_000)
    try:
        mailbox.deliver(box, stem, data)
        accepted.append(stem)
    except OSError as error:
        assert error.errno == errno.ENOSPC, error
        refused.append((stem, data))
    if len(refused) == 3:
        break
assert len(accepted) > 5 and len(refused) == 3, (len(accepted), len(refused))
names = sorted(n[:-4] for n in os.listdir(box.inbox) if n.endswith(".msg"))
assert names == accepted, "exactly what was accepted is there"
for stem in accepted:
    message.decode((box.inbox / f"{stem}.msg").read_bytes(), stem)
assert os.listdir(box.inbox / ".tmp") == [], "a refused message takes no space"
try:
    mailbox.deliver_all(box, [*refused, letter(2000, 900_000)])
except OSError as error:
    assert error.errno == errno.ENOSPC
else:
    raise AssertionError("accepted on a full disk")
# Claiming and finishing needs no new space but for directories: the queue goes on.
inbox = mailbox.Inbox(box)
first = inbox.claim()
assert first.stem == accepted[0], first.stem
(box.in_progress / f"{first.stem}.msg").unlink()
second = inbox.claim()
(box.in_progress / f"{second.stem}.msg").unlink()
third = inbox.claim()
(box.in_progress / f"{third.stem}.msg").unlink()
for stem, data in refused[:1]:
    assert mailbox.deliver(box, stem, data) in (True, False), "there is space again"
    assert (box.inbox / f"{stem}.msg").read_bytes() == data
"""


def test_a_full_disk_refuses_loses_nothing_and_works_again_when_there_is_space(tmp_path: Path):
    in_namespace(FULL, str(tmp_path), mounts=f"mount -t tmpfs -o size=1m none {tmp_path}")


NO_INODES = """
import errno, os, sys
from pathlib import Path
from loom.spool import fs
root = Path(sys.argv[1])
fs.publish(root / "first", b"x")
made = []
try:
    for number in range(1000):
        fs.replace(root / "state", str(number).encode())
        fs.publish(root / f"f{number}", b"x")
        made.append(number)
except OSError as error:
    assert error.errno == errno.ENOSPC
assert 0 < len(made) < 100
assert (root / "state").read_text() in (str(made[-1]), str(made[-1] + 1)), "whole, the last or the one before"
assert os.listdir(root / ".tmp") == []
"""


def test_no_inodes_left_is_a_full_disk_too(tmp_path: Path):
    in_namespace(NO_INODES, str(tmp_path), mounts=f"mount -t tmpfs -o nr_inodes=40 none {tmp_path}")


# -- secrets ---------------------------------------------------------------------------------------------------


def test_a_secret_is_private_and_comes_back(ready: Home):
    secrets.put(ready, "openai", "  sk-ü \n")
    path = ready.secret("openai")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600 and stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert secrets.get(ready, "openai") == "sk-ü"
    secrets.put(ready, "openai", "new")
    assert secrets.get(ready, "openai") == "new"
    assert secrets.names(ready) == ["openai"]
    secrets.remove(ready, "openai")
    assert secrets.get(ready, "openai") is None and secrets.names(ready) == []
    with pytest.raises(NotFound):
        secrets.remove(ready, "openai")


@pytest.mark.parametrize("value", ["", "  \n", "a\nb", "a\0b", "a\rX-Evil: 1", "a\x1b[0m", "a\x7f", "\udcff",
                                   "x" * 65537, "ü" * 40_000])  # fmt: skip
def test_what_is_no_line_of_text_is_no_secret_and_is_not_quoted(ready: Home, value: str):
    with pytest.raises(BadInput) as error:
        secrets.put(ready, "openai", value)
    assert len(value) < 4 or value not in str(error.value)
    assert secrets.names(ready) == []


def test_the_largest_secret_can_be_read_back(ready: Home):
    secrets.put(ready, "big", "x" * secrets.MAX_BYTES)
    assert secrets.get(ready, "big") == "x" * secrets.MAX_BYTES


@pytest.mark.parametrize("name", ["", "../x", "A", "a/b", "a\n"])
def test_a_secret_has_a_plain_name(ready: Home, name: str):
    with pytest.raises((Usage, ValueError)):
        secrets.put(ready, name, "x")
    with pytest.raises(Usage):
        secrets.remove(ready, name)
    assert secrets.get(ready, name) is None


def test_a_secret_is_not_read_through_a_link(ready: Home, tmp_path: Path):
    fs.ensure_dir(ready.secrets)
    (tmp_path / "other").write_text("stolen")
    ready.secret("openai").symlink_to(tmp_path / "other")
    assert secrets.get(ready, "openai") is None
