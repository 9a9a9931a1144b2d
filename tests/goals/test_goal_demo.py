"""The main job with the built-in models: separate processes, at once, and the same digest every time."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from itertools import combinations
from pathlib import Path

import pytest
from goal_world import World, actors, check_once, write_documents
from support import ROOT

DOCUMENTS = "Write a digest of these documents."


def overlapping(world: World) -> bool:
    """Whether two executors were at work at the same time, by their own word."""
    orders = {o["name"]: o for o in world.of("order.dispatched") if o["kind"] == "execute"}
    times = [
        (orders[r["order"]]["agent"], r["began_us"], r["ended_us"])
        for r in world.of("order.reported")
        if r["order"] in orders
    ]
    return any(a[0] != b[0] and a[1] < b[2] and b[1] < a[2] for a, b in combinations(times, 2))


def other_home(world: World, name: str, executors: int) -> World:
    other = World(world.root / name)
    other.config(f"pools:\n  executor: {executors}\n")
    return other


def test_a_digest_of_this_repositorys_documents(world: World):
    for folder in ("docs", "adrs"):
        shutil.copytree(ROOT / folder, world.work / folder, ignore=shutil.ignore_patterns("*.json"))
    before = {path: path.read_bytes() for path in world.work.rglob("*") if path.is_file()}
    done = world.run("--land", text=DOCUMENTS)
    assert done.status == 0, done.err
    digest = (world.work / "DIGEST.md").read_bytes()
    assert digest.decode() == done.out
    assert {path: path.read_bytes() for path in before} == before

    events = world.events()
    processes = [actors(events, role) for role in ("planner", "router", "keeper", "verifier", "executor")]
    assert all(processes) and len(processes[-1]) >= 2
    assert len({pid for who in processes for _, pid, _ in who}) == sum(map(len, processes))
    assert overlapping(world)
    assert world.types()[-1] == "goal.landed" and "goal.completed" in world.types()
    check_once(events)
    assert world.loom("goal", "audit", world.goal().id).status == 0

    text = digest.decode()
    assert world.goal().id not in text and str(world.root) not in text
    dates = set(re.findall(r"\d{4}-\d\d-\d\d|\d\d:\d\d", text))
    sources = "".join(path.read_text() for path in before if path.suffix == ".md")
    assert all(date in sources for date in dates), "only the documents' own words"
    sections = re.findall(r"^Source: (.*)$", text, re.MULTILINE)
    documents = [path for path in before if path.suffix != ".svg"]
    assert sections == sorted(str(path.relative_to(world.work)) for path in documents)
    assert world.gone()


def test_the_digest_depends_on_the_documents_alone(world: World):
    write_documents(world.work, 6, 30)
    first = world.run(text=DOCUMENTS)
    assert first.status == 0, first.err
    for executors in (1, 6):
        again = other_home(world, f"again-{executors}", executors)
        shutil.copytree(world.work, again.work, dirs_exist_ok=True)
        done = again.run(text=DOCUMENTS)
        assert (done.status, done.out) == (0, first.out)
        assert len(actors(again.events(), "executor")) <= executors
        assert again.gone()
    other = other_home(world, "other", 4)
    write_documents(other.work, 6, 30, seed=8)
    assert other.run(text=DOCUMENTS).out not in ("", first.out)
    assert other.gone()


@pytest.fixture
def demo(tmp_path: Path) -> Path:
    """A copy of what the demonstration needs of the checkout, so that it works in a .demo of its own."""
    for folder in ("examples", "docs", "adrs"):
        shutil.copytree(ROOT / folder, tmp_path / "copy" / folder)
    return tmp_path / "copy"


def run_demo(world: World, demo: Path, *args: str | Path) -> subprocess.CompletedProcess[str]:
    loom = world.root / "loom"
    loom.write_text('#!/bin/sh\nexec "$PYTHON" -m loom "$@"\n')
    loom.chmod(0o755)
    env = {name: value for name, value in world.env.items() if name != "LOOM_HOME"}
    env |= {"LOOM": str(loom), "LOOM_SHOWN": "loom", "PYTHON": sys.executable}
    return subprocess.run(
        ["sh", demo / "examples" / "demo.sh", *map(str, args)], env=env, capture_output=True, text=True, timeout=90
    )


def test_the_demonstration_leaves_a_digest_and_no_process(world: World, demo: Path):
    folder = world.folder(
        "letters", a_md="# A\n\nThe fox runs home. It sleeps all day.\n", b_txt="Rain fell all week.\n"
    )
    world.folder("letters/.git", c_md="# Hidden\n\nNever shown.\n")
    done = run_demo(world, demo, folder)
    assert done.returncode == 0, done.stderr
    digest = (demo / ".demo/out/DIGEST.md").read_text()
    assert "The fox runs home." in digest and "Rain fell all week." in digest and "Never shown." not in digest
    shown = World(world.root / "shown", home_at=demo / ".demo/home")
    assert shown.processes() == {}
    assert f"goal log {shown.goal().id}" in done.stdout
    assert not (folder / "DIGEST.md").exists()
    again = run_demo(world, demo, folder)
    assert (again.returncode, (demo / ".demo/out/DIGEST.md").read_text()) == (0, digest)


def test_the_demonstration_says_what_is_wrong_with_a_folder(world: World, demo: Path):
    absent = run_demo(world, demo, world.root / "absent")
    assert absent.returncode == 66 and "not a directory" in absent.stderr
    empty = run_demo(world, demo, world.folder("empty", a_png="no text"))
    assert empty.returncode == 66 and "no Markdown or text" in empty.stderr


def test_a_digest_the_user_wrote_is_not_written_over(world: World):
    (world.work / "bees.md").write_text("Bees hum in the garden all day. They make honey for the long winter months.\n")
    (world.work / "DIGEST.md").write_text("# My own digest\n\nNever lose it.\n")
    done = world.run("-w", world.work, "--land", text="Write a digest of these documents.")
    assert done.status == 1 and "DIGEST.md is there already and is no digest made before" in done.err
    assert (world.work / "DIGEST.md").read_text() == "# My own digest\n\nNever lose it.\n"
