"""Commands and groups of commands: one line for a wrong word, and no import of what was not asked for."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

import click

from loom.cli.words import unknown

Table = Mapping[str, tuple[str, str]]


class LazyGroup(click.Group):
    """A group whose commands are a table: name → (`module` or `module:attribute`, one line of help)."""

    def __init__(self, name: str, table: Table, help: str) -> None:
        super().__init__(name=name, help=help, no_args_is_help=False)
        self.table = table

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.table)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return load(self.table[cmd_name][0]) if cmd_name in self.table else None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0] if args else ""
        command = self.get_command(ctx, name)
        if command is None:
            raise unknown(name, self.table, ctx.command_path.removeprefix("loom "))
        return name, command, args[1:]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in self.table.items()])


def load(target: str) -> click.Command:
    """The command a table names."""
    module, _, attribute = target.partition(":")
    command: Any = getattr(import_module(module), attribute or "cli")
    return command  # type: ignore[no-any-return]
