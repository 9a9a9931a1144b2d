"""A thousand odd entries in a live agent's inbox, in an outbox and in the control/ of a goal, good ones in between.

Real processes: the supervisor, a runner, the router. Each entry is accounted for, each good message is answered once,
nobody is restarted, and nothing outside the home is read or changed.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import results
from ground import drop_capabilities
from hostile_world import (
    LONG_S,
    HostileWorld,
    answered,
    check_answered_once,
    check_no_traceback,
    log_records,
    notes,
    pid_of,
)
from odd_entries import START_MS, Leaver, Odd
from support import forked, scratch, wait_until

from loom.spool import goals, mailbox
from loom.spool.layout import AgentDir
from loom.wire import ids, message
from loom.wire.event import Event
from loom.wire.message import Message

SEED = int(os.environ.get("LOOM_SEED", "11"))
COUNT = 1000
LIMIT_S = 5.0
CANARY = "canary-7f3a: nobody may read or copy this line\n"
OURS = {".tmp", ".in-progress", ".processed", ".failed", ".unreadable"}
# What none of the commands for people may print: C0 but newline and tab, DEL, C1, reordering marks and tags.
CONTROL = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\U000e0000-\U000e007f]")


@pytest.fixture
def world() -> Iterator[HostileWorld]:
    root = scratch()
    made = HostileWorld(root)
    (root / "canary").write_text(CANARY)
    try:
        yield made
    finally:
        try:
            made.close()
        finally:
            for directory, names, _ in os.walk(root):  # some are closed to us, unless we are root
                for name in names:
                    path = Path(directory, name)
                    if not path.is_symlink():
                        path.chmod(0o700)
            shutil.rmtree(root)


def good(stem: str, sender: str = "user", **fields: Any) -> bytes:
    """A message with something of everything in it, so that a torn one is torn at every kind of place."""
    data = {"list": [1, -2.5e3, True, None, '"\\/\t\x7f é 😀'], "object": {"a": {}, "b": []}}
    given: dict[str, Any] = {"data": data, "rest": {"more": [[], {"x": "y"}]}, **fields}
    return message.encode(Message(ids.ulid_of(stem), sender, 1, f"good {stem}", **given))


def leaver(world: HostileWorld, directory: Path, **given: Any) -> Leaver:
    made = Leaver(directory, SEED, canary=world.root / "canary", **{"good": good, **given})
    world.cleanups.append(made.close)
    return made


def strange_but_good(stem: str, number: int) -> bytes:
    """What is unusual and still a message."""
    data = good(stem)
    return (
        data,
        data.rstrip(),
        b" \r\n\t" + data,
        data.replace(b'"v":1', b'"v":1,"body":"first","body":"second"'),
        data.replace(b'"v":1', b'"v":1,"x":' + b"9" * 400),
        data.replace(b'"v":1', b'"v":1,"x":' + b'{"a":' * 62 + b"1" + b"}" * 62),
        json.dumps(json.loads(data), indent=3).encode(),
        data.replace(b'"ts":1', b'"ts":-9' + b"9" * 30),
    )[number % 8]


def check_nothing_outside(world: HostileWorld, before: tuple[int, ...]) -> None:
    """No link was followed: neither the canary's text nor that of /etc/passwd lies anywhere in the home."""
    canary = world.root / "canary"
    assert canary.read_text() == CANARY and _stat(canary) == before
    secrets = (CANARY.encode().strip(), Path("/etc/passwd").read_bytes().splitlines()[0])
    inode = canary.stat().st_ino
    for folder, _, files in os.walk(world.path):
        for name in files:
            path = Path(folder, name)
            if path.is_file() and not path.is_symlink() and path.stat().st_ino != inode and os.access(path, os.R_OK):
                with path.open("rb") as file:
                    head = file.read(4 << 20)
                assert not any(secret in head for secret in secrets), path


def _stat(path: Path) -> tuple[int, ...]:
    found = path.stat()
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_mode, found.st_uid


def check_shown_plainly(world: HostileWorld, agent: AgentDir) -> None:
    """On a terminal and in a pipe: nothing that moves a cursor, colours, or turns text round."""
    for command in (("agent", "show", agent.name), ("agent", "ps", "-a"), ("agent", "logs", agent.name, "-n", "9999")):
        for terminal in (False, True):
            shown = world.loom(*command, terminal=terminal)
            assert shown.status == 0, shown
            text = shown.out.replace("\r\n", "\n")
            assert not CONTROL.search(text), (command, ascii(CONTROL.findall(text)))


def account(agent: AgentDir, odd: list[Odd], directory: Path, place: Path) -> list[str]:
    """What is not accounted for yet. `directory` is where they were left, `place` where refused ones go."""
    noted = notes(place, at_work=True)
    told = {r["name"] for r in log_records(agent) if r["event"] in ("odd_entry", "unmovable")}
    missing = []
    for entry in odd:
        shown = ascii(entry.name)[1:-1]
        there = os.path.lexists(os.fsencode(directory) + b"/" + os.fsencode(entry.name))
        note = noted.get(shown)
        if entry.stays or not entry.reasons:
            fine = there and shown in told and note is None
        else:
            fine = not there and note is not None and note["reason"] in entry.reasons
        if not fine:
            missing.append(f"{entry} there={there} note={note}")
    return missing


def all_accounted(missing: Callable[[], list[str]]) -> None:
    """Waits until nothing is missing; the message says what still is."""
    try:
        wait_until(lambda: not missing(), LONG_S)
    except AssertionError:
        raise AssertionError("\n".join(missing())) from None


def test_a_thousand_odd_entries_delay_nobody_and_each_is_accounted_for(world: HostileWorld):
    results.note("hostile mail", SEED, **throw_at_inbox(world))


def test_the_same_as_a_plain_user():
    """To root no file is closed; a plain user can neither open it nor, if it is a directory, move it."""
    if os.geteuid() != 0:
        pytest.skip("the tests run as a plain user, and so did the one above")
    root = scratch()

    def work() -> dict[str, Any]:
        drop_capabilities()
        world = HostileWorld(root)
        (root / "canary").write_text(CANARY)
        try:
            return throw_at_inbox(world)
        finally:
            world.close()

    try:
        ended = forked(work, 100.0)
        assert ended.status == 0, ended.said["trace"]
        assert ended.said["could_not_be_moved"] > 0
    finally:
        shutil.rmtree(root)


def throw_at_inbox(world: HostileWorld) -> dict[str, Any]:
    """Figures of a thousand entries thrown at a live agent."""
    worker = world.agent("worker")
    supervisor = world.supervise()
    pid = pid_of(worker)
    first = [world.send(worker, f"before {n}") for n in range(10)]
    answered(worker, first)

    leave = leaver(world, worker.inbox)
    before = _stat(world.root / "canary")
    stems: list[str] = []
    came: dict[str, float] = {}

    def a_good_one() -> None:
        if leave.draw.random() < 0.04:
            stem = leave.stem()
            data = strange_but_good(stem, len(stems))
            leave.put(f"{stem}.msg", lambda path: path.write_bytes(data))
            stems.append(stem)
            came[stem] = time.monotonic()

    started = time.monotonic()
    odd = leave.some(COUNT, between=a_good_one)
    # Names of messages that are known already, with other bytes: conflicts, and nobody is answered a second time.
    known = [Odd(f"{stem}.msg", "known name", ("conflict",)) for stem in first[:5]]
    for entry in known:
        leave.put(entry.name, lambda path, name=entry.name: path.write_bytes(good(name[:-4])))
    # The same bytes again are the same message: it is gone, and that is all.
    for stem in first[5:]:
        leave.put(f"{stem}.msg", lambda path, stem=stem: shutil.copy(worker.processed(stem), path))
    left_s = time.monotonic() - started
    last = world.send(worker, "after")
    waited: dict[str, float] = {}

    def good_ones_done() -> bool:
        for stem in stems:
            if stem not in waited and worker.processed(stem).exists():
                waited[stem] = time.monotonic() - came[stem]
        return len(waited) == len(stems) and worker.processed(last).exists()

    wait_until(good_ones_done)
    all_accounted(lambda: account(worker, odd + known, worker.inbox, worker.unreadable))
    took_s = time.monotonic() - started

    assert len(odd) == COUNT and len(stems) >= 20
    assert took_s < LIMIT_S, f"{took_s:.2f} s, of which leaving them took {left_s:.2f} s"
    assert pid_of(worker) == pid and log_records(worker, "crashed") == []
    assert supervisor.poll() is None
    check_answered_once(worker, [*first, *stems, last])
    assert len(notes(worker.unreadable)) == sum(bool(o.reasons) and not o.stays for o in odd) + len(known)
    left = {name for name in os.listdir(worker.inbox) if name not in OURS}
    assert left == {o.name for o in odd if o.stays or not o.reasons}
    check_nothing_outside(world, before)
    check_shown_plainly(world, worker)
    check_no_traceback(world)
    return {
        "entries": COUNT,
        "kinds": len({o.kind.split("=")[0] for o in odd}),
        "good_ones": len(stems) + 1,
        "seconds": took_s,
        "longest_wait_of_a_good_one_s": max(waited.values()),
        "could_not_be_moved": sum(o.stays for o in odd),
        "restarts": 0,
    }


def test_an_outbox_full_of_them_holds_up_no_other_mail(world: HostileWorld):
    """What an agent leaves in its outbox is refused with the reason; its good replies and those of others go out."""
    sender, target = world.agent("sender", want="down"), world.agent("target", want="down")
    other = world.agent("other", want="down")
    world.supervise()
    router = world.home.agent("router")
    pid = pid_of(router)
    leave = leaver(world, sender.outbox, good=lambda stem: good(stem, "sender", to="target"))
    before = _stat(world.root / "canary")
    stems: list[str] = []

    def a_good_one() -> None:
        if leave.draw.random() < 0.04:
            stem = leave.stem()
            box, name = (sender, "sender") if leave.draw.random() < 0.5 else (other, "other")
            path = box.outbox / ".tmp" / stem
            path.write_bytes(good(stem, name, to="target"))
            os.rename(path, box.outbox / f"{stem}.msg")
            stems.append(stem)

    started = time.monotonic()
    odd = leave.some(COUNT, between=a_good_one)
    # Readable, and all the same not to be routed: by somebody else, to nobody, with a name that was used before.
    foreign = {"from": "other", "to": "nobody"}
    for field, value in foreign.items():
        stem = leave.stem()
        given: dict[str, Any] = {"sender": "other"} if field == "from" else {"sender": "sender", "to": value}
        data = good(stem, **given)
        leave.put(f"{stem}.msg", lambda path, data=data: path.write_bytes(data))
        odd.append(Odd(f"{stem}.msg", f"{field}={value}", ("wrong_sender", "no_target")))
    stem = leave.stem()
    mailbox.deliver(target, stem, good(stem))
    leave.put(f"{stem}.msg", lambda path: path.write_bytes(good(stem, "sender", to="target")))
    odd.append(Odd(f"{stem}.msg", "a name of the target's", ("conflict",)))
    wait_until(lambda: all((target.inbox / f"{s}.msg").exists() for s in stems))
    all_accounted(lambda: account(router, odd, sender.outbox, sender.refused))
    took_s = time.monotonic() - started
    assert len(stems) >= 20 and took_s < LIMIT_S, f"{took_s:.2f} s"
    assert sorted(os.listdir(target.inbox)) == sorted([*OURS, f"{stem}.msg", *(f"{s}.msg" for s in stems)])
    for box in (sender, other):
        wait_until(lambda box=box: not set(mailbox.outgoing(box)) & {f"{s}.msg" for s in stems})
    sent = [path.name for box in (sender, other) for path in box.outbox.glob(".sent/*/*.msg")]
    assert sorted(sent) == sorted(f"{s}.msg" for s in stems)
    assert len(notes(sender.refused)) == sum(bool(o.reasons) and not o.stays for o in odd)
    assert pid_of(router) == pid and log_records(router, "stopped") == []
    check_nothing_outside(world, before)
    check_shown_plainly(world, router)
    check_no_traceback(world)
    results.note("hostile mail, outbox", SEED, entries=len(odd), good_ones=len(stems), seconds=took_s, restarts=0)


@pytest.mark.parametrize("what", ["file", "link", "closed"])
def test_an_outbox_that_is_none_stops_no_other_mail(world: HostileWorld, what: str):
    broken, other, target = (world.agent(name, want="down") for name in ("broken", "other", "target"))
    shutil.rmtree(broken.outbox)
    elsewhere = world.root / "elsewhere"
    elsewhere.mkdir()
    stem = ids.message_stem(1, bytes(10))
    (elsewhere / f"{stem}.msg").write_bytes(good(stem, "broken", to="target"))
    if what == "file":
        broken.outbox.write_text("")
    elif what == "link":
        broken.outbox.symlink_to(elsewhere)
    else:
        broken.outbox.mkdir(mode=0)
    fine = ids.message_stem(2, bytes(10))
    mailbox.answer(other, fine, message.decode(good(fine, "other", to="target"), fine))
    world.supervise()
    router = world.home.agent("router")
    wait_until(lambda: (target.inbox / f"{fine}.msg").exists(), LONG_S)
    assert os.listdir(elsewhere) == [f"{stem}.msg"], "a link is no outbox"
    assert log_records(router, "stopped") == []
    check_no_traceback(world)


CONTROL_WRONG: list[tuple[str, Any, str]] = [
    *(("verb", value, "refused") for value in (None, 1, "", "stop", "pause\x1b[2J", [], {}, True, "PAUSE")),
    *(("args", value, "refused") for value in (1, "x", [], True)),
]


def test_the_control_directory_of_a_goal_full_of_them(world: HostileWorld):
    """Each file causes one event, refused or not; the goal goes on and ends as if nothing had been there."""
    gate = world.root / "gate"
    os.mkfifo(gate)
    model = world.root / "model.py"
    model.write_text(f"#!{sys.executable} -IS\nopen({str(gate)!r}).read()\nprint('no plan')\n")
    model.chmod(0o755)
    work = world.root / "work"
    work.mkdir()
    child = subprocess.Popen(
        [sys.executable, "-P", "-m", "loom", "run", "Do it.", "-w", work, "--model", f"exec/{model}"],
        env=world.env,
        cwd=world.root,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    name = wait_until(lambda: goals.names(world.home), LONG_S)[0]
    goal = world.home.goal(name)

    def events() -> list[Event]:
        return list(goals.events(world.home, goal))

    wait_until(lambda: any(e.type == "order.dispatched" and e.data["kind"] == "plan" for e in events()), LONG_S)
    router = world.home.agent("router")
    pid = pid_of(router)
    leave = leaver(world, goal.control, good=request, suffix=".json", wrong=CONTROL_WRONG, start_ms=START_MS)
    before = _stat(world.root / "canary")
    verbs: list[str] = []

    def a_good_one() -> None:
        if leave.draw.random() < 0.04:
            stem, verb = leave.stem(), ("pause", "resume")[len(verbs) % 2]
            leave.put(f"{stem}.json", lambda path: path.write_bytes(request(stem, verb)))
            verbs.append(stem)

    started = time.monotonic()
    odd = leave.some(COUNT, between=a_good_one)
    if len(verbs) % 2:
        stem = leave.stem()
        leave.put(f"{stem}.json", lambda path: path.write_bytes(request(stem, "resume")))
        verbs.append(stem)
    asked = {o.name.removesuffix(".json"): o for o in odd if ids.is_stem(o.name.removesuffix(".json"))}
    wait_until(lambda: {*asked, *verbs} <= {e.cause for e in events()}, LONG_S)
    took_s = time.monotonic() - started
    by_cause = [(e.cause, e.type) for e in events() if e.cause in asked or e.cause in verbs]
    assert len(by_cause) == len({cause for cause, _ in by_cause}), "a file caused two events"
    told = {r["name"] for r in log_records(router, "odd_entry")}
    for cause, type_ in by_cause:
        if cause in asked:
            assert type_ == "invariant.refused", (asked[cause], type_)
    assert {ascii(o.name)[1:-1] for o in odd if o.name.removesuffix(".json") not in asked} <= told
    left = {n for n in os.listdir(goal.control) if n != ".tmp"}
    assert all(n.removesuffix(".json") not in asked or (goal.control / n).is_dir() for n in left)
    assert pid_of(router) == pid and log_records(router, "goal_damaged") == []
    assert took_s < LIMIT_S, f"{took_s:.2f} s"
    check_nothing_outside(world, before)
    assert goals.is_live(world.home, name)
    end = world.loom("goal", "cancel", name)
    assert end.status == 0, end.err
    _, err = child.communicate(timeout=LONG_S)
    assert b"Traceback" not in err
    wait_until(lambda: goals.is_over(world.home, name), LONG_S)
    audit = world.loom("goal", "audit", name)
    assert audit.status == 0, audit
    check_no_traceback(world)
    results.note("hostile mail, control", SEED, entries=len(odd), good_ones=len(verbs), seconds=took_s, restarts=0)
    assert world.loom("supervisor", "stop").status == 0


def request(stem: str, verb: str = "pause") -> bytes:
    return json.dumps({"v": 1, "verb": verb, "by": "somebody", "args": {"why": "é\n"}}, separators=(",", ":")).encode()
