"""`loom secret set | ls | rm`: stored keys. A value is read from stdin or typed unseen, never given as an argument."""

from __future__ import annotations

import sys

import click

from loom.cli import input as texts
from loom.cli import printing
from loom.cli.groups import LazyGroup
from loom.cli.homes import existing_home, look_into_home, open_home
from loom.spool import secrets
from loom.wire.errors import BadInput, Usage

cli = LazyGroup(
    "secret",
    {
        "set": ("loom.cli.secret:set_secret", "store a key; its value comes from stdin or is typed unseen"),
        "ls": ("loom.cli.secret:ls", "names of the stored keys"),
        "rm": ("loom.cli.secret:rm", "remove a stored key"),
    },
    help="Store, list and remove keys. No command prints one.",
)


@click.command("set")
@click.argument("name")
@click.argument("value", nargs=-1, metavar="")
def set_secret(name: str, value: tuple[str, ...]) -> None:
    """Store the key NAME, for a provider under the provider's name: loom secret set openai < key.txt."""
    secrets.check_name(name)
    if value:  # and it is not repeated here
        raise Usage("a key is never given as an argument, where others could read it", hint="pipe it in, or type it")
    text = _typed(name) if texts.stdin_is_terminal() else _piped()
    home = open_home()
    secrets.put(home, name, text)
    printing.note(f"{name} is stored in {home.secrets}; agents that wait for it start by themselves")


def _typed(name: str) -> str:
    import getpass

    try:
        return getpass.getpass(f"value of {name} (not shown): ", stream=sys.stderr)
    except EOFError:
        raise BadInput("no value was typed") from None


def _piped() -> str:
    data = b"" if sys.stdin is None else sys.stdin.buffer.read(secrets.MAX_BYTES + 1)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise BadInput("the value on stdin is not text") from None


@click.command("ls")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def ls(as_json: bool) -> None:
    """Print the names of the stored keys."""
    names = secrets.names(look_into_home())
    if as_json:
        printing.json_line({"v": 1, "secrets": names})
        return
    for name in names:
        printing.line(name)


@click.command("rm")
@click.argument("name")
def rm(name: str) -> None:
    """Remove the stored key NAME."""
    secrets.remove(existing_home(), name)
    printing.note(f"{name} is removed; agents that run keep it until they are started again")
