"""`loom send`: a message into an agent's inbox, durably; with --wait its answer (docs/cli.md, docs/protocol.md)."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence

import click

from loom.cli import agent_state, attaching, printing
from loom.cli import input as texts
from loom.cli.attaching import Image
from loom.cli.homes import existing_home
from loom.cli.params import Count, Seconds
from loom.spool import agents, bodies, locks, mailbox, wake
from loom.spool.home import disk_error
from loom.spool.layout import AgentDir, Home
from loom.wire import exits, ids
from loom.wire.errors import BadInput, Deadline, LoomError, NotFound, TryLater, Usage, WorkFailed
from loom.wire.message import Message

SENDER = "user"
_BATCH = 512  # messages that share one sync of the directory
_POLL_S = (0.005, 0.2)


@click.command("send")
@click.argument("name")
@click.argument("text", required=False)
@click.option("--stdin", "from_stdin", is_flag=True, help="Send what comes on stdin (the default without TEXT).")
@click.option("--file", metavar="F", help="Send the content of a file.")
@click.option("--attach", metavar="FILE", multiple=True, help="An image or a text file to go with it; repeatable.")
@click.option("--stdin-lines", is_flag=True, help="Send each line of stdin as a message of its own.")
@click.option("--thread", metavar="T", help="The conversation it belongs to; `main` by default.")
@click.option("--wait", is_flag=True, help="Wait for the answer and print it.")
@click.option("--timeout", type=Seconds(), metavar="S", help="With --wait: give up after so many seconds.")
@click.option("--name", "stem", metavar="STEM", help="The message's name, so that sending twice is sending once.")
@click.option(
    "--max-input",
    type=Count(1),
    default=texts.MAX_BYTES,
    show_default=True,
    metavar="BYTES",
    help="Refuse a longer text.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def cli(
    name: str,
    text: str | None,
    from_stdin: bool,
    file: str | None,
    attach: tuple[str, ...],
    stdin_lines: bool,
    thread: str | None,
    wait: bool,
    timeout: float | None,
    stem: str | None,
    max_input: int,
    as_json: bool,
) -> int:
    """Deliver TEXT to the agent NAME and print the message's name.

    It is accepted, and survives a power cut, once the name is printed. An agent that is stopped or dead keeps it
    until it is started again. With --wait the answer is printed instead of the name; an answer that reports a
    failure goes to stderr and ends with 1.
    """
    if sum((text is not None, from_stdin, file is not None, stdin_lines)) > 1:
        raise Usage("TEXT, --stdin, --stdin-lines and --file are several inputs; give one of them")
    if stdin_lines and (wait or stem is not None or attach):
        raise Usage("--stdin-lines sends many messages and does not go with --wait, --name or --attach")
    if timeout is not None and not wait:
        raise Usage("--timeout needs --wait")
    if thread is not None:
        ids.check_thread(thread)
    body = _body(text, file, max_input, asked=from_stdin or stdin_lines)
    images, attached = attaching.read(attach, max_input)
    home = existing_home()
    agent = agents.find(home, name)
    if stdin_lines:
        return _send_lines(home, agent, body, thread or "", as_json)
    stem = _checked_stem(stem) if stem is not None else ids.message_stem(_now_ms(), os.urandom(10))
    attempt = mailbox.attempts(agent, stem)
    try:
        new = mailbox.deliver(agent, stem, _encode(home, stem, body + attached, thread or "", images))
    except mailbox.Conflict as error:
        raise BadInput(str(error), hint="choose another --name") from None
    if wait:
        try:
            if agent_state.is_served(agent):
                _wake_for(home, agent, stem)
            return _print_reply(home, agent, stem, attempt, timeout, as_json)
        except LoomError as error:  # the message is accepted all the same: who sent it must know its name
            error.about = {"agent": name, "message": stem}
            raise
    rouse(home, agent)
    if as_json:
        printing.json_line({"v": 1, "agent": name, "message": stem, "new": new, "want": agents.read_want(agent)})
    else:
        printing.line(stem)
    return exits.DONE


def _body(text: str | None, file: str | None, limit: int, *, asked: bool) -> str:
    """`asked`: stdin was named, so a terminal will do."""
    if text is not None:
        return texts.check(text, "TEXT", "send")
    if file is not None:
        return texts.read_file(file, limit, "send")
    if texts.stdin_is_terminal() and not asked:
        raise Usage("nothing to send", hint="give TEXT, --file F, or pipe it in")
    return texts.read_stdin(limit, "send")


def _checked_stem(stem: str) -> str:
    stem = stem.removesuffix(ids.MESSAGE_SUFFIX)
    if not ids.is_stem(stem):
        raise Usage(f"--name {stem!r} is no message's name", hint="13 digits, '-', 26 Crockford characters")
    return stem


def _encode(home: Home, stem: str, body: str, thread: str, images: Sequence[Image] = ()) -> bytes:
    """The message's bytes follow from its name and content alone, so that sending it twice is the same message."""
    data = bodies.attach(home.blobs, images)
    message = Message(ids.ulid_of(stem), SENDER, ids.time_of(stem), body, thread=thread, data=data)
    return bodies.encode(home.blobs, message)


def _send_lines(home: Home, agent: AgentDir, body: str, thread: str, as_json: bool) -> int:
    """One message a line, blank lines left out; they are answered in the order of the lines."""
    lines = [line for line in body.split("\n") if line.strip()]
    draw = int.from_bytes(os.urandom(10), "big") >> 1  # room to count up within the same millisecond
    now_ms = _now_ms()
    stems = [ids.message_stem(now_ms, (draw + number).to_bytes(10, "big")) for number in range(len(lines))]
    for start in range(0, len(lines), _BATCH):
        batch = zip(stems[start : start + _BATCH], lines[start : start + _BATCH], strict=True)
        mailbox.deliver_all(agent, [(stem, _encode(home, stem, line, thread)) for stem, line in batch])
        if not as_json:
            printing.write("".join(f"{stem}\n" for stem in stems[start : start + _BATCH]))
    rouse(home, agent)
    if as_json:
        printing.json_line({"v": 1, "agent": agent.name, "messages": stems, "want": agents.read_want(agent)})
    return exits.DONE


def rouse(home: Home, agent: AgentDir) -> None:
    """See that accepted mail is worked on. What hinders that is told, but no failure: after one people send again."""
    if not agent_state.is_served(agent):
        printing.note(agent_state.why_unserved(agent))
        return
    try:
        wake_up(home, agent)
    except LoomError as error:
        printing.note(f"accepted; its mail waits, because {error.line()}")
    except OSError as error:
        printing.note(f"accepted; its mail waits, because {disk_error(error, 'no supervisor could be started').line()}")


def _wake_for(home: Home, agent: AgentDir, stem: str) -> None:
    """For --wait: the error says how to ask again for what was accepted."""
    try:
        wake_up(home, agent)
    except TryLater as error:
        again = f"the message is accepted; ask again with: loom send {agent.name} TEXT --name {stem} --wait"
        error.hint = f"{error.hint}; {again}" if error.hint else again
        raise


def wake_up(home: Home, agent: AgentDir) -> None:
    """Somebody must serve an agent that is wanted: a supervisor is started when none runs."""
    if agents.read_want(agent) in ("up", "demand") and not locks.is_held(home.supervisor_lock):
        from loom.cli.ensure import ensure_supervisor

        ensure_supervisor(home)
    wake.ring_agent(home.wake, agent.name)


def _print_reply(home: Home, agent: AgentDir, stem: str, attempt: int, timeout: float | None, as_json: bool) -> int:
    reply = await_reply(agent, stem, attempt, timeout)
    body = bodies.text(home.blobs, reply)
    if reply.error:
        data = reply.data or {}
        raise WorkFailed(
            f"{agent.name}: {body}", hint=str(data.get("hint", "")), kind=str(data.get("error_type", "")) or "error"
        )
    if as_json:
        told = {"v": 1, "agent": agent.name, "message": stem, "reply": f"{stem[:13]}-{reply.id}", "body": body}
        printing.json_line({**told, "data": dict(reply.data or {})})
    else:
        printing.write(body if body.endswith("\n") else f"{body}\n")
    return exits.DONE


def await_reply(agent: AgentDir, stem: str, attempt: int, timeout_s: float | None) -> Message:
    """The reply to a delivered message.

    attempt  how often it had failed before it was delivered (again)
    Raises TryLater as soon as nobody is going to answer, Deadline, and BadInput or NotFound for a message that
    will never have an answer.
    """
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    pause = _POLL_S[0]
    while True:
        gone = mailbox.find(agent, stem)  # before the reply, which is published first
        for tried in (attempt, attempt - 1):
            reply = mailbox.find_reply(agent, agent.name, stem, tried) if tried >= 0 else None
            if reply is not None and (tried == attempt or (gone is not None and gone.parent == agent.failed)):
                return reply
        if gone is None or gone.parent not in (agent.inbox, agent.in_progress):
            _raise_no_reply(agent, stem, gone is not None and gone.parent == agent.unreadable)
        if not agent_state.is_served(agent):
            raise TryLater(
                agent_state.why_unserved(agent),
                kind="not_running",
                hint=f"the message is accepted; ask again with: loom send {agent.name} TEXT --name {stem} --wait",
            )
        if deadline is not None and time.monotonic() > deadline:
            raise Deadline(
                f"no answer of {agent.name} to {stem} within {timeout_s:g} s; it is still being worked on",
                hint=f"ask again with: loom send {agent.name} TEXT --name {stem} --wait",
            )
        time.sleep(pause if deadline is None else min(pause, max(0.0, deadline - time.monotonic())))
        pause = min(pause * 1.3, _POLL_S[1])


def _raise_no_reply(agent: AgentDir, stem: str, unreadable: bool) -> None:
    if unreadable:
        raise BadInput(f"{agent.name} could not read {stem}", hint=f"see {agent.unreadable / stem}.msg.error.json")
    raise NotFound(
        f"{stem} was finished without an answer that is still kept", hint=f"see: loom agent logs {agent.name}"
    )


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
