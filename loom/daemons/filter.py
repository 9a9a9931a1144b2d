"""A filter: one message, one turn, one answer, and no mailbox (docs/protocol.md section 7).

    filters/<message name>/     lock          held by whoever works on it
                                agent.json    which model, tools, environment and workspace
                                prompt.md     its system prompt, when there is one
                                <name>.msg    the message; with it the directory counts
                                turns/        the turn record; its last reply is the answer

Any number run side by side under one agent's name: they share nothing that changes but the log, whose lines are
appended whole. A directory whose answer was given is removed; one that was interrupted, or failed for a reason that
may pass, stays and is gone on with by `resume`, which repeats no finished call and pays for no recorded reply.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from loom.daemons import surroundings, turnloop
from loom.daemons.surroundings import WORKSPACE_ENV, agent_env, grant, model_context, read_prompt, tool_dirs
from loom.daemons.turnloop import Emit, Outcome, Patience, Tools
from loom.models.base import Model
from loom.models.registry import open_model
from loom.proc.stopping import Leaving, Stopping
from loom.roles import chat
from loom.spool import bodies, fs, locks, mailbox, threads
from loom.spool.layout import AgentDir, Box, Home
from loom.spool.logs import Log
from loom.spool.turns import Turn
from loom.wire import agent as wire
from loom.wire import ids
from loom.wire import message as wire_message
from loom.wire.agent import AgentSpec
from loom.wire.chat import ChatRequest, ToolCall, usage_to_json
from loom.wire.errors import BadInput, LoomError, NotFound, TryLater, WorkFailed
from loom.wire.message import Message, Unreadable
from loom.wire.record import record, replace


@record
class Manner:
    """How a filter works, apart from what it is asked.

    emit       gets the events of loom.daemons.turnloop and {"event": "start", …} before them
    streaming  text is shown as it comes
    timeout_s  for the whole answer; None: no limit
    """

    stopping: Stopping
    emit: Emit
    streaming: bool = True
    timeout_s: float | None = None


def prepare(home: Home, spec: AgentSpec, place: Path) -> tuple[Model, Tools, int | None, Patience]:
    """A model that can be asked, tools that can be called, the model's window, what a turn bears.

    place   the filter's directory, which its programs are told: by the agent's own they would be taken for what the
            agent of this name has started, and would end with it
    Raises what keeps them from working.
    """
    surroundings.check_schema(spec)
    directory = home.agent(spec.name)
    cwd = spec.env.get(WORKSPACE_ENV) or os.getcwd()
    env = agent_env(home, spec, place, cwd)
    # A model is named from where the caller stands; tools work in the workspace.
    context = model_context(home, {**os.environ, **spec.env}, os.getcwd(), env)
    model = open_model(spec.model, context)
    tokens = surroundings.window(context, model.name, spec.options)
    tools = grant(spec.tools, tool_dirs(home, directory), env, cwd, surroundings.tool_s(home, spec.options))
    return model, tools, tokens, surroundings.patience(home, spec.options, context)


class Filter:
    """One filter and its directory. After `work`, `left` tells whether the directory stays to be resumed.

    thread  the conversation it belongs to, held until it has ended; None without one
    """

    def __init__(self, home: Home, place: AgentDir, spec: AgentSpec, prompt: str, message: Message) -> None:
        self.home, self.place, self.spec, self.prompt, self.message = home, place, spec, prompt, message
        self.model, self.tools, self.window, self.patience = prepare(home, spec, place.path)
        self.thread: threads.Thread | None = None
        self.stem = place.name
        self.left = True
        self.log = Log(home.agent(spec.name).logs, os.environ.get("LOOM_LOG", "info"), filter=self.stem)

    def work(self, manner: Manner) -> Outcome:
        """Answer the message. Raises what turnloop.run raises."""
        self.log.info("filter_start", model=self.spec.model, pid=os.getpid())
        try:
            outcome = self._answer(manner)
        except BaseException as error:
            self.left = not isinstance(error, BadInput | WorkFailed)
            kind = error.kind if isinstance(error, LoomError) else type(error).__name__
            self.log.error("filter_end", error_type=kind, error=str(error), left=self.left)
            raise
        else:
            self.left = False
            self.log.info("filter_end", steps=outcome.steps, **usage_to_json(outcome.usage))
            return outcome
        finally:
            self.log.close()

    def _answer(self, manner: Manner) -> Outcome:
        about = {"agent": self.spec.name, "message": self.stem, "model": self.model.name}
        if self.message.thread:
            about["thread"] = self.message.thread
        manner.emit({"event": "start", "v": 1, **about})
        asked = surroundings.asked(self.home, self.spec, self.message, self.window)
        begun = chat.begin(
            self.model.name,
            self.prompt,
            self.thread.history if self.thread is not None else (),
            asked,
            list(self.tools.specs.values()),
            surroundings.sampling(self.spec.options),
        )
        if begun.left_out:
            self.log.warning("history_cut", what=begun.left_out)
            manner.emit({"event": "history_cut", "what": begun.left_out})
        outcome = self._turn(begun.request, manner)
        if self.thread is not None:
            self.thread.append(self.stem, [("user", asked.text), ("assistant", outcome.text)])
        return outcome

    def _turn(self, first: ChatRequest, manner: Manner) -> Outcome:
        turn = Turn(self.place.turn(self.stem, 0), self.home.blobs)
        try:
            me = locks.own_incarnation()
            turn.open(me.boot, me.epoch)
            return turnloop.run(
                turn,
                first,
                self.model,
                _stoppable(self.tools, manner.stopping),
                manner.stopping,
                self.log,
                emit=manner.emit,
                streaming=manner.streaming,
                patience=self.patience,
                deadline_ms=None if manner.timeout_s is None else int((time.time() + manner.timeout_s) * 1000),
            )
        except Leaving:
            turn.release()
            raise
        finally:
            turn.close()


def _stoppable(tools: Tools, stopping: Stopping) -> Tools:
    """The tools, each call of which a signal or the time limit ends: at a terminal nobody waits for a tool."""
    run = tools.run
    if run is None:
        return tools

    def stoppable(call: ToolCall) -> Mapping[str, Any]:
        with stopping.interruptible():
            return run(call)

    return Tools(tools.specs, stoppable, tools.longest_s)


@contextmanager
def begin(
    home: Home, spec: AgentSpec, prompt: str, body: str, thread: str = "", images: Sequence[tuple[str, bytes]] = ()
) -> Iterator[Filter]:
    """A new filter, whose directory goes at the end unless it is `left`. `images` are (media type, bytes) each.

    Raises what is wrong with model or tools, and TryLater for a busy conversation, before it makes a directory.
    """
    now_ms = time.time_ns() // 1_000_000
    stem = ids.message_stem(now_ms, os.urandom(10))
    place = AgentDir(home.filter_box(stem).path)
    message = Message(ids.ulid_of(stem), "user", now_ms, body, thread=thread)
    begun = Filter(home, place, spec, prompt, message)
    with _conversation(home, spec.name, thread) as begun.thread:
        fs.ensure_dir(place.path)
        lock = locks.acquire(place.lock)
        assert lock is not None, "the name is new"
        with lock:
            files = [(place.spec, wire.encode(spec))]
            if prompt:
                files.append((place.prompt, prompt.encode()))
            try:
                begun.message = message = replace(message, data=bodies.attach(home.blobs, images))
                fs.publish_all([*files, (_message_path(place), bodies.encode(home.blobs, message))])
            except BaseException:
                _remove(place)  # nothing was accepted
                raise
            with _kept(begun):
                yield begun


@contextmanager
def _conversation(home: Home, agent: str, name: str) -> Iterator[threads.Thread | None]:
    """A conversation, held for one turn; None when there is no name for one."""
    if not name:
        yield None
        return
    thread = threads.hold(home.agent(agent), name)
    if thread is None:
        raise TryLater(
            f"another turn of conversation {name!r} of {agent} is going on",
            hint="try again when it has ended, or use another --thread",
            kind="thread_busy",
        )
    try:
        yield thread
    finally:
        thread.close()


@contextmanager
def resume(home: Home, name: str, stem: str = "") -> Iterator[Filter]:
    """A filter that was left: the one named, else the newest of this agent's name that nobody works on.

    Raises NotFound when there is none, TryLater when other processes are at work on all of them.
    """
    known = left(home, name)
    busy = ""
    for candidate in known if not stem else [stem] if stem in known else []:
        place = AgentDir(home.filter_box(candidate).path)
        lock = locks.acquire(place.lock)
        if lock is None:
            busy = busy or candidate
            continue
        with lock:
            if _message_path(place).exists():
                resumed = _load(home, place)
                thread = _conversation(home, name, resumed.message.thread)
                with thread as resumed.thread, _kept(resumed):
                    yield resumed
                return
        fs.remove_tree(place.path)  # it was finished between our two looks
    if busy:
        raise TryLater(f"the filter {busy} of {name} is at work in another process", hint="wait for its answer")
    what = f"no filter {stem} of {name} was left" if stem else f"no filter of {name} was left unfinished"
    raise NotFound(f"{what} in {home.filters}", hint=f"there is: {', '.join(known[:5])}" if known else "")


@contextmanager
def _kept(filter_: Filter) -> Iterator[None]:
    """The directory goes at the end, unless the filter is left."""
    try:
        yield
    finally:
        if not filter_.left:
            _remove(filter_.place)


def _remove(place: AgentDir) -> None:
    """A filter's directory, the message first, because with it the rest counts."""
    try:
        fs.remove(_message_path(place))
        fs.remove_tree(place.path)
    except OSError:
        pass  # litter: gc sweeps it


def left(home: Home, name: str) -> list[str]:
    """Filters of this agent's name whose directory is there, newest first, those at work included."""
    try:
        stems = sorted((n for n in os.listdir(home.filters) if ids.is_stem(n)), reverse=True)
    except FileNotFoundError:
        return []
    return [stem for stem in stems if _is_of(AgentDir(home.filter_box(stem).path), name)]


def _message_path(place: Box) -> Path:
    return place.path / f"{place.path.name}.msg"


def _is_of(place: AgentDir, name: str) -> bool:
    try:
        spec = wire.decode(fs.read(place.spec, 1 << 20), str(place.spec))
    except (OSError, LoomError, fs.NotRegular, fs.TooLarge):
        return False
    return spec.name == name and _message_path(place).exists()


def _load(home: Home, place: AgentDir) -> Filter:
    """The filter in this directory. Raises BadInput when its message is damaged."""
    spec = wire.decode(fs.read(place.spec, 1 << 20), str(place.spec))
    try:
        message = wire_message.decode(mailbox.read_message(_message_path(place)), place.name)
    except Unreadable as error:
        raise BadInput(f"the message of filter {place.name} cannot be read: {error}", hint="start it anew") from None
    return Filter(home, place, spec, read_prompt(place), message)
