"""Trees: what is copied, compared and applied comes to the same tree, whatever lies in it and whoever is killed."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loom.spool import fs, trees
from loom.spool.trees import LINK, Applied, Change
from loom.wire.errors import BadInput, NotFound
from loom.wire.jsontext import dumps, loads_object

# A tree as the test sees it: path -> (bytes, mode), or the text of a link.
Tree = dict[str, Any]
NAMES = ["a", "b", "c d", "é", "n\nl", "`x`", ".hid", "#"]
files = st.tuples(st.sampled_from([b"", b"one", b"two\n", b"\x00\xff", b"a"]), st.sampled_from([0o600, 0o644, 0o755]))
links = st.sampled_from(["a", "../out", "/etc/passwd", "b/c", "one"])
PROFILE = settings(max_examples=120, derandomize=True, deadline=None)


@st.composite
def some_trees(draw: st.DrawFn) -> Tree:
    """A tree in which no path is both a file and a directory."""
    tree: Tree = {}
    for path in draw(st.lists(st.lists(st.sampled_from(NAMES), min_size=1, max_size=3).map("/".join), max_size=6)):
        if not any(path == p or path.startswith(f"{p}/") or p.startswith(f"{path}/") for p in tree):
            tree[path] = draw(files | links)
    return tree


@pytest.fixture(scope="module")
def room() -> Iterator[Callable[[], Path]]:
    """Fresh directories, many and quickly."""
    base = Path(tempfile.mkdtemp())
    count = iter(range(10**9))

    def fresh() -> Path:
        path = base / str(next(count))
        path.mkdir()
        return path

    yield fresh
    shutil.rmtree(base)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No syncs: what is durable when is the matter of tests/crash/."""
    for name in ("fsync", "fsync_dir", "sync_file_system", "fdatasync"):
        monkeypatch.setattr(fs.Calls, name, lambda self, *args: None)


def build(root: Path, tree: Tree) -> Path:
    for path, what in tree.items():
        target = root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(what, str):
            target.symlink_to(what)
        else:
            target.write_bytes(what[0])
            target.chmod(what[1])
    return root


def look(root: Path) -> Tree:
    """The tree, read without the code under test; empty directories are listed as None."""
    found: Tree = {}
    for directory, below, names in os.walk(root):
        for name in [*names, *below]:
            path = Path(directory, name)
            rel = os.path.relpath(path, root)
            if path.is_symlink():
                found[rel] = os.readlink(path)
            elif path.is_file():
                found[rel] = (path.read_bytes(), stat.S_IMODE(path.stat().st_mode))
            elif not any(path.iterdir()):
                found[rel] = None
    return found


def difference(room: Callable[[], Path], before: Path, after: Path) -> tuple[list[Change], Path]:
    """What turns one tree into the other, as it comes back from JSON, and where its bytes are."""
    changes = trees.compare(trees.scan(before), trees.scan(after))
    blobs = room()
    trees.store(blobs, before, after, changes)
    return trees.changes_from_json(loads_object(dumps(trees.changes_to_json(changes)))), blobs


# -- copy, scan, compare --------------------------------------------------------------------------------------------


@given(some_trees())
@PROFILE
def test_a_copy_is_the_same_tree_and_its_manifest_is_what_a_scan_finds(room: Callable[[], Path], tree: Tree):
    source, target = build(room(), tree), room() / "copy"
    manifest = trees.copy(source, target)
    assert look(target) == tree and manifest == trees.scan(target) == trees.scan(source)
    assert list(manifest) == sorted(manifest)
    assert trees.manifest_from_json(loads_object(dumps(trees.manifest_to_json(manifest)))) == manifest
    assert trees.compare(manifest, trees.scan(target)) == []


@given(some_trees(), some_trees())
@PROFILE
def test_what_differs_is_named_and_nothing_else(room: Callable[[], Path], one: Tree, other: Tree):
    changes = trees.compare(trees.scan(build(room(), one)), trees.scan(build(room(), other)))
    assert [c.path for c in changes] == sorted(p for p in one.keys() | other.keys() if one.get(p) != other.get(p))


def test_git_temporary_files_fifos_and_names_that_are_no_text_are_left_out(tmp_path: Path):
    source = build(tmp_path / "s", {"a": (b"1", 0o644), "d/.git/config": (b"x", 0o644), ".git/HEAD": (b"x", 0o644)})
    build(source, {".gitignore": (b"x", 0o644), ".loom-tmp-1": (b"x", 0o600), "d/.loom-tmp-2": (b"x", 0o600)})
    os.mkfifo(source / "fifo")
    os.mkdir(os.fsencode(source) + b"/\xff")
    assert set(trees.copy(source, tmp_path / "t")) == set(trees.scan(source)) == {".gitignore", "a"}
    assert set(look(tmp_path / "t")) == {".gitignore", "a", "d"}


def test_links_are_copied_and_never_followed(tmp_path: Path):
    build(tmp_path, {"out/secret": (b"s", 0o600)})
    source = build(tmp_path / "s", {"dir": "../out", "file": "../out/secret", "loop": "loop", "gone": "nowhere"})
    manifest = trees.copy(source, tmp_path / "t")
    assert set(manifest) == {"dir", "file", "loop", "gone"} and all(e.mode == LINK for e in manifest.values())
    assert trees.read_file(source, "file") is trees.read_file(source, "dir/secret") is None
    assert trees.content(source, "dir/secret") is None and trees.content(source, "file") == (b"../out/secret", LINK)


@pytest.mark.parametrize("path", ["", ".", "..", "../x", "a/../../x", "a//b", "/etc/passwd", "a\x00", "a/.."])
def test_nothing_outside_is_read(tmp_path: Path, path: str):
    (tmp_path / "x").write_text("x")
    root = build(tmp_path / "root", {"a/b": (b"b", 0o644)})
    assert trees.read_file(root, path) is None


def test_as_much_of_a_file_is_read_as_was_asked_for(tmp_path: Path):
    build(tmp_path, {"a": (b"x" * 3_000_000, 0o644), "odd\nname": (b"1", 0o644)})
    assert len(trees.read_file(tmp_path, "a") or b"") == 3_000_000
    assert trees.read_file(tmp_path, "a", 10) == b"x" * 10
    assert trees.read_file(tmp_path, "odd\nname") == b"1"
    assert trees.read_file(tmp_path, "b") is trees.read_file(tmp_path, "a/b") is None


def test_a_copy_needs_a_source_and_has_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(NotFound):
        trees.copy(tmp_path / "none", tmp_path / "t")
    source = build(tmp_path / "s", {"a": (b"12345", 0o644), "b": "link", "c": (b"1", 0o644)})
    monkeypatch.setattr(trees, "MAX_FILES", 2)
    with pytest.raises(BadInput):
        trees.copy(source, tmp_path / "t")
    assert not (tmp_path / "t").exists()
    monkeypatch.setattr(trees, "MAX_FILES", 3)
    monkeypatch.setattr(trees, "MAX_BYTES", 6)
    with pytest.raises(BadInput):
        trees.copy(source, tmp_path / "t2")
    assert not (tmp_path / "t2").exists()


def test_a_copy_leaves_out_where_it_is_being_made_and_what_it_is_told_to(tmp_path: Path):
    source = build(tmp_path / "s", {"a": (b"1", 0o644), "home/agents/x": (b"1", 0o600)})
    (source / "home/goals").mkdir()
    trees.copy(source, source / "home/goals/work", without=source / "home")
    assert look(source / "home/goals/work") == {"a": (b"1", 0o644)}
    trees.copy(source, source / "deep/er/work")
    assert set(look(source / "deep/er/work")) >= {"a", "home/agents/x", "home/goals/work/a", "deep/er"}


def test_what_vanishes_while_it_is_copied_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    source = build(tmp_path / "s", {"a": (b"1", 0o644), "b": (b"1", 0o644), "d/x": (b"1", 0o644), "l": "a"})
    usual = trees._entries

    def late(directory: int) -> list[os.DirEntry[str]]:
        found = usual(directory)
        for name in ("b", "l"):
            (source / name).unlink(missing_ok=True)
        shutil.rmtree(source / "d", ignore_errors=True)
        return found

    monkeypatch.setattr(trees, "_entries", late)
    assert set(trees.copy(source, tmp_path / "t")) == {"a"}


def test_a_tree_that_is_still_being_written_is_noticed(tmp_path: Path):
    before, after = build(tmp_path / "b", {}), build(tmp_path / "a", {"x": (b"1", 0o644)})
    (before).mkdir(exist_ok=True)
    changes = trees.compare(trees.scan(before), trees.scan(after))
    (after / "x").write_bytes(b"2")
    with pytest.raises(BadInput, match="x changed while it was inspected"):
        trees.store(tmp_path / "blobs", before, after, changes)


# -- apply ----------------------------------------------------------------------------------------------------------


@given(some_trees(), some_trees())
@PROFILE
def test_changes_turn_one_tree_into_the_other_and_nothing_happens_the_second_time(
    room: Callable[[], Path], one: Tree, other: Tree
):
    before, after = build(room(), one), build(room(), other)
    changes, blobs = difference(room, before, after)
    applied = trees.apply(before, changes, blobs, "g")
    assert applied == Applied(tuple(c.path for c in changes), ())
    assert look(before) == other
    assert trees.apply(before, changes, blobs, "g") == Applied((), ())
    assert look(before) == other


@given(some_trees(), some_trees(), some_trees())
@PROFILE
def test_a_conflict_writes_nothing_and_without_one_the_rest_is_untouched(
    room: Callable[[], Path], one: Tree, other: Tree, third: Tree
):
    """The tree is a third one: what it has in common with the first may be changed."""
    changes, blobs = difference(room, build(room(), one), build(room(), other))
    root = build(room(), third)
    applied = trees.apply(root, changes, blobs, "g")
    if applied.conflicts:
        assert look(root) == third and applied.written == ()
        return
    now = {path: what for path, what in look(root).items() if what is not None}
    touched = {c.path for c in changes}
    assert {p: w for p, w in now.items() if p not in touched} == {p: w for p, w in third.items() if p not in touched}
    assert {p: w for p, w in now.items() if p in touched} == {p: w for p, w in other.items() if p in touched}


class Killed(Exception):
    """Stands for kill -9: nothing of ours runs after it but this exception."""


class Knife(fs.Calls):
    """Dies at call n; every call before it is made."""

    def __init__(self, left: int) -> None:
        self.left = left


def _cut(name: str) -> Callable[..., Any]:
    def call(self: Knife, *args: Any) -> Any:
        if self.left == 0:
            raise Killed
        self.left -= 1
        return getattr(fs.Calls, name)(self, *args)

    return call


for _name in [n for n in vars(fs.Calls) if not n.startswith("_") and n not in ("fsync", "fsync_dir")]:
    setattr(Knife, _name, _cut(_name))


@given(some_trees(), some_trees(), st.integers(0, 25), st.integers(0, 25))
@settings(max_examples=200, derandomize=True, deadline=None)
def test_killed_anywhere_and_applied_again_it_is_the_same_tree(
    room: Callable[[], Path], one: Tree, other: Tree, first: int, second: int
):
    before, after = build(room(), one), build(room(), other)
    changes, blobs = difference(room, before, after)
    usual = fs.calls
    for n in (first, second):
        try:
            fs.calls = Knife(n)
            trees.apply(before, changes, blobs, "g")
        except Killed:
            pass
        finally:
            fs.calls = usual
    assert trees.apply(before, changes, blobs, "g").conflicts == ()
    assert look(before) == other


@pytest.mark.parametrize("one, other", [
    ({"a": (b"x", 0o644)}, {"a/b/c": (b"x", 0o644)}),
    ({"a/b/c": (b"x", 0o644), "a/d": "c"}, {"a": (b"x", 0o644)}),
    ({"a": "b"}, {"a/b": (b"x", 0o644)}),
    ({"a/b": (b"x", 0o644)}, {"a": "b"}),
    ({"a": (b"b", 0o644)}, {"a": "b"}),
    ({"a": "b"}, {"a": (b"b", 0o644)}),
    ({"a": (b"x", 0o644)}, {"a": (b"x", 0o755)}),
    ({"d/a": (b"x", 0o644), "d/b": (b"x", 0o644)}, {"d/b": (b"x", 0o644)}),
    ({"d/e/a": (b"x", 0o644)}, {}),
])  # fmt: skip
def test_files_links_directories_and_modes_turn_into_each_other(tmp_path: Path, one: Tree, other: Tree):
    (tmp_path / "one").mkdir()
    (tmp_path / "other").mkdir()
    before, after = build(tmp_path / "one", one), build(tmp_path / "other", other)
    changes = trees.compare(trees.scan(before), trees.scan(after))
    trees.store(tmp_path / "blobs", before, after, changes)
    assert trees.apply(before, changes, tmp_path / "blobs", "g").conflicts == ()
    assert look(before) == other


def make_file(root: Path) -> Path:
    """Changes that make `a/b` a file `new` over nothing, with its bytes below `root`."""
    after = build(root / "after", {"a/b": (b"new", 0o644)})
    (root / "before").mkdir()
    changes = trees.compare({}, trees.scan(after))
    trees.store(root / "blobs", root / "before", after, changes)
    trees_json = dumps(trees.changes_to_json(changes))
    (root / "changes").write_bytes(trees_json)
    return root


def apply_file(root: Path, target: Path, **options: Any) -> Applied:
    changes = trees.changes_from_json(loads_object((root / "changes").read_bytes()))
    return trees.apply(target, changes, root / "blobs", "g", **options)


@pytest.mark.parametrize("there", [
    {"a": (b"x", 0o644)}, {"a": "../elsewhere"}, {"a/b": (b"other", 0o644)}, {"a/b": "new"}, {"a/b/c": (b"x", 0o644)},
    {"a/b/.git/HEAD": (b"x", 0o644)},
])  # fmt: skip
def test_what_stands_in_the_way_is_a_conflict(tmp_path: Path, there: Tree):
    make_file(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    target = build(tmp_path / "t", there)
    assert apply_file(tmp_path, target) == Applied((), ("a/b",))
    assert look(target) == there and list((tmp_path / "elsewhere").iterdir()) == []


@pytest.mark.parametrize("place", ["a", "a/b"])
def test_a_fifo_in_the_way_is_a_conflict(tmp_path: Path, place: str):
    make_file(tmp_path)
    target = build(tmp_path / "t", {"x": (b"1", 0o644), "a/x" if place != "a" else "y": (b"1", 0o644)})
    os.mkfifo(target / place)
    assert apply_file(tmp_path, target).conflicts == ("a/b",)


def test_a_fifo_in_place_of_what_would_be_removed_is_not_built_upon(tmp_path: Path):
    before, after = build(tmp_path / "b", {"a": (b"1", 0o644)}), build(tmp_path / "n", {"a/x": (b"1", 0o644)})
    changes = trees.compare(trees.scan(before), trees.scan(after))
    trees.store(tmp_path / "blobs", before, after, changes)
    (before / "a").unlink()
    os.mkfifo(before / "a")
    assert trees.apply(before, changes, tmp_path / "blobs", "g").conflicts == ("a/x",)


def test_empty_directories_and_what_a_killed_write_left_are_no_conflict(tmp_path: Path):
    make_file(tmp_path)
    target = tmp_path / "t"
    (target / "a/b/c/d").mkdir(parents=True)
    (target / "a/b/.loom-tmp-old").write_text("half")
    assert apply_file(tmp_path, target).written == ("a/b",)
    assert look(target) == {"a/b": (b"new", 0o644)}


# -- landing --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "umask, file_mode, dir_mode", [(0o022, 0o644, 0o755), (0o077, 0o600, 0o700), (0, 0o666, 0o777)]
)
def test_in_a_persons_tree_new_files_get_what_the_umask_leaves(
    tmp_path: Path, umask: int, file_mode: int, dir_mode: int
):
    make_file(tmp_path)
    target = tmp_path / "t"
    target.mkdir()
    apply_file(tmp_path, target, umask=umask)
    assert stat.S_IMODE((target / "a/b").stat().st_mode) == file_mode
    assert stat.S_IMODE((target / "a").stat().st_mode) == dir_mode


def test_in_a_persons_tree_files_keep_their_mode_and_links_are_not_asked_for_theirs(tmp_path: Path):
    one = {"kept": (b"1", 0o640), "was-link": "outside", "run": (b"1", 0o700)}
    other = {"kept": (b"2", 0o755), "was-link": (b"2", 0o600), "run": (b"1", 0o600), "new": (b"3", 0o755)}
    before, after = build(tmp_path / "b", one), build(tmp_path / "n", other)
    build(before, {"outside": (b"o", 0o777)})
    build(after, {"outside": (b"o", 0o777)})
    changes = trees.compare(trees.scan(before), trees.scan(after))
    trees.store(tmp_path / "blobs", before, after, changes)
    trees.apply(before, changes, tmp_path / "blobs", "g", umask=0o022)
    found = look(before)
    assert found["kept"] == (b"2", 0o640) and found["was-link"] == (b"2", 0o644)
    assert found["run"] == (b"1", 0o700) and found["new"] == (b"3", 0o755)


def test_a_file_is_copied_as_long_as_it_was_when_it_was_opened(tmp_path: Path):
    source = tmp_path / "grows"
    source.write_bytes(b"begin" * 10)
    fd = os.open(source, os.O_RDONLY)
    source.write_bytes(b"begin" * 10 + b"more")
    fs.copy_file(fd, tmp_path / "copy", 0o600, 50)
    os.close(fd)
    assert (tmp_path / "copy").read_bytes() == b"begin" * 10
