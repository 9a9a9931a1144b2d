"""The few ways of writing, on real directories: publish, replace, hint, move, append, read, remove."""

from __future__ import annotations

import errno
import os
import socket
import stat
from pathlib import Path

import pytest

from loom.spool import fs


class Short(fs.Calls):
    """A kernel that never writes more than three bytes at once."""

    def write(self, fd: int, data: bytes | memoryview) -> int:
        return os.write(fd, data[:3])


class Failing(fs.Calls):
    """One kind of call fails with EIO."""

    def __init__(self, method: str, code: int = errno.EIO) -> None:
        def fail(*args: object) -> None:
            raise OSError(code, "injected")

        setattr(self, method, fail)


class Watching(fs.Calls):
    """Notes the order of calls."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def __getattribute__(self, name: str) -> object:
        if name in ("create", "write", "fsync", "fdatasync", "fsync_dir", "link", "rename", "unlink"):
            self.seen.append(name)
        return super().__getattribute__(name)


def entries(directory: Path) -> list[str]:
    return sorted(os.listdir(directory))


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_publish_makes_a_private_file_and_leaves_no_temporary(tmp_path: Path):
    assert fs.publish(tmp_path / "a", b"data")
    assert (tmp_path / "a").read_bytes() == b"data"
    assert mode(tmp_path / "a") == 0o600
    assert mode(tmp_path / ".tmp") == 0o700
    assert entries(tmp_path) == [".tmp", "a"] and entries(tmp_path / ".tmp") == []
    assert (tmp_path / "a").stat().st_nlink == 1


@pytest.mark.parametrize("other", [b"data", b"other"])
def test_publish_never_replaces(tmp_path: Path, other: bytes):
    fs.publish(tmp_path / "a", b"data")
    assert fs.publish(tmp_path / "a", other) is False
    assert (tmp_path / "a").read_bytes() == b"data"
    assert entries(tmp_path / ".tmp") == []


def test_publish_syncs_the_file_before_it_has_a_name_and_the_directory_after(tmp_path, monkeypatch):
    fs.ensure_dir(tmp_path / ".tmp")
    watching = Watching()
    monkeypatch.setattr(fs, "calls", watching)
    fs.publish(tmp_path / "a", b"data")
    assert watching.seen == ["create", "write", "fsync", "link", "fsync_dir", "unlink"]
    watching.seen.clear()
    fs.publish(tmp_path / "a", b"data")
    assert watching.seen[3:] == ["link", "fsync", "fsync_dir", "unlink"], "a name that is found is synced, too"


def test_replace_syncs_before_and_after_the_rename(tmp_path, monkeypatch):
    fs.ensure_dir(tmp_path / ".tmp")
    watching = Watching()
    monkeypatch.setattr(fs, "calls", watching)
    fs.replace(tmp_path / "a", b"data")
    assert watching.seen == ["create", "write", "fsync", "rename", "fsync_dir"]


def test_publish_all_shares_the_sync_of_a_directory_and_skips_none(tmp_path, monkeypatch):
    for name in ("one", "two"):
        fs.ensure_dir(tmp_path / name / ".tmp")
    (tmp_path / "two" / "c").write_bytes(b"there")
    watching = Watching()
    monkeypatch.setattr(fs, "calls", watching)
    made = fs.publish_all((tmp_path / d / n, b"x") for d, n in (("one", "a"), ("one", "b"), ("two", "c")))
    assert made == [True, True, False]
    assert watching.seen.count("fsync") == 4 and watching.seen.count("fsync_dir") == 3
    assert entries(tmp_path / "one" / ".tmp") == []


@pytest.mark.parametrize("write", [fs.publish, fs.replace])
def test_short_writes_are_completed(tmp_path, monkeypatch, write):
    monkeypatch.setattr(fs, "calls", Short())
    data = bytes(range(256)) * 3
    write(tmp_path / "a", data)
    assert (tmp_path / "a").read_bytes() == data


@pytest.mark.parametrize("write", [fs.publish, fs.replace])
@pytest.mark.parametrize("method", ["write", "fsync"])
def test_what_cannot_be_written_whole_gets_no_name(tmp_path, monkeypatch, write, method):
    monkeypatch.setattr(fs, "calls", Failing(method, errno.ENOSPC))
    with pytest.raises(OSError) as error:
        write(tmp_path / "a", b"data")
    assert error.value.errno == errno.ENOSPC
    assert entries(tmp_path) == [".tmp"] and entries(tmp_path / ".tmp") == []


def test_a_failed_rename_leaves_the_old_content_and_no_litter(tmp_path, monkeypatch):
    fs.replace(tmp_path / "a", b"old")
    monkeypatch.setattr(fs, "calls", Failing("rename"))
    with pytest.raises(OSError):
        fs.replace(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"old" and entries(tmp_path / ".tmp") == []


def test_replace_and_hint_do_not_follow_a_link(tmp_path: Path):
    (tmp_path / "secret").write_text("mine")
    for write, path in ((fs.replace, tmp_path / "a"), (fs.hint, tmp_path / "b")):
        path.symlink_to("secret")
        write(path, b"new" if write is fs.replace else "new")
        assert not path.is_symlink()
    assert (tmp_path / "secret").read_text() == "mine"


# -- move ------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["renameat2", "link and unlink"])
def rename(request, monkeypatch) -> str:
    if request.param != "renameat2":
        monkeypatch.setattr(fs, "_renameat2", lambda source, target: errno.EINVAL)
    return request.param


def put(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    "source, target, outcome, after",
    [
        (b"x", None, "moved", (None, b"x")),
        (b"x", b"x", "same", (None, b"x")),
        (b"x", b"y", "conflict", (b"x", b"y")),
        (b"x", b"xx", "conflict", (b"x", b"xx")),
        (None, None, "gone", (None, None)),
        (None, b"y", "gone", (None, b"y")),
    ],
)
def test_a_move_replaces_nothing(tmp_path, rename, source, target, outcome, after):
    one, other = tmp_path / "one", tmp_path / "to" / "other"
    other.parent.mkdir()
    if source is not None:
        put(one, source)
    if target is not None:
        put(other, target)
    assert fs.move(one, other) == outcome
    assert tuple(p.read_bytes() if p.exists() else None for p in (one, other)) == after


def test_a_move_makes_the_directory_it_goes_to(tmp_path: Path, rename: str):
    assert fs.move(put(tmp_path / "a", b"x"), tmp_path / "new" / "day" / "a") == "moved"
    assert mode(tmp_path / "new" / "day") == 0o700


def test_a_move_onto_a_link_or_directory_is_a_conflict(tmp_path: Path, rename: str):
    source = put(tmp_path / "a", b"x")
    (tmp_path / "link").symlink_to("a")
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "dir").mkdir()
    os.mkfifo(tmp_path / "fifo")
    for name in ("link", "dangling", "dir", "fifo"):
        assert fs.move(source, tmp_path / name) == "conflict"
    assert source.read_bytes() == b"x"


def test_a_move_of_a_file_hard_linked_to_its_target_leaves_the_target(tmp_path: Path):
    """What a crash between link and unlink leaves where there is no renameat2."""
    source = put(tmp_path / "a", b"x")
    (tmp_path / "b").hardlink_to(source)
    assert fs.move(source, tmp_path / "b") == "same"
    assert entries(tmp_path) == ["b"]


def test_a_target_that_goes_away_while_it_is_compared_is_no_conflict(tmp_path, monkeypatch):
    source, target = put(tmp_path / "a", b"x"), put(tmp_path / "b", b"y")
    real = fs.same_bytes

    def vanish(one: Path, other: Path) -> bool:
        target.unlink(missing_ok=True)
        return real(one, other)

    monkeypatch.setattr(fs, "same_bytes", vanish)
    assert fs.move(source, target) == "moved"


def test_an_io_error_while_comparing_is_no_conflict(tmp_path, monkeypatch):
    source, target = put(tmp_path / "a", b"x"), put(tmp_path / "b", b"x")
    real = os.open

    def no_descriptors(path, flags, *rest, **more):
        if Path(path) == target:
            raise OSError(errno.EMFILE, "too many open files", str(path))
        return real(path, flags, *rest, **more)

    monkeypatch.setattr(os, "open", no_descriptors)
    with pytest.raises(OSError) as error:
        fs.move(source, target)
    assert error.value.errno == errno.EMFILE
    assert source.exists()


# -- read ------------------------------------------------------------------------------------------------------


def test_read_takes_regular_files_only(tmp_path: Path):
    (tmp_path / "dir").mkdir()
    (tmp_path / "link").symlink_to("file")
    put(tmp_path / "file", b"x")
    os.mkfifo(tmp_path / "fifo")
    with socket.socket(socket.AF_UNIX) as server:
        here = Path.cwd()
        os.chdir(tmp_path)  # a socket's name is short
        try:
            server.bind("socket")
        finally:
            os.chdir(here)
        for kind in ("directory", "link", "fifo", "socket"):
            name = {"directory": "dir"}.get(kind, kind)
            with pytest.raises(fs.NotRegular) as error:
                fs.read(tmp_path / name)
            assert error.value.kind == kind
    with pytest.raises(fs.NotRegular) as error:
        fs.read(Path("/dev/null"))
    assert error.value.kind == "device"


def test_read_closes_what_it_refuses(tmp_path: Path):
    os.mkfifo(tmp_path / "fifo")
    before = os.listdir("/proc/self/fd") if Path("/proc/self/fd").exists() else []
    for _ in range(5):
        with pytest.raises(fs.NotRegular):
            fs.read(tmp_path / "fifo")
    assert len(os.listdir("/proc/self/fd") if before else []) == len(before)


@pytest.mark.parametrize("size, limit, fits", [(10, 10, True), (11, 10, False), (0, 0, True), (1 << 21, 99, False)])
def test_read_has_a_limit(tmp_path: Path, size: int, limit: int, fits: bool):
    path = put(tmp_path / "a", bytes(size))
    if fits:
        assert len(fs.read(path, limit)) == size
    else:
        with pytest.raises(fs.TooLarge):
            fs.read(path, limit)


# -- the rest --------------------------------------------------------------------------------------------------


def test_remove_tree_never_leaves_its_tree(tmp_path: Path):
    put(tmp_path / "outside" / "keep", b"x")
    inner = tmp_path / "tree" / "deep"
    put(inner / "file", b"x")
    (inner / "link").symlink_to(tmp_path / "outside")
    os.mkfifo(inner / "fifo")
    fs.remove_tree(tmp_path / "tree")
    fs.remove_tree(tmp_path / "tree")
    assert entries(tmp_path) == ["outside"] and entries(tmp_path / "outside") == ["keep"]


def test_remove_tree_of_a_link_removes_the_link(tmp_path: Path):
    put(tmp_path / "outside" / "keep", b"x")
    (tmp_path / "tree").symlink_to("outside")
    fs.remove_tree(tmp_path / "tree")
    assert entries(tmp_path) == ["outside"] and entries(tmp_path / "outside") == ["keep"]


def test_ensure_dir_refuses_a_file_on_the_way(tmp_path: Path):
    put(tmp_path / "a", b"x")
    with pytest.raises(OSError):
        fs.ensure_dir(tmp_path / "a")
    with pytest.raises(OSError):
        fs.ensure_dir(tmp_path / "a" / "b")
    fs.ensure_dir(tmp_path / "c" / "d" / "e")
    assert mode(tmp_path / "c") == mode(tmp_path / "c" / "d" / "e") == 0o700


def test_a_directory_is_synced_once_also_when_its_maker_died_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    class Dies(fs.Calls):
        def fsync_dir(self, path: str) -> None:
            raise KeyboardInterrupt

    monkeypatch.setattr(fs, "calls", Dies())
    with pytest.raises(KeyboardInterrupt):
        fs.ensure_dir(tmp_path / "a")
    watching = Watching()
    monkeypatch.setattr(fs, "calls", watching)
    fs.ensure_dir(tmp_path / "a" / "b")
    assert watching.seen == ["fsync_dir", "fsync_dir"], "the entry that was found, and the one that was made"
    assert mode(tmp_path / "a") == mode(tmp_path / "a" / "b") == 0o700
    fs.ensure_dir(tmp_path / "a" / "b")
    assert len(watching.seen) == 2


def test_a_sticky_directory_of_somebody_stays_as_it_is(tmp_path: Path):
    (tmp_path / "tmp").mkdir()
    (tmp_path / "tmp").chmod(0o1777)
    fs.ensure_dir(tmp_path / "tmp" / "home")
    assert mode(tmp_path / "tmp") == 0o1777 and mode(tmp_path / "tmp" / "home") == 0o700


def test_open_append_follows_no_link(tmp_path: Path):
    put(tmp_path / "a", b"x")
    (tmp_path / "link").symlink_to("a")
    with pytest.raises(OSError) as error:
        fs.open_append(tmp_path / "link")
    assert error.value.errno == errno.ELOOP


@pytest.mark.parametrize("size", [0, 1, 8191, 8192, 8193, 20_000, (1 << 20) + 8192, (1 << 20) + 8193])
def test_a_file_of_any_size_is_read_whole_or_refused(tmp_path: Path, size: int) -> None:
    path = tmp_path / "file"
    data = os.urandom(size)
    path.write_bytes(data)
    assert fs.read(path) == fs.read(path, size) == b"".join(fs.pieces(path, 1000)) == data
    if size:
        with pytest.raises(fs.TooLarge):
            fs.read(path, size - 1)
