"""One goal in the router's hands: events appended, decisions carried out (docs/goals.md section 1, ADR-0012).

Three rules make every effect happen exactly once: a file causes one event and is removed only after that event is
synced; an order is an event before it is a message, and is published again under the same name with the same bytes;
what trees become is an event before it is done. Nothing here decides: loom.core.goal does.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from loom.core.goal import check as checking
from loom.core.goal import decide as deciding
from loom.core.goal import reduce as reducing
from loom.core.goal import state as states
from loom.core.goal.decisions import Dispatch, Propose
from loom.core.goal.state import GoalState, OrderState
from loom.spool import blobs, fs, goals, mailbox, wake
from loom.spool.journal import Journal
from loom.spool.layout import GoalDir, Home
from loom.wire import goal as goal_wire
from loom.wire import ids
from loom.wire import message as message_wire
from loom.wire import order as order_wire
from loom.wire.event import Event
from loom.wire.jsontext import Malformed, dumps, loads_object
from loom.wire.message import MAX_ATTEMPTS, Message

SNAPSHOT_EVERY = 200
GRACE_S = 60.0  # beyond a message's own deadline: its runner reports that by itself
MAX_ROUNDS = 10_000
_CONTROL_EVENTS = {
    "pause": "goal.paused",
    "resume": "goal.resumed",
    "cancel": "goal.cancelled",
    "land": "goal.landing",
}

Actor = Mapping[str, Any]
Free = Callable[[], Mapping[str, Sequence[str]]]


class Goal:
    """The writer of one goal's journal. Opening it folds the journal and publishes unreported orders again.

    clock_ns and draw (so many random bytes) are arguments so that a test can repeat a run to the byte.
    """

    def __init__(
        self,
        home: Home,
        directory: GoalDir,
        actor: Actor,
        clock_ns: Callable[[], int] = time.time_ns,
        draw: Callable[[int], bytes] = os.urandom,
    ) -> None:
        self.home, self.dir, self.actor = home, directory, actor
        self._clock_ns, self._draw = clock_ns, draw
        self.journal = Journal(directory.journal, home.blobs, home.head(directory.id))
        self._effects: list[Callable[[], None]] = []
        try:
            self.state = self._load()
            if self.journal.torn_bytes:
                self._propose("journal.mended", {"torn_bytes": self.journal.torn_bytes})
            self._saved = self.state.seq
            self.commit()
            for order in self.state.open_orders():
                if not self.state.ended or order.kind == "land":  # nobody waits for the others any longer
                    self._deliver(order)
        except BaseException:
            self.journal.close()
            raise

    def _load(self) -> GoalState:
        head = (self.journal.seq, self.journal.hash)
        if not head[0]:
            goals.settle(self.home)
            spec = goal_wire.to_json(goals.read_spec(self.dir))
            return reducing.first(self.journal.stage("goal.created", self.actor, "goal.md", {"goal": spec}))
        raw = goals.load_snapshot(self.dir, states.REDUCER_VERSION, head)
        state: GoalState | None = None
        if raw is not None:
            try:
                state = states.from_json(raw)
            except (KeyError, TypeError, ValueError):
                state = None
        return reducing.fold(goals.events(self.home, self.dir, state.seq if state else 0), state)

    # -- what comes in ------------------------------------------------------------------------------------------

    def report(self, agent: str, stem: str, message: Message, done: Callable[[], None]) -> None:
        """A reply to one of our orders. `done` is called once its event is durable."""
        if stem not in self.state.causes:
            order = self._order_of(agent, stem, message)
            if order is None or order.reported:
                self._propose("reply.stale", {"agent": agent, "reply": stem}, cause=stem, asked=True)
            else:
                by = _actor(agent, message)
                self._propose("order.reported", _report(order, message), cause=stem, asked=True, actor=by)
        self._effects.append(done)

    def _order_of(self, agent: str, stem: str, message: Message) -> OrderState | None:
        """The order this is the answer to: agent and derived name must match what the journal says."""
        request = message.origin.rpartition("/")[2]
        order = self.state.orders.get(request)
        if order is None or order.agent != agent or not ids.is_stem(request):
            return None
        return order if any(ids.reply_stem(agent, request, n) == stem for n in range(MAX_ATTEMPTS)) else None

    def take_controls(self) -> None:
        """Journal what was dropped into control/; each file causes one event, also when it is refused."""
        for name in goals.controls(self.dir):
            cause = name.removesuffix(".json")
            path = self.dir.control / name
            if cause not in self.state.causes:
                try:
                    raw = goals.read_control(self.dir, name)
                except FileNotFoundError:
                    continue
                except Malformed as error:
                    self._refuse("control", [str(error)], cause=cause, asked=True)
                else:
                    data = {**raw.get("args", {}), "by": str(raw.get("by", ""))}
                    self._propose(_CONTROL_EVENTS[raw["verb"]], data, cause=cause, asked=True)
            self._effects.append(lambda path=path: _remove(path))  # type: ignore[misc]

    # -- what follows -------------------------------------------------------------------------------------------

    def advance(self, free: Free) -> None:
        """Decide and carry out until there is nothing to decide; then everything is durable and has taken effect."""
        for _ in range(MAX_ROUNDS):
            decisions = deciding.decide(self.state, self._clock_ns() // 1000, free())
            if not decisions:
                break
            for decision in decisions:
                if isinstance(decision, Propose):
                    self._propose(decision.type, decision.data)
                else:
                    self._dispatch(decision)
        else:
            raise RuntimeError(f"goal {self.dir.id} does not come to rest after {MAX_ROUNDS} rounds")
        self.commit()
        if self.state.seq - self._saved >= SNAPSHOT_EVERY or self.state.resting:
            self.save()

    def commit(self) -> None:
        """Sync what was appended, then let it take effect."""
        self.journal.sync()
        effects, self._effects = self._effects, []
        for effect in effects:
            effect()

    def save(self) -> None:
        """Write the snapshot and the plan for people; once nothing more will happen, the marker that says so."""
        head = (self.journal.seq, self.journal.hash)
        goals.save_snapshot(self.dir, states.REDUCER_VERSION, states.to_json(self.state), head)
        self._saved = self.state.seq
        if self.state.resting:
            self.journal.note_head()
            fs.hint(goals.rest_marker(self.dir), self.state.status)
            if self._new_controls():  # dropped after we had looked: the marker would hide it
                fs.remove(goals.rest_marker(self.dir))

    def _new_controls(self) -> bool:
        """Whether something is asked that was not journaled yet; what could not be taken away is no news."""
        return any(name.removesuffix(".json") not in self.state.causes for name in goals.controls(self.dir))

    def close(self) -> None:
        self.journal.close()

    def _propose(
        self, type_: str, data: Mapping[str, Any], cause: str = "", asked: bool = False, actor: Actor | None = None
    ) -> bool:
        """Append an event unless an invariant refuses it: the only way into the journal after goal.created.

        asked  somebody outside proposed it; a refusal then changes nothing but is journaled
        """
        reasons = checking.check(self.state, type_, data)
        if reasons:
            self._refuse(type_, reasons, cause=cause, asked=asked, subtask=data.get("subtask", ""))
            return False
        self._append(type_, data, cause, actor)
        return True

    def _refuse(self, type_: str, reasons: list[str], cause: str = "", asked: bool = False, subtask: str = "") -> None:
        refusal = {"type": type_, "reasons": reasons, "asked": asked, "subtask": subtask}
        self._append("invariant.refused", refusal, cause)

    def _append(self, type_: str, data: Mapping[str, Any], cause: str = "", actor: Actor | None = None) -> None:
        cause = cause or f"seq:{self.state.seq}"
        event = self.journal.stage(type_, self.actor if actor is None else actor, cause, data)
        self.state = reducing.reduce(self.state, event)
        self._effects.append(lambda: self._show(event))

    def _dispatch(self, decision: Dispatch) -> None:
        """An order is an event first: the message's bytes are a blob, the event names it, then it is delivered."""
        now_ms = self._clock_ns() // 1_000_000
        stem = ids.message_stem(now_ms, self._draw(10))
        deadline_ms = now_ms + int(self.state.spec.limits.order_timeout_s * 1000)
        data: dict[str, Any] = {
            "role": decision.role,
            "agent": decision.agent,
            "kind": decision.kind,
            "subtask": decision.subtask,
            "attempt": decision.attempt,
            "name": stem,
            "deadline_us": int((deadline_ms + GRACE_S * 1000) * 1000),
        }
        try:
            raw = message_wire.encode(self._message(decision, stem, now_ms, deadline_ms))
        except (ValueError, FileNotFoundError, blobs.BlobDamaged) as error:
            self._refuse("order.dispatched", [str(error)], subtask=decision.subtask)
            return
        data["message"] = blobs.put(self.home.blobs, raw)
        if self._propose("order.dispatched", data):
            order = self.state.orders[stem]
            self._effects.append(lambda: self._deliver(order))

    def _message(self, decision: Dispatch, stem: str, now_ms: int, deadline_ms: int) -> Message:
        tree = self.dir.tree(decision.subtask, decision.attempt) if decision.subtask else None
        order = order_wire.Order(
            kind=decision.kind,
            model=decision.model,
            tools=decision.tools,
            workspace=str(tree) if tree is not None and decision.tools else "",
            cwd=self.state.spec.cwd,
            env=self.state.spec.env if decision.model else {},
            payload=self._resolved({**decision.payload, **_place(decision)}),
        )
        return Message(
            id=ids.ulid_of(stem),
            from_="router",
            ts_ms=now_ms,
            body=f"{decision.kind} {decision.subtask}".strip(),
            reply_to="router",
            kind=decision.kind,
            goal=self.dir.id,
            deadline_ms=deadline_ms,
            data=order_wire.to_json(order),
        )

    def _resolved(self, payload: Mapping[str, Any]) -> dict[str, Any]:
        """The payload with {"$text": digest} and {"$json": digest} replaced by what those blobs hold."""
        found: dict[str, Any] = {}
        for key, value in payload.items():
            if isinstance(value, dict) and len(value) == 1 and "$text" in value:
                value = blobs.get(self.home.blobs, value["$text"]).decode("utf-8", "replace")
            elif isinstance(value, dict) and len(value) == 1 and "$json" in value:
                value = loads_object(blobs.get(self.home.blobs, value["$json"]))["files"]
            found[key] = value
        return found

    def _deliver(self, order: OrderState) -> None:
        mailbox.deliver(self.home.agent(order.agent), order.name, blobs.get(self.home.blobs, order.message))
        wake.ring_agent(self.home.wake, order.agent)

    def _show(self, event: Event) -> None:
        """Evidence beside the journal, for people: derived, never read back."""
        data = event.data
        if event.type == "plan.accepted":
            fs.hint(self.dir.plan, dumps(dict(data)).decode())
        if event.type not in ("subtask.started", "subtask.reported", "verdict.recorded"):
            return
        sub = self.state.subtasks.get(data["subtask"])
        if sub is None:
            return
        attempt = self.dir.attempt(sub.spec.id, data.get("attempt", sub.attempt))
        fs.ensure_dir(attempt)
        if event.type == "subtask.started":
            fs.hint(attempt / "instruction.md", sub.spec.instruction)
        elif event.type == "subtask.reported":
            fs.hint(attempt / "result.md", str(data["summary"]))
        else:
            fs.hint(attempt / f"verdict-{event.seq}.json", dumps(dict(data)).decode())


def _place(decision: Dispatch) -> dict[str, Any]:
    """What a keeper needs to find the tree. The roles get the whole subtask in their payload instead."""
    if decision.role != "keeper" or not decision.subtask:
        return {}
    return {"subtask": decision.subtask, "attempt": decision.attempt}


def _report(order: OrderState, message: Message) -> dict[str, Any]:
    data = dict(message.data or {})
    times: dict[str, Any] = {k: data.pop(k) for k in ("began_us", "ended_us") if k in data}
    data.pop("actor", None)
    usage = data.pop("usage", None)
    usage = usage if isinstance(usage, dict) else None
    if message.error:
        hint = f"; {data['hint']}" if isinstance(data.get("hint"), str) and data["hint"] else ""
        error = {
            "type": data.get("error_type", "error"),
            "message": f"{message.body[:2000]}{hint}",
            "exit_status": data.get("exit_status"),
        }
        return {"order": order.name, "ok": False, "data": None, "error": error, **times}
    if fault := order_wire.report_fault(order.kind, data):
        error = {"type": "bad_report", "message": f"the report cannot be used: {fault}", "exit_status": None}
        return {"order": order.name, "ok": False, "data": None, "error": error, "usage": usage, **times}
    return {"order": order.name, "ok": True, "data": data, "error": None, "usage": usage, **times}


def _actor(agent: str, message: Message) -> dict[str, Any]:
    """The process that did the work, as it says itself; the agent's name is that of the outbox it lay in."""
    said = (message.data or {}).get("actor")
    said = said if isinstance(said, dict) else {}
    return {"agent": agent, "pid": said.get("pid"), "start": said.get("start")}


def _remove(path: Path) -> None:
    """Take a control file away; a directory of that name, whose refusal is journaled, may stay."""
    try:
        fs.remove(path)
    except (IsADirectoryError, PermissionError):
        pass
