"""What the operators of a pipe do with each message, and what they hold and remember (docs/weave.md, ADR-0023).

Enters: operators, the state folded from the journal, the present time and what a command or jq said, as arguments.
Leaves: an Effect. Stays out: files, processes, clocks. The process that carries effects out: loom/daemons/pipe.py.

An *item* is a message inside the pipe: (its name, its place), place n being before operator n; at the last place it is
ready to leave. A journal record says what one operator did with one item, and the state is their fold:

    {"t":"enter","message":M}                            M came in
    {"t":"step","place":n,"message":N,"effect":WORD,…}   operator n dealt with N
    {"t":"timer","place":n,"effect":WORD,…}              the time of operator n was over
    {"t":"failed","place":n,"message":N,"out":F}         N could not be dealt with, F says so downstream
    {"t":"left","message":N}                             N was published
    {"t":"answered","message":M}                         the reply to M is out
    {"t":"held"|"seen"|"value"|"passed"|"pending",…}     a state written anew, when the journal had grown long

`out` are the names of the items that follow at the next place, `hold` is true where N is held, `free` names what is
held no more, `loose` says that what follows is no direct answer to N.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from loom.wire.record import field, record
from loom.wire.weave import Operator

MOST_KEYS = 10_000  # that dedupe remembers, where nobody says how many
PASS_FAILURES = frozenset(("command", "dedupe", "accumulate"))  # these speak of bodies; a failure's is none

Word = Literal["forward", "change", "drop", "hold", "flush", "release", "fold", "keep"]
RanKind = Literal["ok", "nonzero", "crashed", "timeout", "flood", "missing"]


@record
class Ran:
    """How a command or jq ended. `lines` of its stdout that are not blank; `detail` for people."""

    kind: RanKind
    lines: tuple[str, ...] = ()
    detail: str = ""


@record
class Effect:
    """What becomes of one item, or of what was held when a time was over.

    forward  names of items that go on as they are
    bodies   of new messages that take its place
    batch    names of items that go on as one message, the array of all
    hold     it is held
    free     held no more
    why      what went otherwise than asked, for the log
    fault    the item cannot be dealt with: it fails
    """

    word: Word
    forward: tuple[str, ...] = ()
    bodies: tuple[str, ...] = ()
    batch: tuple[str, ...] = ()
    hold: bool = False
    free: tuple[str, ...] = ()
    key: str = ""
    passed_ms: int | None = None
    timed_out: bool = False
    why: str = ""
    fault: str = ""


@record
class Pending:
    """An item on its way. `root` is the message it is a direct answer to, empty for none."""

    name: str
    place: int
    root: str = ""


@record(frozen=False)
class Held:
    """What one operator holds and remembers. held: (name, since when in Unix ms), oldest first."""

    held: list[tuple[str, int]] = field(default_factory=list)
    seen: dict[str, None] = field(default_factory=dict)
    passed_ms: list[int] = field(default_factory=list)
    value: str = ""  # the name of the item that has accumulate's state for a body, at the next place


class State:
    """The fold of a journal. `entered` are messages that came in and whose answer was not prepared yet.

    most_keys  so many keys each dedupe remembers, the newest
    """

    def __init__(self, operators: Sequence[Operator], most_keys: int = MOST_KEYS) -> None:
        self.operators = tuple(operators)
        self.most_keys = most_keys
        self.at = [Held() for _ in operators]
        self.pending: list[Pending] = []
        self.entered: set[str] = set()

    def apply(self, told: Mapping[str, Any]) -> None:
        """Take one record into account. Raises KeyError, TypeError, IndexError or ValueError for what is none."""
        match told["t"]:
            case "enter":
                self.entered.add(told["message"])
                self.pending.append(Pending(told["message"], 0, told["message"]))
            case "step" | "timer":
                self._step(told)
            case "failed":
                self._step({**told, "effect": "change", "out": (), "loose": True})
                self.pending.append(Pending(told["out"], len(self.at)))
            case "left":
                self.pending = [p for p in self.pending if p.name != told["message"] or p.place < len(self.at)]
            case "answered":
                self.entered.discard(told["message"])
                self.pending = [p for p in self.pending if p.root != told["message"]]
            case "held":
                self.at[told["place"]].held.append((told["message"], int(told["ms"])))
            case "seen":
                self.at[told["place"]].seen[told["key"]] = None
            case "value":
                self.at[told["place"]].value = told["message"]
            case "passed":
                self.at[told["place"]].passed_ms.append(int(told["ms"]))
            case "entered":
                self.entered.add(told["message"])
            case "pending":
                self.pending.append(Pending(told["message"], told["place"], told["root"]))

    def _step(self, told: Mapping[str, Any]) -> None:
        place, name = told["place"], told.get("message", "")
        here = self.at[place]
        found = next((i for i, p in enumerate(self.pending) if (p.name, p.place) == (name, place)), None)
        root = self.pending.pop(found).root if found is not None else ""
        if told.get("loose"):
            root = ""
        following = [Pending(out, place + 1, root) for out in told.get("out", ())]
        at = len(self.pending) if found is None else found
        self.pending[at:at] = following
        free = set(told.get("free", ()))
        here.held = [one for one in here.held if one[0] not in free]
        if told.get("hold"):
            here.held.append((name, int(told["ms"])))
        if "key" in told:
            here.seen.pop(told["key"], None)
            here.seen[told["key"]] = None
            while len(here.seen) > self.most_keys:
                del here.seen[next(iter(here.seen))]
        if "passed" in told:
            limit = self.operators[place]["max"] if self.operators[place].kind == "throttle" else 1
            here.passed_ms = [*here.passed_ms, int(told["passed"])][-limit:]
        if told["effect"] == "fold":
            (here.value,) = told["out"]

    def ready(self, root: str) -> list[Pending]:
        """Items of one message that are ready to leave, in order."""
        return [p for p in self.pending if p.root == root and p.place == len(self.at)]

    def next_of(self, root: str) -> Pending | None:
        """The next item to be dealt with for this message, or of those that are nobody's direct answer."""
        return next((p for p in self.pending if p.root in ("", root) and (p.place < len(self.at) or not p.root)), None)

    def at_the_end(self, places: int) -> list[tuple[Pending, int]]:
        """All items, for a chain of so many operators that takes this one's place: (where it goes on, where it lay).

        What is held or on its way goes to the end as it is, so that nothing is lost; what has only just come in begins
        again.
        """
        items = [Pending(name, place) for place, here in enumerate(self.at) for name, _ in here.held] + self.pending
        return [(p if p.place == 0 and p.root else replace(p, place=places), p.place) for p in items]

    def records(self) -> Iterator[dict[str, Any]]:
        """The state as records: what a journal that has grown long is replaced by."""
        for name in sorted(self.entered):
            yield {"t": "entered", "message": name}
        for place, here in enumerate(self.at):
            for name, ms in here.held:
                yield {"t": "held", "place": place, "message": name, "ms": ms}
            for key in here.seen:
                yield {"t": "seen", "place": place, "key": key}
            for ms in here.passed_ms:
                yield {"t": "passed", "place": place, "ms": ms}
            if here.value:
                yield {"t": "value", "place": place, "message": here.value}
        for p in self.pending:
            yield {"t": "pending", "message": p.name, "place": p.place, "root": p.root}


def record_of(effect: Effect, place: int, name: str, out: Sequence[str], now_ms: int) -> dict[str, Any]:
    """The journal's record of an effect. `name` is empty where a time was over; `out` what follows."""
    told: dict[str, Any] = {"t": "step" if name else "timer", "place": place}
    if name:
        told["message"] = name
    told["effect"] = effect.word
    if out:
        told["out"] = list(out)
    if effect.free:
        told["free"] = list(effect.free)
    if effect.hold:
        told |= {"hold": True, "ms": now_ms}
    if effect.batch or effect.word == "release":
        told["loose"] = True
    if effect.key:
        told["key"] = effect.key
    if effect.passed_ms is not None:
        told["passed"] = effect.passed_ms
    if effect.why:
        told["why"] = effect.why
    return told


# -- what an operator does -----------------------------------------------------------------------------------------


def asks(operator: Operator, failure: bool) -> str:
    """What must be run before it can be decided: `command`, `jq`, or nothing."""
    if failure and operator.kind in PASS_FAILURES:
        return ""
    return {"command": "command", "buffer": "jq", "dedupe": "jq", "accumulate": "jq"}.get(operator.kind, "")


def arrive(operator: Operator, here: Held, name: str, now_ms: int, ran: Ran | None, failure: bool = False) -> Effect:
    """What the operator does with an item that reaches it. `ran` is what was asked for; see `asks`."""
    if failure and operator.kind in PASS_FAILURES:
        return Effect("forward", forward=(name,))
    match operator.kind:
        case "command":
            assert ran is not None
            return _command(name, ran)
        case "tap":
            return Effect("forward", forward=(name,))
        case "window":
            return _gathered(here, name, len(here.held) + 1 >= operator["size"])
        case "buffer":
            assert ran is not None
            effect = _gathered(here, name, _is_true(ran))
            return effect if ran.kind == "ok" else replace(effect, why=f"until: {ran.detail}")
        case "dedupe":
            assert ran is not None
            return _dedupe(here, name, ran)
        case "throttle":
            if not here.held and _free_slots(operator, here, now_ms) > 0:
                return Effect("forward", forward=(name,), passed_ms=now_ms)
            return Effect("hold", hold=True)
        case "accumulate":
            assert ran is not None
            if ran.kind == "ok" and ran.lines:
                return Effect("fold", bodies=(ran.lines[-1],))
            return Effect("keep", forward=(name,), why=f"expr: {ran.detail or 'it gave nothing'}")
    raise ValueError(f"no operator {operator.kind!r}")


def _command(name: str, ran: Ran) -> Effect:
    match ran.kind:
        case "ok":
            return Effect("change", bodies=ran.lines)
        case "nonzero":
            return Effect("drop", why=ran.detail)
        case "flood" | "missing":
            return Effect("drop", fault=ran.detail)
    return Effect("forward", forward=(name,), why=ran.detail)


def _gathered(here: Held, name: str, full: bool) -> Effect:
    names = tuple(held for held, _ in here.held)
    return Effect("flush", batch=(*names, name), free=names) if full else Effect("hold", hold=True)


def _is_true(ran: Ran) -> bool:
    return ran.kind == "ok" and bool(ran.lines) and ran.lines[-1] not in ("false", "null")


def _dedupe(here: Held, name: str, ran: Ran) -> Effect:
    if ran.kind != "ok" or not ran.lines:
        return Effect("forward", forward=(name,), why=f"key: {ran.detail or 'it gave nothing'}")
    key = "\n".join(ran.lines)
    return Effect("drop", key=key) if key in here.seen else Effect("forward", forward=(name,), key=key)


def _free_slots(operator: Operator, here: Held, now_ms: int) -> int:
    """How many may pass now. A time that lies ahead is of a clock that was set back, and counts no more."""
    since = now_ms - operator["per_s"] * 1000
    return int(operator["max"]) - sum(1 for ms in here.passed_ms if since < ms <= now_ms)


# -- what time does ------------------------------------------------------------------------------------------------


def due_ms(operator: Operator, here: Held, now_ms: int) -> float | None:
    """When something must happen although nothing arrives (Unix ms, now or earlier: at once); None: never.

    Never later than one whole period from now, wherever the clock was set.
    """
    if not here.held:
        return None
    if operator.kind == "throttle":
        if _free_slots(operator, here, now_ms) > 0:
            return now_ms
        counted = [ms for ms in here.passed_ms if ms <= now_ms]
        return float(min(counted) + operator["per_s"] * 1000)
    since = here.held[0][1]
    return float(min(since, now_ms) + operator["timeout_s"] * 1000)


def over(operator: Operator, here: Held, now_ms: int) -> Effect | None:
    """What becomes of what is held when its time is over; None while it is not."""
    due = due_ms(operator, here, now_ms)
    if due is None or due > now_ms:
        return None
    if operator.kind == "throttle":
        first = here.held[0][0]
        return Effect("release", forward=(first,), free=(first,), passed_ms=now_ms)
    names = tuple(name for name, _ in here.held)
    return Effect("flush", batch=names, free=names, timed_out=operator.kind == "buffer")
