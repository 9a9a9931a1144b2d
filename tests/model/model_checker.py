"""A small explicit-state model checker: every interleaving of some processes, with every crash, by brute force.

A *process* is a program that changes files, written as a generator: it yields one operation at a time and is sent its
result, so it reads like the code it stands for. A *state* of the world is what all files hold, how far each process
has come, and how often each may still be killed. From every state every process may make its next operation, and
may be killed before it; the search goes through all states that can be reached, breadth first, so that the first
thing found wrong has the shortest way to it.

What a process remembers is the list of results it was sent, and nothing else: equal lists, equal futures. It forgets
them where it says so: `return program, *arguments` goes on there with an empty memory. So the states of a program
need no encoding by hand, and no two different ones can be taken for one.

Operations, and what they give. A path is a text; a directory is what stands before the last slash.

    exists P            bool
    read P              the content, or None
    list D              the names in D, sorted
    await D …           the same for the first of these directories that is not empty; waits until one is
    until P             waits until P is there
    link P content      bool: made, unless the name was taken
    move P Q            "moved", "taken" (nothing happened) or "gone" (there is no P)
    rename P Q          bool: as move, but replaces
    replace P content
    append P record     the content is a tuple of records
    remove P            bool: it was there
    count P             how often it was counted before; the file holds how often by now
    note P content      as link; other content under a name noted before is an objection
    lock P, unlock P    waits until it is free; free again when the holder dies
    witness P           as exists, but it is the world outside that looks
    object TEXT         the program has come where it must never come

Files under `~` are what the world outside remembers. No process of the protocol reads them.

*Reduction.* An operation commutes with all that the other processes may still do when none of them will ever change
what it looks at, nor look at what it changes. Where a process is about to make such a one, only that, and the death of
this process before it, are followed: whatever the others do meanwhile they can do afterwards just as well. What a
process may still touch, from where it stands, is learned: an exploration is repeated with what the one before has
learned until it teaches nothing new, and the last one counts. This keeps every state in which nothing moves, and every
loop without a way out; and it keeps what `always` objects to as long as that is never mended by itself. So each rule
in `always` has to be of that kind: two answers stay two.
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from typing import Any

Op = tuple[Any, ...]
Program = Callable[..., Generator[Op, Any, Any]]
Files = Mapping[str, Any]
Fault = frozenset[str]
WRONG = "~objection"
_END: Op = ("end",)


@dataclass(frozen=True, slots=True)
class World:
    """What is explored.

    processes  name → (program, *arguments): where it begins, and begins again after it was killed
    kills      how many kills there are in one run, of one process or of several
    mortal     who may be killed
    always     (files, name → kills so far) → what is wrong in this state, empty for nothing
    at_rest    files → what is wrong in a state in which nothing moves any more
    faults     what is wrong with this world's programs, on purpose
    """

    name: str
    processes: Mapping[str, tuple[Any, ...]]
    kills: int
    mortal: tuple[str, ...]
    always: Callable[[Files, Mapping[str, int]], str]
    at_rest: Callable[[Files], str]
    files: Files = field(default_factory=dict)
    faults: Fault = frozenset()


@dataclass(frozen=True, slots=True)
class Found:
    """What an exploration came to: `wrong` is empty when nothing was; `trace` is the shortest way to it.

    resting, endings   how many states of rest there are, and what the files hold in them
    seconds            processor time
    """

    world: str
    states: int
    steps: int
    resting: int
    endings: frozenset[frozenset[tuple[str, Any]]]
    seconds: float
    wrong: str = ""
    trace: tuple[str, ...] = ()

    def text(self) -> str:
        head = f"{self.world}: {self.states} states, {self.steps} steps, {self.resting} at rest, {self.seconds:.1f} s"
        return "\n".join([head, *([f"  {self.wrong}, after {len(self.trace)} steps:"] if self.wrong else ()),
                          *(f"    {line}" for line in self.trace)])  # fmt: skip


class _Programs:
    """Where processes can stand, as small numbers: `ops[n]` is what is done next there."""

    def __init__(self, faults: Fault) -> None:
        self.faults = faults
        self.ops: list[Op] = []
        self._points: list[tuple[tuple[Any, ...], tuple[Any, ...]]] = []
        self._numbers: dict[tuple[tuple[Any, ...], tuple[Any, ...]], int] = {}
        self._next: dict[tuple[int, Any], int] = {}

    def at(self, begin: tuple[Any, ...], memory: tuple[Any, ...] = ()) -> int:
        point = (begin, memory)
        number = self._numbers.get(point)
        if number is None:
            program, *arguments = begin
            run = program(self.faults, *arguments)
            try:
                op: Op = next(run)
                for result in memory:
                    op = run.send(result)
            except StopIteration as end:
                op = _END
                if end.value is not None:
                    number = self.at(end.value)
            if number is None:
                number = len(self.ops)
                self.ops.append(op)
                self._points.append(point)
            self._numbers[point] = number
        return number

    def begins(self, number: int) -> bool:
        """Whether a program stands there at its first operation."""
        return not self._points[number][1]

    def after(self, number: int, result: Any) -> int:
        known = self._next.get((number, result))
        if known is None:
            begin, memory = self._points[number]
            known = self._next[number, result] = self.at(begin, (*memory, result))
        return known


def names_in(files: Files, directory: str) -> tuple[str, ...]:
    """What lies in a directory, without what lies further down."""
    return tuple(
        sorted(p[len(directory) :] for p in files if p.startswith(directory) and "/" not in p[len(directory) :])
    )


def perform(files: Files, op: Op, who: str) -> tuple[Any, dict[str, Any] | None] | None:
    """(what the operation gives, the files afterwards or None when they are the same); None: it has to wait."""
    kind, *args = op
    path = args[0] if args else ""
    match kind:
        case "exists" | "witness":
            return path in files, None
        case "read":
            return files.get(path), None
        case "list":
            return names_in(files, path), None
        case "await":
            found = next((names for d in args if (names := names_in(files, d))), None)
            return None if found is None else (found, None)
        case "until":
            return (True, None) if path in files else None
        case "link":
            return (False, None) if path in files else (True, {**files, path: args[1]})
        case "move" | "rename":
            if path not in files:
                return ("gone" if kind == "move" else False), None
            if kind == "move" and args[1] in files:
                return "taken", None
            rest = {p: c for p, c in files.items() if p != path}
            return ("moved" if kind == "move" else True), {**rest, args[1]: files[path]}
        case "replace":
            return None, {**files, path: args[1]}
        case "append":
            return None, {**files, path: (*files.get(path, ()), args[1])}
        case "remove":
            return path in files, {p: c for p, c in files.items() if p != path}
        case "count":
            before = files.get(path, 0)
            return before, {**files, path: before + 1}
        case "note":
            if files.get(path, args[1]) != args[1]:
                return None, {**files, WRONG: f"{path}: first {files[path]!r}, then {args[1]!r}"}
            return None, {**files, path: args[1]}
        case "lock":
            return None if path in files else (True, {**files, path: who})
        case "unlock":
            return True, {p: c for p, c in files.items() if p != path}
        case "object":
            return None, {**files, WRONG: path}
        case "end":
            return None
    raise ValueError(f"no operation: {op}")


Mask = int  # a set of paths, each one a bit


class _Marks:
    """What each operation looks at and changes, and what may still come after it, as far as it was seen."""

    def __init__(self, programs: _Programs) -> None:
        self._programs = programs
        self._bits: dict[str, Mask] = {}
        self._own: dict[int, tuple[Mask, Mask]] = {}
        self._before: dict[int, set[int]] = {}
        self._ahead: dict[int, tuple[Mask, Mask]] = {}

    def learn(self, at: int, moved: int) -> None:
        """The operation `moved` was seen to follow the operation `at`."""
        self._before.setdefault(moved, set()).add(at)

    def of(self, at: int) -> tuple[Mask, Mask]:
        known = self._own.get(at)
        if known is None:
            looks, changes = touched(self._programs.ops[at])
            known = self._own[at] = self._mask(looks), self._mask(changes)
        return known

    def _mask(self, paths: tuple[str, ...]) -> Mask:
        mask = 0
        for path in paths:
            mask |= self._bits.setdefault(path, 1 << len(self._bits))
        return mask

    def ahead(self, at: int, again: int | None) -> tuple[Mask, Mask]:
        """What a process that stands there may still look at and change; `again`: where it may begin anew."""
        looks, changes = self._ahead.get(at, (0, 0))
        if again is not None:
            more = self._ahead.get(again, (0, 0))
            return looks | more[0], changes | more[1]
        return looks, changes

    def conclude(self) -> bool:
        """Bring what was learned together; whether anything was new."""
        before = dict(self._ahead)
        todo = list(range(len(self._programs.ops)))
        for at in todo:
            self._ahead[at] = self.of(at)
        while todo:
            at = todo.pop()
            looks, changes = self._ahead[at]
            for earlier in self._before.get(at, ()):
                known = self._ahead[earlier]
                union = known[0] | looks, known[1] | changes
                if union != known:
                    self._ahead[earlier] = union
                    todo.append(earlier)
        return before != self._ahead


def touched(op: Op) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(paths an operation looks at, paths it changes). A directory stands for the names in it."""
    kind, *args = op
    match kind:
        case "end":
            return (), ()
        case "exists" | "witness" | "read" | "list" | "until":
            return (args[0],), ()
        case "await":
            return tuple(args), ()
        case "move" | "rename":
            return (), (*_with_directory(args[0]), *_with_directory(args[1]))
        case "object":
            return (), (WRONG,)
    return (), _with_directory(args[0])


def _with_directory(path: str) -> tuple[str, str]:
    return path, path[: path.rindex("/") + 1] if "/" in path else ""


State = tuple[int, ...]  # files, then for each process where it stands, then for each its kills so far


class _Search:
    """One exploration. States are tuples of small numbers; what an operation does to files is computed once."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.who = tuple(world.processes)
        self.programs = _Programs(world.faults)
        self.files: list[dict[str, Any]] = []
        self._file_numbers: dict[frozenset[tuple[str, Any]], int] = {}
        self._done: dict[tuple[int, Op, str], tuple[Any, int] | None] = {}
        self._after_death: dict[tuple[int, str], int] = {}
        self.marks = _Marks(self.programs)
        self.reduced = True
        self._judged: dict[tuple[int, ...], str] = {}
        self.begin = tuple(self.programs.at(world.processes[name]) for name in self.who)
        self.mortal = tuple(name in world.mortal for name in self.who)

    def number(self, files: dict[str, Any]) -> int:
        key = frozenset(files.items())
        number = self._file_numbers.get(key)
        if number is None:
            number = self._file_numbers[key] = len(self.files)
            self.files.append(files)
        return number

    def first(self) -> State:
        return (self.number(dict(self.world.files)), *self.begin, *(0 for _ in self.who))

    def perform(self, files: int, op: Op, who: str) -> tuple[Any, int] | None:
        key = (files, op, who)
        if key not in self._done:
            outcome = perform(self.files[files], op, who)
            if outcome is not None:
                result, after = outcome
                outcome = (result, files if after is None else self.number(after))  # type: ignore[assignment]
            self._done[key] = outcome  # type: ignore[assignment]
        return self._done[key]

    def death(self, files: int, who: str) -> int:
        """The files once this process is gone: its locks are free."""
        key = (files, who)
        if key not in self._after_death:
            held = self.files[files]
            left = {p: c for p, c in held.items() if not (p.endswith("/lock") and c == who)}
            self._after_death[key] = self.number(left)
        return self._after_death[key]

    def one(self, state: State, known: Mapping[State, int]) -> list[tuple[str, State]]:
        """As steps(), of one process that can go on without regard to the others; empty when there is none such.

        Nor may this close a loop, or the others would be forgotten in it. Each loop goes through the beginning of a
        program, because a memory only grows.
        """
        if not self.reduced:
            return []
        count = len(self.who)
        may_die = sum(state[1 + count :]) < self.world.kills
        ahead = [
            self.marks.ahead(state[1 + i], self.begin[i] if may_die and self.mortal[i] else None) for i in range(count)
        ]
        for index in range(count):
            looks, changes = self.marks.of(state[1 + index])
            if (looks or changes) and all(
                not (changes & (other[0] | other[1]) or looks & other[1]) for i, other in enumerate(ahead) if i != index
            ):
                found = self._steps_of(state, index, count)
                if not found or found[0][0]:
                    continue
                after = found[0][1]
                if not (self.programs.begins(after[1 + index]) and after in known):
                    return found
        return []

    def steps(self, state: State) -> list[tuple[str, State]]:
        """(what happens, state afterwards) for all that can happen; of each process its death last."""
        count = len(self.who)
        moves: list[tuple[str, State]] = []
        for index in range(count):
            moves += self._steps_of(state, index, count)
        return moves

    def _steps_of(self, state: State, index: int, count: int) -> list[tuple[str, State]]:
        found: list[tuple[str, State]] = []
        who, at = self.who[index], state[1 + index]
        outcome = self.perform(state[0], self.programs.ops[at], who)
        if outcome is not None:
            result, files = outcome
            moved = self.programs.after(at, result)
            self.marks.learn(at, moved)
            found.append(("", (files, *state[1 : 1 + index], moved, *state[2 + index :])))
        killed = state[1 + count + index]
        if (
            self.mortal[index]
            and sum(state[1 + count :]) < self.world.kills
            and at != self.begin[index]
            and self.programs.ops[at] != _END
        ):
            after = list(state)
            after[0], after[1 + index], after[1 + count + index] = (
                self.death(state[0], who),
                self.begin[index],
                killed + 1,
            )
            found.append(("killed", tuple(after)))
        return found

    def judge(self, state: State) -> str:
        count = len(self.who)
        key = (state[0], *state[1 + count :])
        wrong = self._judged.get(key)
        if wrong is None:
            files = self.files[state[0]]
            kills = dict(zip(self.who, state[1 + count :], strict=True))
            wrong = self._judged[key] = files.get(WRONG, "") or self.world.always(files, kills)
        return wrong

    def line(self, before: State, after: State) -> str:
        """One step, for people."""
        count = len(self.who)
        for index, who in enumerate(self.who):
            if before[1 + count + index] != after[1 + count + index]:
                return f"{who}: is killed"
        for move in self.steps(before):
            if move[1] == after:
                index = next((i for i in range(count) if before[1 + i] != after[1 + i]), 0)
                op = self.programs.ops[before[1 + index]]
                outcome = self.perform(before[0], op, self.who[index])
                result = "" if outcome is None or outcome[0] is None else f"  → {outcome[0]!r}"
                return f"{self.who[index]}: {' '.join(str(part) for part in op)}{result}"
        return "?"


def explore(world: World, at_most: int = 3_000_000, reduced: bool = True) -> Found:
    """Go through all states of a world, until something is wrong. Raises RuntimeError beyond `at_most` states.

    reduced   follow one order where all orders come to the same

    Three things are looked for: a state that `always` objects to; a state in which nothing moves and that `at_rest`
    objects to; a state from which no state of rest can be reached at all.
    """
    began = time.process_time()
    search = _Search(world)
    search.reduced = reduced
    while (found := _explore(search, at_most, began)) is None:
        pass
    return found


def _explore(search: _Search, at_most: int, began: float) -> Found | None:
    """One exploration with what is known so far; None when it has taught something and does not count."""
    world = search.world
    first = search.first()
    numbers: dict[State, int] = {first: 0}
    states = [first]
    parents = array("l", [-1])
    sources, targets = array("l"), array("l")
    resting: list[int] = []
    at = 0

    def came_to(wrong: str = "", end: int = 0) -> Found:
        way: list[str] = []
        while wrong and parents[end] >= 0:
            way.append(search.line(states[parents[end]], states[end]))
            end = parents[end]
        seconds = time.process_time() - began
        ends = frozenset(frozenset(search.files[states[at][0]].items()) for at in resting)
        return Found(world.name, len(states), len(sources), len(resting), ends, seconds, wrong, tuple(reversed(way)))

    while at < len(states):
        state = states[at]
        wrong = search.judge(state)
        if wrong:
            return came_to(wrong, at)
        moves = search.one(state, numbers) or search.steps(state)
        if all(how == "killed" for how, _ in moves):
            resting.append(at)
            wrong = world.at_rest(search.files[state[0]])
            if wrong:
                return came_to(f"comes to rest: {wrong}", at)
        for _, after in moves:
            number = numbers.get(after)
            if number is None:
                number = numbers[after] = len(states)
                states.append(after)
                parents.append(at)
                if number > at_most:
                    raise RuntimeError(f"{world.name} has more than {at_most} states")
            sources.append(at)
            targets.append(number)
        at += 1
    if search.reduced and search.marks.conclude():
        return None
    stuck = _first_without_way(len(states), sources, targets, resting)
    return came_to("never comes to rest from here on", stuck) if stuck is not None else came_to()


def _first_without_way(count: int, sources: array[int], targets: array[int], goals: list[int]) -> int | None:
    """The first state from which none of `goals` can be reached: the edges are followed backwards."""
    newest = array("l", [-1]) * count
    older = array("l", [-1]) * len(sources)
    for edge, target in enumerate(targets):
        older[edge] = newest[target]
        newest[target] = edge
    reached = bytearray(count)
    todo = list(goals)
    for goal in goals:
        reached[goal] = 1
    while todo:
        edge = newest[todo.pop()]
        while edge >= 0:
            source = sources[edge]
            if not reached[source]:
                reached[source] = 1
                todo.append(source)
            edge = older[edge]
    return next((n for n in range(count) if not reached[n]), None)


def alone(
    begin: tuple[Any, ...], files: Files, faults: Fault = frozenset(), at_most: int = 1000
) -> tuple[list[Op], dict[str, Any], Any]:
    """Run one program by itself until it ends or has to wait: (operations, files afterwards, its last value)."""
    done: list[Op] = []
    now = dict(files)
    while begin is not None and len(done) < at_most:
        program, *arguments = begin
        run = program(faults, *arguments)
        try:
            op = next(run)
            while True:
                outcome = perform(now, op, "alone")
                if outcome is None:
                    return done, now, None
                done.append(op)
                result, after = outcome
                now = now if after is None else after
                op = run.send(result)
        except StopIteration as end:
            if not (isinstance(end.value, tuple) and end.value and callable(end.value[0])):
                return done, now, end.value
            begin = end.value
    return done, now, None
