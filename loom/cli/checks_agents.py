"""The checks of `loom doctor` on agents and pipes: who hangs, who is dead or failing, whose mail nobody serves.

A problem is what does not get on until a person does something; what loom acts upon by itself is a note.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from typing import Literal

from loom.cli import agent_state
from loom.cli.agent_state import State
from loom.cli.check import Check
from loom.spool import agents, crashes, mailbox
from loom.spool.layout import AgentDir, Home
from loom.wire import hang
from loom.wire.errors import LoomError

MOST = 10  # lines; of those that are left only their number is told
_WHAT = "agents"
# What a runner has until it must be ready, and what may pass until its supervisor has looked at everybody.
_OVERDUE_S = 60.0 + 30.0


def check(home: Home) -> Iterator[Check]:
    """One line for each agent with which something is wrong, problems first; one for all when there is nothing."""
    hindrance = agent_state.Hindrance(home)
    count, found = 0, []
    for agent in agents.each(home):
        count += 1
        if told := _ailment(agent, agent_state.of(home, agent, hindrance), hindrance) or _failed(agent):
            found.append(told)
    found.sort(key=lambda one: one.status != "problem")
    yield from found[:MOST]
    if rest := found[MOST:]:
        yield Check(_WHAT, rest[0].status, f"{len(rest)} more with which something is wrong", "see: loom agent ps -a")
    if count and not found:
        yield Check(_WHAT, "ok", f"{count}; none hangs or is dead, and no mail failed or is not served")


def _ailment(agent: AgentDir, state: State, hindrance: agent_state.Hindrance) -> Check | None:
    name, mail = state.name, _mail(agent, state)
    if state.shape:
        status: Literal["note", "problem"] = "problem" if hang.SHAPES[state.shape].action == "gate" else "note"
        return Check(_WHAT, status, f"{name} hangs: {state.reason}", f"see: loom agent logs {name}")
    if state.alive:
        return None
    if state.status == "dead":
        why = str((crashes.newest(agent) or {}).get("last_error") or "")
        found = f"{name} is dead{_and(mail)}{f': {why:.200}' if why else ''}"
        return Check(_WHAT, "problem", found, f"when its fault is mended: loom agent restart {name}")
    if state.status == "error" or (state.status in ("restarting", "crashed") and hindrance.is_supervised()):
        why = _unreadable(agent) or state.reason or "it ends without a word"
        return Check(_WHAT, "problem", f"{name} fails{_and(mail)}: {why}", f"see: loom agent logs {name}")
    if state.status == "pending" and hindrance.is_supervised() and _is_overdue(agent, mail, hindrance.home):
        why = f": {state.reason}" if state.reason else ""
        found = f"{name} is wanted up, and nothing has started it for {_OVERDUE_S:g} s{_and(mail)}{why}"
        return Check(_WHAT, "problem", found, f"ask once more: loom agent restart {name}")
    if mail and (state.want == "down" or (state.status == "stopped" and hindrance.is_supervised())):
        return Check(_WHAT, "note", f"{name} is stopped{_and(mail)}", f"to serve it: loom agent restart {name}")
    if mail and not hindrance.is_supervised():
        return Check(_WHAT, "problem", f"{name}: no supervisor runs{_and(mail)}", "start one: loom supervisor run")
    return None


def _is_overdue(agent: AgentDir, mail: int, home: Home) -> bool:
    """Whether an agent without a process should have had one for long, and its supervisor the time to start it."""
    try:
        if agents.read_want(agent) != "up" or (agents.read_spec(agent).scale == "to-zero" and not mail):
            return False
        newest = max(os.stat(path).st_mtime for path in (agent.want, home.supervisor_lock))
        with contextlib.suppress(FileNotFoundError):
            newest = max(newest, os.stat(agent.status).st_mtime)
    except (LoomError, OSError):
        return False  # somebody is changing it
    return time.time() - newest > _OVERDUE_S


def _failed(agent: AgentDir) -> Check | None:
    """What failed stays until somebody looks at it: the newest says why."""
    try:
        failed = mailbox.failed(agent)
    except OSError:
        return None  # fsck says what has become of it
    if not failed:
        return None
    why = " ".join(str((mailbox.read_error(agent, failed[-1]) or {}).get("last_error", "")).split())
    count = f"{len(failed)} message{'s' if len(failed) > 1 else ''}"
    found = f"{count} of {agent.name} failed{f': {why:.200}' if why else ''}"
    return Check(_WHAT, "note", found, f"to try again: loom agent retry {agent.name}")


def _unreadable(agent: AgentDir) -> str:
    try:
        agents.read_spec(agent)
    except LoomError as error:
        return error.line()
    return ""


def _mail(agent: AgentDir, state: State) -> int:
    """Messages that it has not finished."""
    try:
        return state.waiting + len(mailbox.in_progress(agent))
    except (FileNotFoundError, NotADirectoryError):
        return state.waiting


def _and(mail: int) -> str:
    return f", and {mail} message{'s' if mail > 1 else ''} wait{'' if mail > 1 else 's'}" if mail else ""
