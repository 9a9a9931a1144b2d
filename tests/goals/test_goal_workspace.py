"""What is copied of a workspace, and what comes back into it (docs/goals.md section 4)."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import socket
import stat
from pathlib import Path

from goal_world import PASSES, World, does, execute, planned, sub, writes

PLAN = {"subtasks": [sub("one", deliverables=["out/"], level=1)]}
_PR_CAPBSET_DROP, _DAC_OVERRIDE, _DAC_READ_SEARCH = 24, 1, 2


def shell(world: World, source: str) -> str:
    """A model whose executor does this in its tree: `tree` is its path."""
    head = f"""
if text.startswith("# Goal"):
    print({json.dumps(PLAN)!r})
    sys.exit()
tree = os.environ["LOOM_WORKSPACE"]
"""
    return world.program(f"{head}{source}\nprint('done')\n")


def put(source: str = "print('new', file=f)") -> str:
    return f"os.makedirs(tree + '/out', exist_ok=True)\nwith open(tree + '/out/new.md', 'w') as f:\n    {source}\n"


def seen(folder: Path) -> dict[str, tuple[int, int, bytes]]:
    """Every file below a folder: mode, time of change, content."""
    return {
        str(p.relative_to(folder)): (p.lstat().st_mode, p.lstat().st_mtime_ns, b"" if p.is_dir() else p.read_bytes())
        for p in folder.rglob("*")
        if not p.is_fifo() and not p.is_symlink() and not p.is_socket()
    }


def as_anybody() -> None:
    """Root may read everything; without these capabilities it is an owner like any other."""
    libc = ctypes.CDLL(None)
    libc.prctl(_PR_CAPBSET_DROP, _DAC_OVERRIDE, 0, 0, 0)
    libc.prctl(_PR_CAPBSET_DROP, _DAC_READ_SEARCH, 0, 0, 0)


def test_the_users_tree_is_not_touched_before_it_is_landed_in(world: World):
    world.folder("work/out", a_md="A.\n", b_md="B.\n")
    before = seen(world.work)
    model = shell(world, put() + "os.unlink(tree + '/out/a.md')\nopen(tree + '/out/b.md', 'a').write('more')")
    assert world.run(model=model).status == 0
    assert seen(world.work) == before
    (change,) = (world.goal().path / "subtasks/one/0").glob("diff.patch")
    assert {"+new", "-A.", "+more"} <= set(change.read_text().splitlines())


def test_landing_brings_modes_new_directories_and_deletions(world: World):
    out = world.folder("work/out", old_md="Old.\n", keep_md="Keep.\n")
    (out / "keep.md").chmod(0o640)
    world.folder("work/out/empty", gone_md="Gone.\n")
    model = shell(
        world,
        """
os.unlink(tree + "/out/old.md")
os.unlink(tree + "/out/empty/gone.md")
open(tree + "/out/keep.md", "w").write("Kept.\\n")
os.chmod(tree + "/out/keep.md", 0o666)
os.makedirs(tree + "/out/deep/er")
open(tree + "/out/deep/er/new.md", "w").write("New.\\n")
open(tree + "/out/run.sh", "w").write("#!/bin/sh\\n")
os.chmod(tree + "/out/run.sh", 0o700)
os.symlink("keep.md", tree + "/out/link.md")
""",
    )
    done = world.run("--land", model=model, umask=0o027)
    assert done.status == 0, done.err
    assert not (out / "old.md").exists() and not (out / "empty").exists()
    assert (out / "keep.md").read_text() == "Kept.\n" and (out / "deep/er/new.md").read_text() == "New.\n"
    assert os.readlink(out / "link.md") == "keep.md"
    modes = {
        p: stat.S_IMODE((out / p).stat().st_mode) for p in ("keep.md", "deep/er/new.md", "run.sh", "deep", "deep/er")
    }
    assert modes == {"keep.md": 0o640, "deep/er/new.md": 0o640, "run.sh": 0o750, "deep": 0o750, "deep/er": 0o750}
    assert set(world.of("goal.landed")[0]["written"]) == {
        "out/deep/er/new.md",
        "out/empty/gone.md",
        "out/keep.md",
        "out/link.md",
        "out/old.md",
        "out/run.sh",
    }


def test_what_was_changed_meanwhile_is_not_overwritten(world: World):
    out = world.folder("work/out", mine_md="Mine.\n", other_md="Other.\n")
    model = shell(
        world,
        f"""
for name in ("mine.md", "other.md", "new.md"):
    open(tree + "/out/" + name, "w").write("Theirs.\\n")
open({str(out)!r} + "/mine.md", "a").write("And more of mine.\\n")
""",
    )
    done = world.run("--land", model=model)
    assert done.status == 1 and "not landed, changed meanwhile: out/mine.md" in done.err
    assert (out / "mine.md").read_text() == "Mine.\nAnd more of mine.\n"
    assert (out / "other.md").read_text() == "Other.\n" and not (out / "new.md").exists()
    goal = world.goal().id
    again = world.loom("goal", "land", goal)
    assert again.status == 1 and "out/mine.md" in again.err and "nothing was written" in again.err
    (out / "mine.md").write_text("Mine.\n")
    assert world.loom("goal", "land", goal).status == 0
    assert {p.read_text() for p in out.iterdir()} == {"Theirs.\n"}


def test_a_new_file_of_the_user_is_not_overwritten_either(world: World):
    model = world.script(
        planned(sub("one", deliverables=["a.md", "b.md"])),
        *does(execute(), writes("a.md", "A.\n"), writes("b.md", "B.\n")),
        PASSES,
    )
    assert world.run(model=model).status == 0
    world.folder("work/b.md", inside_md="Mine.\n")
    done = world.loom("goal", "land", world.goal().id)
    assert done.status == 1 and "b.md" in done.err and not (world.work / "a.md").exists()
    shutil.rmtree(world.work / "b.md")
    (world.work / "b.md").write_text("B.\n")
    assert world.loom("goal", "land", world.goal().id).status == 0, "the same bytes are no conflict"


def test_a_workspace_that_is_gone_cannot_be_landed_in(world: World):
    assert world.run(model=shell(world, put())).status == 0
    shutil.rmtree(world.work)
    done = world.loom("goal", "land", world.goal().id)
    assert done.status == 1 and "is gone" in done.err and not world.work.exists()


def test_a_workspace_that_may_not_be_written_is_said_at_once(world: World):
    world.work.chmod(0o555)
    done = world.run("--land", model=shell(world, put()), preexec_fn=as_anybody)
    world.work.chmod(0o755)
    assert done.status == 1 and "not landed" in done.err and "Permission denied" in done.err, done.err
    assert not list(world.work.iterdir())
    assert world.loom("goal", "land", world.goal().id).status == 0


def test_links_are_copied_as_links_and_nothing_is_read_through_them(world: World):
    secret = world.folder("elsewhere", secret_txt="Secret.\n") / "secret.txt"
    (world.work / "a.txt").write_text("Text of ours.\n")
    (world.work / "link.txt").symlink_to(secret)
    (world.work / "folder").symlink_to(secret.parent)
    (world.work / "loop").symlink_to("loop")
    (world.work / "dangling.md").symlink_to("nowhere.md")
    os.mkfifo(world.work / "pipe.md")
    with socket.socket(socket.AF_UNIX) as listener:
        here = Path.cwd()
        os.chdir(world.work)  # the path of a socket may not be long
        listener.bind("socket.md")
        os.chdir(here)
    done = world.run("--land", text="Write a digest of these documents.")
    assert done.status == 0, done.err
    assert "Text of ours." in done.out and "Secret" not in done.out
    copied = world.goal().workspace
    assert {p.name for p in copied.iterdir()} == {
        "a.txt",
        "link.txt",
        "folder",
        "loop",
        "dangling.md",
        "DIGEST.md",
        "digest",
    }
    assert all((copied / name).is_symlink() for name in ("link.txt", "folder", "loop", "dangling.md"))
    assert stat.S_ISFIFO((world.work / "pipe.md").stat().st_mode) and secret.read_text() == "Secret.\n"
    assert os.readlink(world.work / "link.txt") == str(secret)


def test_version_control_and_our_own_home_are_left_out(world: World):
    inside = World(world.root, home_at=world.work / ".loom")
    world.folder("work/.git", config_txt="[core]\n")
    world.folder("work/part/.git", config_txt="[core]\n")
    (world.work / "part" / "a.txt").write_text("Text of ours.\n")
    done = inside.run("--land", text="Write a digest of these documents.")
    inside.loom("supervisor", "stop")
    assert done.status == 0, done.err
    assert inside.gone()
    copied = {str(p.relative_to(inside.goal().workspace)) for p in inside.goal().workspace.rglob("*") if p.is_file()}
    assert "part/a.txt" in copied and "DIGEST.md" in copied
    assert not [p for p in copied if ".git" in p or ".loom" in p]
    assert (world.work / ".git" / "config.txt").exists()


def test_a_file_that_may_not_be_read_is_named(world: World):
    (world.work / "a.txt").write_text("Text.\n")
    closed = world.folder("work/part", closed_txt="Text.\n") / "closed.txt"
    closed.chmod(0)
    done = world.run(preexec_fn=as_anybody)
    assert done.status == 1 and "part/closed.txt" in done.err, done.err
    assert world.state().reason.startswith("the workspace could not be copied")


def test_a_workspace_that_is_too_large_is_refused(world: World):
    with (world.work / "image.raw").open("wb") as file:
        file.truncate(5 << 30)  # nothing is written: a file with a hole
    done = world.run()
    assert done.status == 1 and "the workspace is too large" in done.err and "4 GiB" in done.err


def test_many_files_are_copied_and_listed(world: World):
    for number in range(1500):
        (world.work / f"{number:04}.dat").touch()
    (world.work / "a.txt").write_text("Text.\n")
    done = world.run(text="Write a digest of a.txt.")
    assert done.status == 0, done.err
    assert len(list(world.goal().workspace.iterdir())) == 1503
    assert "`1499.dat` (0 bytes)" in world.requests("planner")[0]


def test_odd_names_survive(world: World):
    names = ["a b.txt", "ü.txt", "line\nbreak.txt", "-rf.txt", "'quote\".txt"]
    for name in names:
        (world.work / name).write_text(f"Text of file number {names.index(name)}.\n")
    (world.work / os.fsdecode(b"\xff.txt")).write_text("Not said.\n")
    done = world.run("--land", text="Write a digest of these documents.")
    assert done.status == 0, done.err
    for name in names:
        assert (world.goal().workspace / name).read_text() == (world.work / name).read_text()
        said = f"Text of file number {names.index(name)}."
        assert (said in done.out) == name.isprintable(), "a name that no plan can say is not shown to the planner"
    assert "Not said." not in done.out


def test_copies_of_the_workspace_go_when_they_have_served(world: World):
    world.folder("work", big_md="Much text. " * 1000)
    one, two = sub("one", deliverables=["one.md"]), sub("two", deliverables=["two.md"], depends_on=["one"])
    model = world.script(
        planned(one, two),
        *does(execute("one"), writes("one.md", "One.\n"), {"text": "Written."}),
        *does(execute("two"), writes("two.md", "Two.\n"), {"text": "Written."}),
        PASSES,
    )
    done = world.run("-w", world.work, model=model)
    assert done.status == 0, done.err
    assert (world.goal().workspace / "big.md").exists()
    assert list((world.goal().path / "subtasks").rglob("big.md")) == []
