"""The router: moves mail, turns replies into events and events into messages, and executes nothing.

It looks at every outbox when it starts and every 30 s, and in between only where something changed
(docs/protocol.md sections 4 and 6, docs/goals.md section 1).
"""

from __future__ import annotations

import errno
import os
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from loom.core import routing
from loom.daemons import service
from loom.daemons.goalkeeping import Goal
from loom.daemons.router_sights import RouterSights
from loom.daemons.service import Agent
from loom.spool import agents, config, fs, goals, journal, mailbox, tally, wake
from loom.spool.layout import AgentDir
from loom.spool.locks import Incarnation
from loom.wire import agent as agent_wire
from loom.wire import exits, ids
from loom.wire import message as message_wire
from loom.wire.agent import AgentSpec
from loom.wire.errors import Config
from loom.wire.jsontext import Malformed, loads_object
from loom.wire.message import Message, Unreadable
from loom.wire.record import record

SWEEP_S = 30.0
SWEEP_EACH_S, HASTY_EACH_S = 0.2, 0.0025  # for each agent: a sweep costs some 70 microseconds of each
BATCH = 256  # messages whose delivery shares its syncs
# What the files of one goal can be the reason of: missing, something else under the name, not ours.
_OF_ONE_GOAL = frozenset(
    (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENXIO, errno.ESPIPE, errno.EACCES, errno.EPERM)
)
NO_TARGET = "no_target"
BY_ORDER = "by-order"  # pool agents have no model of their own: it comes with each order


def serve_router(agent_dir: Path, drain: bool = False) -> int:
    """The router of a home (runners/router)."""
    return service.serve_loop(agent_dir, Router, drain)


@record
class _Taken:
    """A message from an outbox, not yet delivered: `mail` are the messages it becomes, as (target, name, bytes).

    raw      its own bytes
    missing  why some of its targets cannot have it; empty when all can
    """

    box: AgentDir
    stem: str
    mail: list[tuple[AgentDir, str, bytes]]
    raw: bytes
    missing: str

    @property
    def targets(self) -> list[str]:
        return list(dict.fromkeys(box.name for box, _, _ in self.mail))


class Router:
    """One per home: it holds the lock of the agent `router`. `make_goal` lets a test give goals their clock."""

    def __init__(self, agent: Agent, me: Incarnation, make_goal: Callable[..., Goal] = Goal) -> None:
        self._make_goal = make_goal
        self.agent, self.home = agent, agent.home
        self.actor = {"agent": agent.dir.name, "pid": me.pid, "start": me.start}
        self.pools = self._make_pools()
        self.goals: dict[str, Goal] = {}
        self.broken: set[str] = set()
        self.bell = wake.listen(self.home.wake_fifo(agent.dir.name))
        self.alone = service.Alone()
        self.sights = RouterSights(self.home)
        self._changed: set[str] = set()  # agents whose outbox has changed
        self._asked: set[str] = set()  # goals in whose control/ something has arrived
        self._told: set[Path] = set()  # what was found odd in outboxes and among requests to goals
        self._taken: list[_Taken] = []
        self._boxes: dict[str, AgentDir] = {}  # of those to whom something was taken up
        self._next_sweep_s = 0.0
        self._blind = False  # it has been told that not everything can be watched
        self._known_routes: routing.Routes = {}
        self._routes_file = str(self.home.routes)
        self._routes_token = ""
        self._tally = tally.Tally(agent.dir)

    def close(self) -> None:
        for goal in self.goals.values():
            goal.close()
        os.close(self.bell)
        self.sights.watch.close()

    def recover(self) -> None:
        """Everything is looked at once."""
        fs.hint(self.agent.dir.status, "idle")
        self.sweep()

    def run(self, drain: bool) -> int:
        while True:
            self.agent.stopping.check()
            wake.drain(self.bell)
            if self.goals or not drain:  # a draining router stays for its goals: others are at work on them
                self._wait()
            self.agent.stopping.check()
            self.sweep()
            if drain and not self.goals:
                return exits.DONE

    def _wait(self) -> None:
        limit = max(0.0, self._next_sweep_s - time.monotonic())
        self.alone.wait(self.agent.stopping, min(limit, self._next_deadline_s()), [self.bell, *self.sights.watch.fds])
        wake.drain(self.bell)
        news = self.sights.read()
        if news.everywhere:
            self._next_sweep_s = 0.0
        self._changed |= news.outboxes
        self._asked |= news.goals  # those that live are looked at always

    def _next_deadline_s(self) -> float:
        now_us = time.time_ns() // 1000
        due = [o.deadline_us - now_us for goal in self.goals.values() for o in goal.state.open_orders()]
        return max(0.0, min(due, default=SWEEP_S * 1e6) / 1e6 + 0.01)

    # -- one round ----------------------------------------------------------------------------------------------

    def sweep(self) -> None:
        """Route what is in the outboxes, take up goals, carry out what follows."""
        full = not self.sights.watch.complete or time.monotonic() >= self._next_sweep_s
        if full:
            self.sights.watch_agents()  # before the look, so that nothing arrives unseen between the two
            if self.sights.watch.why and not self._blind:
                self._blind = True
                self.agent.log.warning("blind", error=self.sights.watch.why)
            self.broken.clear()  # a person may have mended them meanwhile
        self._open_goals(full)
        outboxes = self._outboxes(full)
        for name in outboxes:
            self._route_outbox(self.home.agent(name))
        if full:
            self._next_sweep_s = time.monotonic() + self._sweep_s(len(outboxes))
        self._deliver()
        self._tally.write()
        for name, goal in list(self.goals.items()):
            for odd in goals.odd_controls(goal.dir):
                self._tell_once("odd_entry", goal.dir.control / odd, goal=name)
            try:
                goal.take_controls()
                goal.advance(self._free)
            except Exception as error:
                self._set_aside(name, error)
                continue
            if goal.state.resting:
                goal.close()
                del self.goals[name]
                self.agent.log.info("goal_rests", goal=name, status=goal.state.status, reason=goal.state.reason)

    def _sweep_s(self, count: int) -> float:
        """How long until all are looked at again: the longer, the more there are, as with the supervisor."""
        if self.sights.watch.complete:
            return max(SWEEP_S, SWEEP_EACH_S * count)
        return max(service.LOOK_EVERY_S, HASTY_EACH_S * count)

    def _outboxes(self, full: bool) -> list[str]:
        changed, self._changed = self._changed, set()
        if full:
            return agents.names(self.home)
        # Those of the pools are few and looked at always: a report may have been left until its goal could be opened.
        return sorted(changed | {name for names in self.pools.values() for name in names})

    def _open_goals(self, full: bool) -> None:
        if full:
            self._asked.update(goals.names(self.home))
            self.sights.watch_goals(self._asked)  # before the look, as above
        self._call_back(sorted(self._asked))
        self._asked.clear()
        for name in goals.live(self.home):
            if name in self.goals or name in self.broken:
                continue
            try:
                self.goals[name] = self._make_goal(self.home, self.home.goal(name), self.actor)
                self.agent.log.info("goal_opened", goal=name, seq=self.goals[name].state.seq)
            except journal.JournalBusy as error:
                self.agent.log.error("goal_busy", goal=name, error=str(error))
                continue
            except Exception as error:
                self._set_aside(name, error)
                continue
            self.sights.watch_goals([name])

    def _call_back(self, names: Sequence[str]) -> None:
        """Goals that have ended and are asked for something all the same: their marker would hide them."""
        for name in names:
            if goals.is_over(self.home, name) and goals.controls(self.home.goal(name)):
                fs.remove(goals.rest_marker(self.home.goal(name)))

    def _set_aside(self, name: str, error: Exception) -> None:
        """One goal that is damaged does not stop the others; it is tried again with the next look everywhere.

        Raises the error when it is none of this goal: no space, no descriptors, an I/O error.
        """
        if isinstance(error, OSError) and error.errno not in _OF_ONE_GOAL:
            raise error
        goal = self.goals.pop(name, None)
        if goal is not None:
            goal.close()
        self.broken.add(name)
        trace = "".join(traceback.format_exception(error))
        self.agent.log.error("goal_damaged", goal=name, error=str(error) or type(error).__name__, traceback=trace)

    def _free(self) -> Mapping[str, Sequence[str]]:
        """Pool agents without an order of any goal, by role."""
        busy = {o.agent for goal in self.goals.values() for o in goal.state.open_orders()}
        return {role: [n for n in names if n not in busy] for role, names in self.pools.items()}

    # -- mail ---------------------------------------------------------------------------------------------------

    def _route_outbox(self, box: AgentDir) -> None:
        """What its agent has done to an outbox, or left in it, holds up the mail of no other agent."""
        odd: set[str] = set()
        try:
            names = mailbox.outgoing(box, odd)
        except FileNotFoundError:
            return
        except (NotADirectoryError, PermissionError) as error:
            self._tell_once("no_outbox", box.outbox, outbox=box.name, error=error.strerror)
            return
        for name in odd:
            self._tell_once("odd_entry", box.outbox / name, outbox=box.name)
        for name in names:
            try:
                self._route(box, name)
            except mailbox.Unmovable as error:
                self._tell_once("unmovable", box.outbox / name, outbox=box.name, error=error.strerror)

    def _tell_once(self, event: str, path: Path, **fields: object) -> None:
        """What lies where it does not belong stays there, and is told once."""
        if path not in self._told:
            self._told.add(path)
            self.agent.log.warning(event, name=ascii(path.name)[1:-1], **fields)

    def _route(self, box: AgentDir, name: str) -> None:
        stem = ids.stem_of(name)
        try:
            if stem is None:
                raise Unreadable("bad_name", f"{name!a} is not <13 digits>-<ulid>.msg")
            raw = mailbox.read_message(box.outbox_file(name))
            message = message_wire.decode(raw, stem)
            if message.from_ != box.name:
                raise Unreadable("wrong_sender", f"'from' is {ascii(message.from_)[:80]}, the outbox is {box.name}'s")
        except FileNotFoundError:
            return
        except Unreadable as error:
            mailbox.refuse(box, name, error.reason, str(error))
            self.agent.log.error("refused", name=ascii(name)[1:-1], outbox=box.name, reason=error.reason)
            return
        if message.kind and message.to == self.agent.dir.name:
            self._report(box, stem, message)
        else:
            self._forward(box, stem, message, raw)

    def _report(self, box: AgentDir, stem: str, message: Message) -> None:
        goal = self.goals.get(message.goal)
        if goal is None:
            if message.goal in self.broken or goals.is_live(self.home, message.goal):
                return  # damaged or held by another process: kept until the goal can be opened
            self.agent.log.warning("stale_reply", reply=stem, goal=message.goal, hint="the goal has ended")
            mailbox.mark_sent(box, stem)
            return
        goal.report(box.name, stem, message, lambda: mailbox.mark_sent(box, stem))

    def _forward(self, box: AgentDir, stem: str, message: Message, raw: bytes) -> None:
        """Take a message up for delivery: to each target under the same name, part by part.

        A target that is not there takes nothing from the others; a message without any that is there is refused.
        """
        mail: list[tuple[AgentDir, str, bytes]] = []
        missing: dict[str, None] = {}
        try:
            messages = [(stem, message, raw)]
            if message.parts is not None:
                parts = message_wire.split_parts(stem, message)
                messages = [(name, part, message_wire.encode(part)) for name, part in parts]
            for name, one, data in messages:
                for to in self._targets(one):
                    if (target := self._box_of(to)) is None:
                        missing[f"there is no agent {ascii(to)[:80]}"] = None
                    else:
                        mail.append((target, name, data))
            if missing and not mail:
                raise Unreadable(NO_TARGET, "; ".join(missing))
        except Unreadable as error:
            self._refuse(box, stem, error)
            return
        self._taken.append(_Taken(box, stem, mail, raw, "; ".join(missing)))
        if len(self._taken) >= BATCH:
            self._deliver()

    def _box_of(self, target: str) -> AgentDir | None:
        """Where its mail goes; looked up once a delivery. None when there is no such agent."""
        box = self._boxes.get(target)
        if box is None:
            if not ids.is_mailbox(target) or not self.home.agent(target).spec.exists():
                return None
            box = self._boxes[target] = self.home.agent(target)
        return box

    def _deliver(self) -> None:
        """Deliver what was taken up, with shared syncs, and mark it as sent. A conflict holds up nothing else."""
        taken, self._taken, self._boxes = self._taken, [], {}
        try:
            mailbox.deliver_many([item for one in taken for item in one.mail])
            sent = taken
        except mailbox.Conflict:
            sent = [one for one in taken if self._delivers_alone(one)]
        told = []
        for one in sent:
            if one.missing:  # after the delivery and before it counts as sent: a crash repeats both
                self._refuse_in_part(one)
            self._unless_unmovable(one, lambda one=one: mailbox.mark_sent(one.box, one.stem))  # type: ignore[misc]
            for target in one.targets:
                told.append({"message": one.stem, "source": one.box.name, "target": target})
                self._tally.count(one.box.name, target)
        self.agent.log.write("info", "routed", *told)
        for target in dict.fromkeys(line["target"] for line in told):
            wake.ring_agent(self.home.wake, target)

    def _delivers_alone(self, one: _Taken) -> bool:
        """Deliver one message; False when it had to be refused."""
        try:
            mailbox.deliver_many(one.mail)
        except mailbox.Conflict as error:
            why = Unreadable("conflict", str(error))
            self._unless_unmovable(one, lambda: self._refuse(one.box, one.stem, why))
            return False
        return True

    def _unless_unmovable(self, one: _Taken, move: Callable[[], None]) -> None:
        try:
            move()
        except mailbox.Unmovable as error:
            path = one.box.outbox / f"{one.stem}.msg"
            self._tell_once("unmovable", path, outbox=one.box.name, error=error.strerror)

    def _refuse(self, box: AgentDir, stem: str, error: Unreadable) -> None:
        mailbox.refuse(box, f"{stem}.msg", error.reason, str(error))
        self.agent.log.error("refused", message=stem, outbox=box.name, reason=error.reason, error=str(error))

    def _refuse_in_part(self, one: _Taken) -> None:
        mailbox.refuse_in_part(one.box, one.stem, one.raw, NO_TARGET, one.missing)
        told = {"message": one.stem, "outbox": one.box.name, "reason": NO_TARGET, "error": one.missing}
        self.agent.log.error("refused_in_part", **told)

    def _targets(self, message: Message) -> list[str]:
        """Who gets it; not `user`, who reads the outbox."""
        return [target for target in routing.targets(self._routes(), message) if target != "user"]

    def _routes(self) -> routing.Routes:
        """routes.json as it is now. Raises Config when it cannot be followed."""
        try:
            token = fs.token(self._routes_file)
            if token != self._routes_token:
                raw = loads_object(fs.read(self._routes_file, 16 << 20))
                self._known_routes, self._routes_token = routing.decode(raw, self._routes_file), token
            return self._known_routes
        except FileNotFoundError:
            return {}
        except (Malformed, fs.NotRegular, fs.TooLarge, Config) as error:
            self.agent.log.error("routes_unreadable", error=str(error))
            raise Config(f"{self._routes_file}: {error}") from None

    # -- pools --------------------------------------------------------------------------------------------------

    def _make_pools(self) -> dict[str, list[str]]:
        """The shared agents of each role: made when missing, started by the supervisor when they have mail."""
        settings = config.load(self.home, {})
        pools: dict[str, list[str]] = {}
        for role in ids.POOL_ROLES:
            pools[role] = [f"{role}-{n}" for n in range(1, settings[f"pools.{role}"] + 1)]
            for name in pools[role]:
                spec = AgentSpec(name=name, model=BY_ORDER, runner=role, idle_s=float(settings["pools.idle"]))
                self._make_agent(spec)
        return pools

    def _make_agent(self, spec: AgentSpec) -> None:
        directory = self.home.agent(spec.name)
        try:
            same = fs.read(directory.spec) == agent_wire.encode(spec)
        except (FileNotFoundError, fs.NotRegular):
            same = False
        if not same or agents.read_want(directory) != "demand":
            agents.create(self.home, spec, "", "demand")
