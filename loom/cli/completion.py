"""`loom completion SHELL`: the script that a shell reads, and the answers that it asks for each time.

click knows how each shell asks; what can be answered stands in the table of commands and in the home. The script calls
`loom` with the variable COMPLETE set, so no other word or option is taken for it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence

import click
from click.shell_completion import CompletionItem, get_completion_class

from loom.cli import printing, weaving
from loom.cli.groups import LazyGroup, Table
from loom.cli.homes import is_reserved
from loom.models.registry import BUILTINS, PROVIDERS
from loom.spool import agents, config, goals, schedules, secrets
from loom.spool.layout import Home, default_home, programs_dir
from loom.wire import exits, ids
from loom.wire import settings as wire
from loom.wire.errors import LoomError

COMPLETE = "_LOOM_COMPLETE"
SHELLS = ("bash", "zsh", "fish")

# A shell takes a completion as if it were typed: a name that it would read in another way is not offered.
_TYPED = re.compile(r"[A-Za-z0-9._:/@+-]+")


def _models(home: Home) -> list[str]:
    """The built-in ones, those of the settings, and those that agents have. Servers are not asked."""
    found = {"builtin", *(f"builtin/{name}" for name in BUILTINS)}
    try:
        settings = config.load(home, os.environ).values
        found.update(value for key, value in settings.items() if key.partition(".")[0] in ("model", "models"))
    except (OSError, LoomError):
        pass  # every other command says what is wrong with them
    for agent in agents.each(home):
        if not is_reserved(agent.name) and ids.is_agent(agent.name):
            found.add(agents.read_hint(agent.model))
    return sorted(name for name in found if _TYPED.fullmatch(name))


def _providers(home: Home) -> list[str]:
    return sorted({*PROVIDERS, *wire.providers(config.load(home, os.environ).values)})


def _tools(home: Home) -> list[str]:
    """Those of the home and the shipped ones."""
    places = [place for place in (home.tools, programs_dir("tools")) if place.is_dir()]
    found = {path.name for place in places for path in place.iterdir() if path.is_file() and os.access(path, os.X_OK)}
    return sorted(filter(ids.is_agent, found))


def _pipes(home: Home) -> list[str]:
    return sorted(weaving.pipes(home))


_Known = Callable[[Home], Sequence[str]]
# Of which names an argument is one, by the command's first word. Arguments of other names are not looked up.
_NAMES: dict[str, _Known] = {
    "agent": agents.names,
    "send": agents.names,
    "goal": goals.names,
    "schedule": schedules.names,
    "secret": secrets.names,
    "model": _models,
    "pipe": _pipes,
}
_ARGUMENTS = ("name", "names", "goal")
# Arguments and options that mean the same in every command; of a list, names are taken one by one.
_ANYWHERE: dict[str, _Known] = {
    "model": _models,
    "tools": _tools,
    "pipe": _pipes,
    "to": agents.names,
    "source": agents.names,
    "provider": _providers,
}
_LISTS = ("tools",)


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

    def __init__(self, known: _Known, *, is_list: bool = False) -> None:
        self._known, self._is_list = known, is_list

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        try:
            names = self._known(Home(default_home(os.environ).absolute()))
        except (OSError, LoomError):
            return []
        before, comma, begun = incomplete.rpartition(",") if self._is_list else ("", "", incomplete)
        chosen = before.split(",")
        return [CompletionItem(f"{before}{comma}{n}") for n in names if n.startswith(begun) and n not in chosen]


class _Group(LazyGroup):
    """A group whose commands' arguments know the names they may have."""

    def __init__(self, name: str, table: Table, known: _Known | None = None) -> None:
        super().__init__(name, table, "")
        self._known = known

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        command = super().get_command(ctx, cmd_name)
        known = self._known or _NAMES.get(cmd_name)
        if isinstance(command, LazyGroup):
            return _Group(cmd_name, command.table, known)
        for parameter in command.params if command is not None else ():
            name = parameter.name or ""
            if known is not None and isinstance(parameter, click.Argument) and name in _ARGUMENTS:
                parameter.type = _Names(known)
            elif name in _ANYWHERE and not getattr(parameter, "is_flag", False):
                parameter.type = _Names(_ANYWHERE[name], is_list=name in _LISTS)
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
