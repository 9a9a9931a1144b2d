"""Power cuts: whatever a disk may have kept of a workflow, the real code recovers from it, and every sync is needed.

By default a drawn part of the states of each workflow, and the syncs of the kernel taken out one by one; marked full
all workflows, histories in which a killed process was started again before the cut, and every sync of the package.
"""

from __future__ import annotations

import ast
import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import results
from crash_cases import Box, letter, mailbox
from harness import Case, note, noted
from power import Explorer, Report, Workflow
from power_cases import IN_PART, WORKFLOWS
from power_disk import MODELS, Cuts, states
from power_record import Recorder, record
from support import scratch

import loom
from loom.spool import fs

SEED = 20261121
NAMED = {workflow.name: workflow for workflow in (*WORKFLOWS, *IN_PART)}

# Syncs whose loss no power cut can show, and why: another one behind them always covers them, or nothing was promised.
# Whoever adds a sync writes the case that shows it, or says here why there is none.
_SAME_DIRECTORY = "the directories made are in the agent's own, which agent.json, written last, syncs"
_BOOT = "what belongs to one boot is made again after a power cut"
_TRIED_OUT = "the files of the self-test are removed again"
_TREE_BEHIND = "the whole tree is synced before it gets its name"
_CUT_AGAIN = "a torn end that comes back is cut off again; whatever is appended is synced before it counts"
JUSTIFIED = {
    "agents:create ensure_dir/fsync_dir": _SAME_DIRECTORY,
    "archive:__init__ __init__/fsync_dir": "everything is synced before the archive gets its name",
    "goals:create ensure_dir/fsync_dir": "goal.md is published beside them, which syncs their entries",
    "goals:settle fsync_dir": "only a client killed inside goals.create leaves it to do; tests/spool has that",
    "home:_check_boot replace/fsync": _BOOT,
    "home:_check_boot replace/fsync_dir": _BOOT,
    "home:_create replace/fsync_dir": "the directories of the home are made next, beside it, each entry synced",
    "home:self_test ensure_dir/fsync_dir": _TRIED_OUT,
    "home:self_test publish/fsync": _TRIED_OUT,
    "home:self_test publish/fsync_dir": _TRIED_OUT,
    "journal:_mend fsync": _CUT_AGAIN,
    "keeper:prepare replace/fsync": _TREE_BEHIND,
    "keeper:prepare replace/fsync_dir": _TREE_BEHIND,
    "ndjson:_repair fsync": _CUT_AGAIN,
    "trees:copy ensure_dir/fsync_dir": _TREE_BEHIND,
}

# Functions that sync and are in no record.
_GIVEN_AGAIN = "the same command, given again, does what is left"
_THROWN_AWAY = "conformance works in a home of its own, which it removes"
UNRECORDED = {
    "conformance_runner:_usage": _THROWN_AWAY,
    "conformance_runner:put": _THROWN_AWAY,
    "pipe:_settle": "only a pipe killed behind its link leaves it to do",
    "pipe_rm:_remove": _GIVEN_AGAIN,
    "schedule:add": _GIVEN_AGAIN,
    "schedule:rm": _GIVEN_AGAIN,
    "schedules:lock": "makes a directory that each job has",
    "up:_seed": _GIVEN_AGAIN,
    "weaving:write_overrides": _GIVEN_AGAIN,
    "weaving:write_pipe": _GIVEN_AGAIN,
    "weaving:write_routes": _GIVEN_AGAIN,
    "filter:begin": "a person at a terminal waits for the answer, and types the order again without one",
    "fsck_mail:_doubled": "fsck may be run again",
    "fsck_mail:act": "fsck may be run again",
    "goalkeeping:_show": "what is shown there is derived",
    "threads:hold": "makes a directory that every agent has",
    "turns:__init__": "makes a directory that every agent has",
    "wake:listen": _BOOT,
}


def _explored(explorer: Explorer, at_most: int) -> Report:
    report = explorer.explore(at_most=at_most)
    print(report.line())
    assert not report.failures, "\n".join([report.line(), *report.failures[:3]])
    return report


# One of each kind; to list the states of a goal alone takes seconds. The whole suite has all of them.
BOUNDED = ("send", "by hand", "work", "blobs", "journal", "state files", "home", "router", "gc", "gc blobs", "deeds",
           "pipe is changed", "schedule")  # fmt: skip


@pytest.mark.parametrize("workflow", [NAMED[name] for name in BOUNDED], ids=lambda workflow: workflow.name)
def test_a_power_cut_at_any_moment_loses_nothing_that_was_promised(workflow: Workflow):
    with Explorer(workflow, SEED) as explorer:
        report = _explored(explorer, 12)
        assert report.tried and set(report.states) == set(MODELS)


@pytest.mark.parametrize("name", ["send", "blobs", "home"])
def test_a_kill_a_restart_and_then_a_power_cut_lose_nothing(name: str):
    """What the killed process had made and not synced is there for the next one, and not on the disk."""
    with Explorer(NAMED[name], SEED) as explorer:
        explorer.record_kills(5)
        _explored(explorer, 3)


def test_a_message_moved_into_a_directory_that_a_killed_process_made_stays():
    with Explorer(NAMED["work"], SEED) as explorer:
        explorer.record_kills(behind="mailbox:acknowledge move/mkdir")
        _explored(explorer, 60)


@pytest.mark.parametrize("name", ["send", "by hand", "blobs", "heads", "router"])
def test_a_sync_that_is_left_out_is_found(name: str):
    with Explorer(NAMED[name], SEED) as explorer:
        for model in MODELS:
            assert explorer.states(model)
        found = {site for site in explorer.sites() if explorer.without(site, at_most=60)}
        assert explorer.sites() - found == BLIND.get(name, set()) - found


# What a case by itself cannot show; another one does.
BLIND = {
    "send": {"mailbox:_check_known settle/fsync", "mailbox:_check_known settle/fsync_dir"},  # by hand
    "blobs": {"blobs:put settle/fsync", "blobs:put settle/fsync_dir"},  # by hand
    "by hand": {"mailbox:acknowledge move/fsync_dir"},  # work
}


class Everything:
    """The explorers of the whole proof, which remember what they have tried, and what they reported."""

    def __init__(self) -> None:
        self.explorers: dict[str, Explorer] = {}
        self.reports: list[Report] = []


@pytest.fixture(scope="module")
def everything() -> Iterator[Everything]:
    found = Everything()
    yield found
    for explorer in found.explorers.values():
        explorer.__exit__()


@pytest.mark.full
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda workflow: workflow.name)
def test_every_state_of_a_workflow(workflow: Workflow, everything: Everything):
    """Each state that a cut in the workflow may leave; behind a kill and a restart, a drawn part of them."""
    explorer = everything.explorers[workflow.name] = Explorer(workflow, SEED)
    everything.reports.append(_explored(explorer, 0))
    if workflow.kills:
        explorer.record_kills(24)
        everything.reports.append(_explored(explorer, 40))


@pytest.mark.full
@pytest.mark.timeout(7200)
def test_every_sync_of_the_package_is_found_when_it_is_left_out(everything: Everything):
    """Only after the tests above: what was tried there is not tried again."""
    explorers = everything.explorers.values()
    if everything.explorers.keys() < {workflow.name for workflow in WORKFLOWS}:
        pytest.skip("only a part of the workflows was explored")
    sites = sorted({site for explorer in explorers for site in explorer.sites()})
    blind = [site for site in sites if not any(e.without(site, at_most=400) for e in explorers if site in e.sites())]
    assert set(blind) == set(JUSTIFIED), (
        f"removed and not found: {sorted(set(blind) - set(JUSTIFIED))}; "
        f"justified and found: {sorted(set(JUSTIFIED) - set(blind))}"
    )
    distinct = {m: sum(len(explorer.seen[m]) for explorer in explorers) for m in MODELS}
    results.note(
        "power loss",
        SEED,
        workflows=len(WORKFLOWS),
        histories=sum(len(explorer.records) for explorer in explorers),
        states=sum(distinct.values()),
        **distinct,
        recovered=sum(report.tried for report in everything.reports),
        violations=0,
        syncs_removed=len(sites),
        found=len(sites) - len(blind),
    )


@pytest.mark.full
@pytest.mark.timeout(7200)
def test_a_drawn_part_of_the_states_of_pipes_and_schedules():
    counted = Counter[str]()
    for workflow in IN_PART:
        with Explorer(workflow, SEED) as explorer:
            report = _explored(explorer, 100)
            counted.update(states=sum(report.states.values()), **report.states, recovered=report.tried)
    results.note("power loss of pipes and schedules, in part", SEED, workflows=len(IN_PART), **counted, violations=0)


# -- the explorer itself ---------------------------------------------------------------------------------------


def test_every_file_changing_call_is_recorded():
    calls = {name for name in vars(fs.Calls) if not name.startswith("_")}
    assert calls == {name for name in vars(Recorder) if name in calls}


def _sender(publish: Callable[[Path, bytes], bool]) -> Workflow:
    """One message, sent by a writer of its own."""
    name, data = letter(1, "one")

    def send(root: Path) -> None:
        publish(root / "inbox" / f"{name}.msg", data)
        note(root, "accepted", {})

    def check(root: Path) -> None:
        assert not noted(root, "accepted") or (root / "inbox" / f"{name}.msg").read_bytes() == data

    return Workflow(Case("sender", lambda root: mailbox.create(Box(root)), send, lambda root: None, check))


def _without_file_sync(target: Path, data: bytes) -> bool:
    temporary = fs._temporary(target.parent, data, sync=False)
    fs.calls.link(temporary, str(target))
    fs.calls.fsync_dir(str(target.parent))
    return True


def _without_directory_sync(target: Path, data: bytes) -> bool:
    temporary = fs._temporary(target.parent, data, sync=True)
    fs.calls.link(temporary, str(target))
    return True


def test_the_right_writer_passes_and_the_wrong_ones_do_not():
    found = {}
    for publish in (fs.publish, _without_file_sync, _without_directory_sync):
        with Explorer(_sender(publish), SEED) as explorer:
            by_model = {model: explorer.explore([model]).failures for model in MODELS}
            found[publish.__name__] = [model for model, failures in by_model.items() if failures]
    assert found["publish"] == []
    assert found["_without_file_sync"], "bytes that were not synced are always there"
    assert found["_without_directory_sync"], "a name that was not synced is always there"


def test_a_change_that_is_not_recorded_is_a_failure():
    room = scratch()
    root = room / "root"
    root.mkdir()
    (root / "file").write_bytes(b"old")
    with pytest.raises(AssertionError, match="changed behind our back"):
        record(lambda root: (root / "file").write_bytes(b"new"), root, room)


def _states_of(work: Callable[[Path], object], model: str) -> set[tuple[str, ...]]:
    """Every state that a cut in `work` may leave: path and content of each file and directory but the root."""
    room = scratch()
    root = room / "root"
    root.mkdir()
    (root / "a").mkdir()
    (root / "b").mkdir()
    (root / "a" / "old").write_bytes(b"old")
    rec = record(lambda root: work(root) and None, root, room)
    found = set()
    for state in states(rec, model, set(), Cuts()):
        lines = []

        def walk(what, path, lines=lines):
            if what[0] == "dir":
                for name, _, below in what[2]:
                    walk(below, f"{path}/{name}")
            else:
                lines.append(f"{path}={what[2].decode().replace(chr(0), '0')}")

        walk(state.tree, "")
        found.add(tuple(lines))
    return found


def test_a_rename_between_directories_may_leave_both_names_but_never_none():
    def work(root: Path) -> None:
        fs.calls.rename(str(root / "a" / "old"), str(root / "b" / "new"))

    assert _states_of(work, "ext4") == {("/a/old=old",), ("/b/new=old",)}
    assert _states_of(work, "posix") == {("/a/old=old",), ("/b/new=old",), ("/a/old=old", "/b/new=old")}


def test_a_rename_within_a_directory_is_there_or_it_is_not():
    def work(root: Path) -> None:
        fs.calls.rename(str(root / "a" / "old"), str(root / "a" / "new"))

    for model in MODELS:
        assert _states_of(work, model) == {("/a/old=old",), ("/a/new=old",)}


def test_names_have_an_order_in_one_model_and_none_in_the_other():
    def work(root: Path) -> None:
        for name in ("one", "two"):
            os.close(fs.calls.create(str(root / "b" / name), 0o600))

    kept = ("/a/old=old",)
    one, two = (*kept, "/b/one="), (*kept, "/b/two=")
    both = (*kept, "/b/one=", "/b/two=")
    assert _states_of(work, "ext4") == {kept, one, both}
    assert _states_of(work, "posix") == {kept, one, two, both}


def test_bytes_that_were_not_synced_may_be_missing_torn_or_zero():
    def work(root: Path) -> None:
        fd = fs.calls.open_append(str(root / "a" / "old"), 0o600)
        fs.calls.write(fd, b"+more")
        fs.calls.fdatasync(fd)
        fs.calls.write(fd, b"+end")
        os.close(fd)

    first = {"old", "old+m", "old+mor", "old00000", "old+m000", "old+more"}
    then = {"old+more+e", "old+more+en", "old+more0000", "old+more+e00", "old+more+end"}
    for model in MODELS:
        assert _states_of(work, model) == {(f"/a/old={text}",) for text in first | then}


def test_a_size_that_was_cut_may_come_back_until_it_is_synced():
    def work(root: Path) -> None:
        fd = fs.calls.open_append(str(root / "a" / "old"), 0o600)
        fs.calls.truncate(fd, 1)
        fs.calls.write(fd, b"N")
        fs.calls.fsync(fd)
        os.close(fd)

    assert {("/a/old=old",), ("/a/old=o",), ("/a/old=o0",), ("/a/old=oN",)} <= _states_of(work, "ext4")
    assert ("/a/old=oNd",) in _states_of(work, "posix")


def test_a_sync_of_anything_brings_all_names_before_it_in_one_model_only():
    def work(root: Path) -> None:
        os.close(fs.calls.create(str(root / "b" / "new"), 0o600))
        fs.calls.fsync_dir(str(root / "a"))
        os.close(fs.calls.create(str(root / "b" / "late"), 0o600))

    kept = ("/a/old=old",)
    assert (*kept, "/b/late=") in _states_of(work, "posix")
    assert (*kept, "/b/late=") not in _states_of(work, "ext4")


# -- every sync of the package is in a record ------------------------------------------------------------------

_SYNCS = {"fsync", "fdatasync", "fsync_dir", "sync_file_system"}
_WAYS = {"publish", "publish_all", "replace", "settle", "ensure_dir", "sync_tree", "exchange_file"}


def syncing_functions() -> set[str]:
    """`module:function` of every function of the package, fs.py apart, that calls something that syncs."""
    found = set()
    for path in Path(loom.__file__).parent.rglob("*.py"):
        if path.name == "fs.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                calls = [
                    c.func for c in ast.walk(node) if isinstance(c, ast.Call) and isinstance(c.func, ast.Attribute)
                ]
                for call in calls:
                    of = ast.unparse(call.value)
                    if (of == "fs" and call.attr in _WAYS) or (of == "fs.calls" and call.attr in _SYNCS):
                        found.add(f"{path.stem}:{node.name}")
    return found


def test_every_function_that_syncs_is_in_a_record():
    recorded = set()
    for workflow in NAMED.values():
        with Explorer(workflow, SEED) as explorer:
            recorded |= {site.split(" ")[0] for site in explorer.sites()}
    assert syncing_functions() - recorded == set(UNRECORDED)
