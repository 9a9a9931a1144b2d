"""`loom completion SHELL`: the script that a shell reads, and the answers that it asks for each time.

click knows how each shell asks; what can be answered stands in the table of commands and in the home. The script calls
`loom` with the variable COMPLETE set, so no other word or option is taken for it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

import click
from click.shell_completion import CompletionItem, get_completion_class

from loom.cli import printing
from loom.cli.groups import LazyGroup, Table
from loom.spool import agents, goals, schedules, secrets
from loom.spool.layout import Home, default_home
from loom.wire import exits
from loom.wire.errors import LoomError

COMPLETE = "_LOOM_COMPLETE"
SHELLS = ("bash", "zsh", "fish")

# Of which names an argument is one, by the command's first word. Arguments of other names are not looked up.
_NAMES: dict[str, Callable[[Home], Sequence[str]]] = {
    "agent": agents.names,
    "send": agents.names,
    "goal": goals.names,
    "schedule": schedules.names,
    "secret": secrets.names,
}
_ARGUMENTS = ("name", "names", "goal")


@click.command("completion")
@click.argument("shell", type=click.Choice(SHELLS))
def cli(shell: str) -> None:
    """Print the script that completes commands, options and names in SHELL.

    bash: eval "$(loom completion bash)" in ~/.bashrc; zsh: the same in ~/.zshrc, after compinit; fish: loom completion
    fish >~/.config/fish/completions/loom.fish
    """
    kind = get_completion_class(shell)
    assert kind is not None
    printing.write(kind(click.Command("loom"), {}, "loom", COMPLETE).source())


class _Names(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """Names of what is in the home, whatever they are of. A home that is not there, or not readable, has none."""

    name = "name"

    def __init__(self, known: Callable[[Home], Sequence[str]]) -> None:
        self._known = known

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        try:
            names = self._known(Home(default_home(os.environ).absolute()))
        except (OSError, LoomError):
            return []
        return [CompletionItem(name) for name in names if name.startswith(incomplete)]


class _Group(LazyGroup):
    """A group whose commands' arguments know the names they may have."""

    def __init__(self, name: str, table: Table, known: Callable[[Home], Sequence[str]] | None = None) -> None:
        super().__init__(name, table, "")
        self._known = known

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        command = super().get_command(ctx, cmd_name)
        known = self._known or _NAMES.get(cmd_name)
        if isinstance(command, LazyGroup):
            return _Group(cmd_name, command.table, known)
        if command is not None and known is not None:
            for parameter in command.params:
                if isinstance(parameter, click.Argument) and parameter.name in _ARGUMENTS:
                    parameter.type = _Names(known)
        return command


def answer(table: Table, instruction: str) -> int:
    """Print what could stand where the shell's cursor is. A question that is none has no answer, and no error."""
    shell, _, what = instruction.partition("_")
    kind = get_completion_class(shell) if shell in SHELLS else None
    if kind is None or what != "complete":
        return exits.FAILED
    root = _Group("loom", table)
    flags = ("-q", "--quiet"), ("-v", "--verbose"), ("--debug",), ("--version",), ("-h", "--help")
    options = [click.Option(flag, is_flag=True) for flag in flags]
    root.params = [click.Option(["--home"], type=click.Path(file_okay=False)), *options]
    try:
        printing.write(kind(root, {}, "loom", COMPLETE).complete() + "\n")
    except LoomError:
        pass  # a command that does not exist has nothing to complete
    return exits.DONE
