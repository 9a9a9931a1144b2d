"""A pipe: the process of one instance, which takes each message through a chain of operators (docs/weave.md, ADR-0023).

What an operator does is decided in loom/core/pipes.py. Here it is carried out so that it happens once: first the files
of what follows, then the record in the state journal, then the next operator. A killed pipe goes on behind the last
record; only a command, or jq, that was running then runs again.

What comes of a message at once is the reply to it. What was held was answered by an empty reply; when it leaves later,
alone or in a batch, it is published as a message of its own.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from loom.core import pipes as core
from loom.core.pipes import Effect, Pending, Ran, State
from loom.daemons import operating, service
from loom.daemons.service import Agent, Done, MailboxLoop
from loom.spool import bodies, config, fs, mailbox, ndjson
from loom.spool.locks import Incarnation
from loom.spool.mailbox import Claimed
from loom.spool.pipestate import PipeState
from loom.spool.turns import Turn
from loom.wire import ids
from loom.wire import message as wire
from loom.wire.errors import Config, Disk, LoomError
from loom.wire.message import Message, Unreadable
from loom.wire.weave import COMMAND_TIMEOUT_S, EXPRESSIONS, decode_operators, encode_operators

MAX_PARTS_BYTES = 512 << 10  # what would be more in one reply leaves as messages of their own


def serve_pipe(agent_dir: Path, drain: bool = False) -> int:
    """The process of one instance (runners/pipe)."""
    return service.serve_loop(agent_dir, PipeLoop, drain)


class PipeLoop(MailboxLoop):
    """The loop of every mailbox, and a clock: what is held has its time."""

    def __init__(self, agent: Agent, me: Incarnation) -> None:
        self._pipe = PipeWorker(agent)
        super().__init__(agent, self._pipe, me)

    def close(self) -> None:
        super().close()
        self._pipe.close()

    def recover(self) -> None:
        super().recover()
        self._pipe.go_on()
        self._ring_router()

    def on_time(self) -> None:
        if self._pipe.on_time():
            self._ring_router()

    def next_s(self) -> float | None:
        return self._pipe.next_s()

    def _answer(self, claimed: Claimed, attempt: int, done: Done, began_us: int) -> None:
        super()._answer(claimed, attempt, done, began_us)
        self._pipe.answered(claimed.stem)

    def _finish(self, claimed: Claimed, attempt: int) -> None:
        """The reply is out already; a pipe has no conversation that would miss it."""
        mailbox.acknowledge(self.agent.dir, claimed.stem)
        self._pipe.answered(claimed.stem)
        self._ring_router()


class PipeWorker:
    """The chain of one instance, and all that its operators hold."""

    def __init__(self, agent: Agent) -> None:
        self.agent, self.name = agent, agent.dir.name
        self.operators = decode_operators(agent.spec.options.get("operators"), str(agent.dir.spec))
        if any(one.kind in EXPRESSIONS for one in self.operators) and shutil.which("jq") is None:
            raise Config("jq is missing, and this pipe has expressions", hint="install jq, e.g. apt-get install jq")
        self._cwd = str(agent.spec.options.get("cwd") or agent.dir.path)
        self._current: tuple[str, Message] | None = None
        self._most_keys = int(config.load(agent.home, {})["retention.dedupe_keys"])
        try:
            self._files = PipeState(agent.dir)
            self.state = self._opened()
        except (ndjson.Damaged, KeyError, TypeError, IndexError, ValueError) as error:
            raise Config(f"the state of {self.name} cannot be read: {error}", hint="see its state/ directory") from None

    def close(self) -> None:
        self._files.close()

    def _opened(self) -> State:
        """The state as it was left; of another chain of operators all that it held goes on as it is."""
        records, self._files.records = self._files.records, []
        chain = encode_operators(self.operators)
        if not records:
            self._files.append({"t": "chain", "operators": chain})
            return State(self.operators, self._most_keys)
        before = State(decode_operators(records[0].get("operators"), "the state journal"), self._most_keys)
        for record in records[1:]:
            before.apply(record)
        if before.operators == self.operators:
            return before
        state = State(self.operators, self._most_keys)
        state.entered = before.entered
        for item, lay in before.at_the_end(len(self.operators)):
            if item.place != lay and not self._files.has(item.place, item.name):
                self._files.put(item.place, item.name, self._files.get(lay, item.name))
            state.pending.append(item)
        self.agent.log.warning("chain_changed", held=sum(len(here.held) for here in before.at))
        self._rewrite(state)
        return state

    def _rewrite(self, state: State) -> None:
        self._files.rewrite([{"t": "chain", "operators": encode_operators(self.operators)}, *state.records()])

    # -- a message -------------------------------------------------------------------------------------------------

    def work(self, claimed: Claimed, turn: Turn) -> Done:
        """Take one message through the chain. Raises LoomError where an operator cannot deal with it."""
        name = claimed.stem
        self._current = (name, claimed.message)
        if name not in self.state.entered:
            self._tell({"t": "enter", "message": name})
        self._pump(name, turn)
        return self._done(name)

    def answered(self, name: str) -> None:
        """Its reply is out: what belongs to it is needed no more. A crash before this costs nothing but a line."""
        self._current = None
        if name in self.state.entered:
            self._tell({"t": "answered", "message": name}, sync=False)
        if self._files.is_long:
            self._rewrite(self.state)

    def _done(self, name: str) -> Done:
        """The reply: what came of the message at once. Failures leave by themselves, or they would fail the message."""
        ready = [(item, self._content(item)) for item in self.state.ready(name)]
        texts = [bodies.text(self.agent.home.blobs, message) for _, message in ready]
        if (len(ready) > 1 and sum(map(len, texts)) > MAX_PARTS_BYTES) or any(message.error for _, message in ready):
            for item, _ in ready:
                self._leave(item)
            return Done("", parts=())
        if len(ready) == 1:
            data = {k: v for k, v in (ready[0][1].data or {}).items() if k != bodies.FIELD}
            return Done(texts[0], data or None)
        return Done("", parts=tuple(texts))

    def _pump(self, root: str, turn: Turn | None) -> None:
        """Deal with all items of this message, and with those that nobody waits for."""
        while (item := self.state.next_of(root)) is not None:
            try:
                if item.place == len(self.operators):
                    self._leave(item)
                else:
                    self._step(item)
            except Disk:
                raise
            except LoomError as error:
                if item.root:
                    raise
                self._fail_loose(item, error)
            if turn is not None:
                turn.progress()

    def _step(self, item: Pending) -> None:
        operator, here = self.operators[item.place], self.state.at[item.place]
        message = self._content(item)
        ran = self._ask(item, message)
        effect = core.arrive(operator, here, item.name, _now_ms(), ran, message.error)
        if effect.fault:
            raise LoomError(f"{operator.kind}: {effect.fault}", kind="command", hint="mend the pipe, then retry it")
        if operator.kind == "tap":
            self._files.tap(operator["label"], item.name, message)
        self._carry_out(effect, item.place, item.name, message)

    def _ask(self, item: Pending, message: Message) -> Ran | None:
        operator, here = self.operators[item.place], self.state.at[item.place]
        asked = core.asks(operator, message.error)
        if not asked:
            return None
        if asked == "command":
            text = bodies.text(self.agent.home.blobs, message)
            return operating.command(self.agent, operator["cmd"], text.encode(), self._cwd, operator["timeout_s"])
        data = _as_json(message)
        if operator.kind == "buffer":
            data = _array([*(_as_json(self._held(item.place, name)) for name, _ in here.held), data])
        elif operator.kind == "accumulate":
            data = _array([self._value(item.place), data])
        return operating.jq(self.agent, operator[EXPRESSIONS[operator.kind]], data, self._cwd, COMMAND_TIMEOUT_S)

    def _value(self, place: int) -> bytes:
        """What accumulate has come to, as JSON."""
        name = self.state.at[place].value
        if not name:
            return b"null"
        return bodies.text(self.agent.home.blobs, self._files.get(place + 1, name)).encode()

    # -- effects ---------------------------------------------------------------------------------------------------

    def _carry_out(self, effect: Effect, place: int, name: str, message: Message) -> None:
        """First the files of what follows, then the record: from then on it has happened."""
        now_ms = _now_ms()
        if effect.hold and place == 0:
            self._files.put(0, name, message)
        out = list(effect.forward)
        for one in effect.forward:
            self._files.put(place + 1, one, message if one == name else self._held(place, one))
        for number, body in enumerate(effect.bodies, 1):
            out.append(self._made(place, name, message, body, number, now_ms))
        if effect.batch:
            out.append(self._batched(effect, place, name, message, now_ms))
        self._tell(core.record_of(effect, place, name, out, now_ms))
        if effect.why:
            kind = self.operators[place].kind
            self.agent.log.warning("operator", operator=kind, message=name, effect=effect.word, why=effect.why)

    def _made(
        self, place: int, name: str, cause: Message, body: str, number: int, now_ms: int, **fields: object
    ) -> str:
        """A new item in place of another; its name."""
        stem = ids.reply_stem(f"{self.name}/{place}", name, 0, number)
        made = Message(
            id=ids.ulid_of(stem),
            from_=self.name,
            ts_ms=now_ms,
            body=body,
            origin=_grown(cause, name),
            thread=cause.thread,
            goal=cause.goal,
            trace=cause.trace,
        )
        made = replace(made, **fields)  # type: ignore[arg-type]
        self._files.put(place + 1, stem, bodies.fit(self.agent.home.blobs, made))
        return stem

    def _batched(self, effect: Effect, place: int, name: str, message: Message, now_ms: int) -> str:
        """One item of many: named from the first, caused by the last."""
        members = [message if one == name else self._held(place, one) for one in effect.batch]
        body = _array([_as_json(one) for one in members]).decode()
        data = {"_buffer_timeout": True} if effect.timed_out else None
        last, cause = effect.batch[-1], members[-1]
        thread = cause.thread if len({one.thread for one in members}) == 1 else ""
        fields = {"origin": _grown(cause, last), "data": data, "thread": thread}
        return self._made(place, effect.batch[0], cause, body, 1, now_ms, **fields)

    def _fail_loose(self, item: Pending, error: LoomError) -> None:
        """An item that no message waits for cannot be dealt with: a failure goes downstream in its place, at once."""
        try:
            message = self._content(item)
        except LoomError:
            message = Message(ids.ulid_of(item.name), self.name, _now_ms(), "")
        data = {"error_type": error.kind, "hint": error.hint}
        text = f"{error}; it was message {item.name}"
        last = len(self.operators) - 1
        stem = self._made(last, item.name, message, text, 1, _now_ms(), error=True, data=data)
        self._tell({"t": "failed", "message": item.name, "place": item.place, "out": stem, "why": str(error)})
        self.agent.log.error("operator", message=item.name, error_type=error.kind, error=str(error))

    def _leave(self, item: Pending) -> None:
        """Publish an item as a message of its own; one that is out already is not published again."""
        message, stem, box = self._content(item), item.name, self.agent.dir
        if message.from_ != self.name:
            stem = ids.reply_stem(self.name, item.name, 0, 1)
            message = replace(message, id=ids.ulid_of(stem), from_=self.name, origin=_grown(message, item.name))
        message = replace(message, to="", reply_to="", kind="")
        outbox = box.outbox / f"{stem}.msg"
        if not (outbox.exists() or box.sent(stem).exists() or outbox.exists()):
            mailbox.answer(box, stem, bodies.fit(self.agent.home.blobs, message))
        elif outbox.exists():
            _settle(outbox)
        self._tell({"t": "left", "message": item.name})
        self.agent.log.info("sent", message=stem, origin=message.origin)

    # -- by the clock ------------------------------------------------------------------------------------------------

    def on_time(self) -> bool:
        """Let go what has been held long enough. True: something left."""
        done = False
        for place, operator in enumerate(self.operators):
            here = self.state.at[place]
            while (effect := core.over(operator, here, _now_ms())) is not None:
                names: Sequence[str] = effect.batch or effect.forward
                self._carry_out(effect, place, "", self._held(place, names[-1]))
                done = True
        if done:
            self.go_on()
        return done

    def go_on(self) -> None:
        """Deal with items that no message in work waits for: what a crash left, what a time that is over let go."""
        self._pump("", None)

    def next_s(self) -> float | None:
        now_ms = _now_ms()
        dues = [core.due_ms(operator, self.state.at[place], now_ms) for place, operator in enumerate(self.operators)]
        left = [max(0.0, (due - now_ms) / 1000) for due in dues if due is not None]
        return min(left) if left else None

    # -- helpers -----------------------------------------------------------------------------------------------------

    def _tell(self, record: dict[str, object], *, sync: bool = True) -> None:
        self._files.append(record, sync=sync)
        self.state.apply(record)

    def _content(self, item: Pending) -> Message:
        if item.place == 0 and self._current is not None and self._current[0] == item.name:
            return self._current[1]
        return self._held(item.place, item.name)

    def _held(self, place: int, name: str) -> Message:
        """An item's message. Raises LoomError when its file is lost: nothing else would ever become of it."""
        try:
            return self._files.get(place, name)
        except (FileNotFoundError, fs.NotRegular, fs.TooLarge, Unreadable) as error:
            raise LoomError(f"the item {name} of step {place} is lost: {error}", kind="damaged") from None


def _grown(cause: Message, name: str) -> str:
    return f"{cause.origin}/{name}" if cause.origin else name


def _as_json(message: Message) -> bytes:
    return wire.encode(message).strip()


def _array(values: Sequence[bytes]) -> bytes:
    return b"[" + b",".join(values) + b"]"


def _settle(path: Path) -> None:
    try:
        fs.settle(path)
    except FileNotFoundError:
        pass  # the router moved it on meanwhile


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
