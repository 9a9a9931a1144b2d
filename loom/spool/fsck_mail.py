"""fsck of one agent's directory: its files, its mailbox, its turns and conversations (docs/protocol.md section 4).

Everything that looks at what moves is done under the agent's lock, or not at all: an agent that is served is skipped.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from loom.core.fsck import LIFE, SENDING, surplus
from loom.spool import agents, blobs, bodies, fs, locks, mailbox, ndjson, threads
from loom.spool.findings import Check, Finding, Findings, person
from loom.spool.fs import TMP
from loom.spool.fsck_records import check_conversations, check_turns
from loom.spool.layout import ERROR_SUFFIX, AgentDir
from loom.wire import ids, message
from loom.wire.errors import BadInput, LoomError
from loom.wire.jsontext import Malformed, loads_object
from loom.wire.message import MAX_ATTEMPTS, Message, Unreadable
from loom.wire.times import day_of, rfc3339

_FILES = frozenset(
    ("agent.json", "prompt.md", "want", "status", "pid", "model", "started_at", "stopped_at", "last_exit", "lock",
     "heartbeat", "why", "routed.json")
)  # fmt: skip
_DIRECTORIES = frozenset(
    ("inbox", "outbox", "turns", "conversations", "memory", "skills", "tools", "logs", "crashes", "state", "steps", TMP)
)
_PLAIN = ("inbox", "outbox", "turns", "conversations", "logs", "crashes")
_DAY = re.compile(r"\d{4}-\d\d-\d\d")
_KNOWN_LINES = 50  # as far back as the runner looks


def check_agent(check: Check, agent: AgentDir) -> Findings:
    """Everything below `agents/<name>/`."""
    yield from _entries(check, agent)
    if not agent.spec.exists():
        if agents.has_mail(agent):
            yield person(agent.path, "there is mail and no agent.json", _made_anew(agent.name))
        return
    try:
        agents.read_spec(agent)
    except LoomError as error:
        yield person(agent.spec, str(error), error.hint or f"mend it, or {_made_anew(agent.name, ' --replace')}")
    yield from _set_aside(agent.unreadable, "unreadable", "read it; mend it and move it back, or remove both files")
    yield from _set_aside(agent.refused, "refused", "read it; remove both files when it is not needed")
    with _held(check, agent.lock) as free:
        if not free:
            yield Finding(agent.path, "is served: its mailbox was not looked into", "busy", "stop it for a full check")
            return
        yield from _directories(check, agent)
        yield from _signs_of_life(check, agent)
        yield from _inbox(check, agent)
        yield from _failed(check, agent)
        yield from _processed(check, agent)
        yield from check_turns(check, agent)
    yield from _outbox(check, agent)
    yield from check_conversations(check, agent)


def _made_anew(name: str, option: str = "") -> str:
    """How an agent, or an instance of a pipe, of this name comes to a new agent.json."""
    if ids.is_instance(name):
        pipe, source, to = ids.parts_of_instance(name)
        ends = f"{source} --to {to} --pipe {pipe}"
        return f"make it anew: loom up, or: loom unroute {ends} && loom route {ends}"
    if ids.is_reserved(name):
        return "start the supervisor anew: it makes loom's own processes"
    return f"make the agent: loom agent start {name} --detach{option} --model M"


@contextmanager
def _held(check: Check, path: Path) -> Iterator[bool]:
    """Whether nobody else has this lock. It is taken when something may be mended, and only asked for otherwise."""
    if not check.repair or not path.parent.is_dir():
        yield not locks.is_held(path)
        return
    lock = locks.acquire(path)
    try:
        yield lock is not None
    finally:
        if lock is not None:
            lock.release()


def _entries(check: Check, agent: AgentDir) -> Findings:
    """What lies in the directory and is none of ours; links and special files among what is."""
    for name in fs.names(agent.path):
        path = agent.path / name
        kind = _kind(path)
        if name in _FILES:
            if kind != "file":
                yield person(path, f"is no regular file but a {kind}")
        elif name not in _DIRECTORIES:
            yield person(path, "is no file of loom's", "move it away, or leave it: loom does not touch it")
        elif kind != "directory":
            yield person(path, f"is no directory but a {kind}")
        elif name in _PLAIN:
            yield from _special(check, path)


def _special(check: Check, directory: Path) -> Findings:
    if check.is_too_deep(directory):
        return  # told where modes are
    for name in fs.names(directory):
        path = directory / name
        kind = _kind(path)
        if kind == "directory":
            yield from _special(check, path)
        elif kind not in ("file", "") and directory.name not in (".unreadable", ".refused"):
            yield person(path, f"is no regular file but a {kind}")


def _kind(path: Path) -> str:
    """What lies there; empty when nothing does any more."""
    try:
        mode = os.lstat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return ""
    if stat.S_ISREG(mode):
        return "file"
    if stat.S_ISDIR(mode):
        return "directory"
    if stat.S_ISLNK(mode):
        return "link"
    return "fifo" if stat.S_ISFIFO(mode) else "socket" if stat.S_ISSOCK(mode) else "device"


def _set_aside(directory: Path, what: str, todo: str) -> Findings:
    for name in fs.names(directory):
        if name == TMP:
            continue
        path = directory / name
        if not name.endswith(ERROR_SUFFIX):
            yield person(path, f"{what}: {_reason(path.with_name(name + ERROR_SUFFIX))}", todo)
        elif not os.path.lexists(directory / name.removesuffix(ERROR_SUFFIX)):
            yield person(path, "the reason for an entry that is not there", "remove it")


def _reason(path: Path) -> str:
    try:
        record = loads_object(fs.read(path, message.MAX_BYTES))
    except (OSError, Malformed, fs.NotRegular, fs.TooLarge):
        return "no reason is kept"
    return f"{record.get('reason')}: {record.get('detail')}"


def _directories(check: Check, agent: AgentDir) -> Findings:
    for directory in agent.directories():
        if (kind := _kind(directory)) not in ("directory", ""):
            yield person(directory, f"is no directory but a {kind}", "move it away")
        elif not kind:
            yield check.mend(directory, "is missing", "made", partial(fs.ensure_dir, directory))


def _signs_of_life(check: Check, agent: AgentDir) -> Findings:
    """`pid` and `status` of a process that is gone: for people only, and wrong."""
    if agent.pid.exists():
        yield check.mend(agent.pid, "names a process that does not serve this agent", "removed",
                         lambda: fs.remove(agent.pid))  # fmt: skip
    if agents.read_hint(agent.status) == "running":
        yield check.mend(agent.status, "says running, and nobody serves this agent", "removed",
                         lambda: fs.remove(agent.status))  # fmt: skip


# -- mail --------------------------------------------------------------------------------------------------------


def _inbox(check: Check, agent: AgentDir) -> Findings:
    ours = {directory.name for directory in agent.directories()}
    for name in fs.names(agent.inbox):
        path, stem = agent.inbox / name, ids.stem_of(name)
        if name in ours:
            continue
        if not name.endswith(".msg") or name.startswith("."):
            yield person(path, "its name does not end in .msg: no runner takes it", "rename it or move it away")
        elif stem is None:
            yield person(path, "its name is not <13 digits>-<ulid>.msg", "its runner will set it aside")
        elif doubled := _doubled(check, agent, stem, "inbox", LIFE):
            yield doubled
        else:
            yield from _content(check, path, stem, "its runner will set it aside")
    for name in fs.names(agent.in_progress):
        path, stem = agent.in_progress / name, ids.stem_of(name)
        if stem is not None and (doubled := _doubled(check, agent, stem, "in-progress", LIFE)):
            yield doubled
        elif name.endswith(".msg"):
            yield from _claimed(check, agent, path, stem)
        else:
            yield person(path, "its name does not end in .msg: no runner takes it", "rename it or move it away")


def _place(box: AgentDir, where: str, stem: str) -> Path:
    name = f"{stem}.msg"
    places = {"inbox": box.inbox, "in-progress": box.in_progress, "failed": box.failed, "outbox": box.outbox}
    if where in places:
        return places[where] / name
    return box.processed(stem) if where == "processed" else box.sent(stem)


def _doubled(check: Check, agent: AgentDir, stem: str, here: str, life: Sequence[str]) -> Finding | None:
    """A message that stands in more than one place, told where it stands first; None for one that does not."""
    found = [where for where in life if os.path.lexists(_place(agent, where, stem))]
    if len(found) < 2 or found[0] != here:
        return None
    path, last = _place(agent, here, stem), _place(agent, found[-1], stem)
    where = " and in ".join(found)
    try:
        if not all(fs.same_bytes(_place(agent, other, stem), last) for other in found[:-1]):
            return person(path, f"two different messages of this name stand in {where}", "keep one of them")
    except FileNotFoundError:
        return None

    def act() -> None:
        fs.settle(last)
        for other in surplus(found, life):
            fs.remove(_place(agent, other, stem))

    return check.mend(path, f"stands in {where}: a move was not finished", f"the one in {found[-1]} is kept", act)


def _content(check: Check, path: Path, stem: str, todo: str) -> Findings:
    """A message that cannot be read, or whose body is lost."""
    try:
        found = message.decode(mailbox.read_message(path), stem)
    except FileNotFoundError:
        return
    except Unreadable as error:
        yield person(path, f"cannot be read: {error.reason}: {error}", todo)
        return
    digest = (found.data or {}).get(bodies.FIELD)
    if isinstance(digest, str) and not blobs.is_there(check.home.blobs, digest):
        yield person(path, f"the blob of its body is missing: {digest[:64]}", "it will fail; have it sent again")
    if not found.kind:  # a typed request has a payload of its own
        try:
            bodies.images(check.home.blobs, found)
        except BadInput as error:
            yield person(path, str(error), "it will fail; have it sent again")


def _take_aside(agent: AgentDir, path: Path) -> None:
    if mailbox.take(agent, path.name) == "unmovable":
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM), str(path))


def _claimed(check: Check, agent: AgentDir, path: Path, stem: str | None) -> Findings:
    """A message in progress that nobody works on: resumed by the next runner, or finished here when only that lacks."""
    try:
        if stem is None:
            raise Unreadable("bad_name", "its name is not <13 digits>-<ulid>.msg")
        found = message.decode(mailbox.read_message(path), stem)
    except FileNotFoundError:
        return
    except Unreadable as error:
        what = f"is in progress and cannot be read: {error.reason}"
        yield check.mend(path, what, "set aside in .unreadable/", lambda: _take_aside(agent, path))
        return
    attempt = mailbox.attempts(agent, stem)
    todo, reply = mailbox.look(agent, agent.name, stem, attempt)
    if todo == "fail":
        assert reply is not None
        yield check.mend(path, "its failure was answered and not filed", "moved to .failed/",
                         lambda: _file_failure(check, agent, stem, attempt, reply))  # fmt: skip
    elif todo == "acknowledge":
        thread = threads.name_of(found)
        if reply is None or not thread or _is_said(agent, thread, stem):
            yield check.mend(path, "is answered and was not moved", "moved to .processed/",
                             lambda: mailbox.acknowledge(agent, stem))  # fmt: skip
        else:
            yield Finding(path, "is answered, and its conversation does not say so yet", "waits", "its runner ends it")


def _is_said(agent: AgentDir, thread: str, stem: str) -> bool:
    tail = ndjson.read_objects(agent.conversation(thread))[-_KNOWN_LINES:]
    return {"user", "assistant"} <= {str(line.get("role")) for line in tail if line.get("name") == stem}


def _file_failure(check: Check, agent: AgentDir, stem: str, attempt: int, reply: Message | None) -> None:
    """As the runner would have: move the message, when it is not there yet, and write the record of its failure."""
    data = (reply.data if reply is not None else None) or {}
    record = {
        "error_type": str(data.get("error_type", "unknown")),
        "last_error": reply.body if reply is not None else "the record of the failure was lost",
        "hint": str(data.get("hint", "")),
        "ts": rfc3339(int(check.now_s * 1_000_000)),
    }
    if os.path.lexists(agent.failed / f"{stem}.msg"):
        mailbox.write_error(agent, stem, attempt, **record)
    else:
        mailbox.fail(agent, stem, attempt, **record)


def _last_failure(agent: AgentDir, stem: str) -> tuple[int, Message | None]:
    """The last attempt whose failure was answered and not recorded, with that answer; else the present one and None."""
    present = mailbox.attempts(agent, stem)
    last, reply = present, None
    for attempt in range(present, MAX_ATTEMPTS):
        todo, found = mailbox.look(agent, agent.name, stem, attempt)
        if todo == "fail":
            last, reply = attempt, found
    return last, reply


def _failed(check: Check, agent: AgentDir) -> Findings:
    for name in fs.names(agent.failed):
        path = agent.failed / name
        if name == TMP:
            continue
        if name.endswith(f".msg{ERROR_SUFFIX}") and (stem := ids.stem_of(name.removesuffix(ERROR_SUFFIX))):
            if mailbox.find(agent, stem) is None:
                yield person(path, "the record of a failure without its message", "gc takes it away in time")
            elif mailbox.read_error(agent, stem) is None and path.exists() and _last_failure(agent, stem)[1] is None:
                # Else the answer tells of the failure: the record is written anew, see below.
                yield person(path, "cannot be read", "remove it, or the message fails again before it is tried")
        elif stem := ids.stem_of(name):
            if doubled := _doubled(check, agent, stem, "failed", LIFE):
                yield doubled
                continue
            yield from _content(check, path, stem, "remove it, or mend it")
            attempt, reply = _last_failure(agent, stem)
            if reply is not None or not os.path.lexists(agent.error_of(stem)):
                act = partial(_file_failure, check, agent, stem, attempt, reply)
                yield check.mend(path, "the record of its failure is missing", "written", act)
        else:
            yield person(path, "is no message and no record of one", "move it away")


def _processed(check: Check, agent: AgentDir) -> Findings:
    yield from _finished(check, agent.processed_days)
    yield from _finished(check, agent.sent_days)


def _finished(check: Check, shards: Path) -> Findings:
    for day in fs.names(shards):
        if not (shards / day).is_dir() or not _DAY.fullmatch(day):
            yield person(shards / day, "is no directory of a day", "move it away")
            continue
        for name in fs.names(shards / day):
            path, stem = shards / day / name, ids.stem_of(name)
            if stem is None:
                yield person(path, "is no message", "move it away")
            elif day_of(ids.time_of(stem)) != day:
                right = day_of(ids.time_of(stem))
                yield person(path, f"lies in the wrong day: nobody finds it here; its name says {right}", "move it")
            else:
                yield from _content(check, path, stem, "remove it when it is not needed")


def _outbox(check: Check, agent: AgentDir) -> Findings:
    for name in fs.names(agent.outbox):
        path, stem = agent.outbox / name, ids.stem_of(name)
        if name in (TMP, agent.sent_days.name, agent.refused.name):
            continue
        if stem is None:
            yield person(path, "is no message: its name is not <13 digits>-<ulid>.msg", "move it away")
            continue
        with _held(check, check.home.agent("router").lock) as free:
            doubled = _doubled(check, agent, stem, "outbox", SENDING) if free else None
        if doubled:
            yield doubled
            continue
        try:
            reply = message.decode(mailbox.read_message(path), stem)
        except FileNotFoundError:
            continue
        except Unreadable as error:
            yield person(path, f"cannot be read: {error.reason}: {error}", "the router will refuse it")
            continue
        if reply.from_ != agent.name:
            yield person(
                path, f"comes from {ascii(reply.from_)[:80]}, not from {agent.name}", "the router will refuse it"
            )
        request = reply.origin.rpartition("/")[2]
        if _answers(agent, request, stem) and mailbox.find(agent, request) is None:
            yield person(path, f"the message it answers, {request}, is not here", "it will be routed all the same")


def _answers(agent: AgentDir, request: str, stem: str) -> bool:
    return ids.is_stem(request) and any(ids.reply_stem(agent.name, request, n) == stem for n in range(MAX_ATTEMPTS))
