"""`loom agent retry`: failed messages go back into the inbox, for another attempt under a new reply name."""

from __future__ import annotations

import click

from loom.cli import printing
from loom.cli.homes import existing_home
from loom.cli.send import rouse
from loom.spool import agents, mailbox
from loom.wire.errors import NotFound


@click.command("retry")
@click.argument("name")
@click.argument("messages", nargs=-1, metavar="[MSG…]")
def cli(name: str, messages: tuple[str, ...]) -> None:
    """Put failed messages of agent NAME back into its inbox: those named, else all. Prints their names."""
    home = existing_home()
    agent = agents.find(home, name)
    failed = mailbox.failed(agent)
    wanted = [message.removesuffix(".msg") for message in messages]
    for stem in wanted:
        if stem not in failed:
            known = f"{len(failed)} failed messages lie in {agent.failed}" if failed else f"nothing of {name} failed"
            raise NotFound(f"no failed message {stem!r} of {name}", hint=known)
    for stem in wanted or failed:
        if mailbox.retry(agent, name, stem, agents.now_text()):
            printing.line(stem)
    if not failed:
        printing.note(f"nothing of {name} failed")
    else:
        rouse(home, agent)
