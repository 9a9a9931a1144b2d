"""`loom config`: every setting, its value and where it comes from; with --docs the page made from the same table."""

from __future__ import annotations

import os
from math import inf
from typing import Any

import click

from loom.cli import printing
from loom.cli.homes import look_into_home
from loom.spool import config as settings_file
from loom.wire.settings import TABLE, Setting


@click.command("config")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@click.option("--docs", is_flag=True, help="Print docs/settings.md instead: what every setting does.")
def cli(as_json: bool, docs: bool) -> None:
    """Print the settings in force: key, value, and the file and line or the variable it comes from."""
    if docs:
        printing.write(page())
        return
    home = look_into_home()
    loaded = settings_file.load(home, os.environ)
    rows = [
        {"key": key, "value": value, "origin": loaded.origin.get(key, "default")}
        for key, value in sorted(loaded.values.items())
    ]
    if as_json:
        printing.json_line({"v": 1, "file": str(home.config), "settings": rows})
        return
    printing.table(("KEY", "VALUE", "FROM"), [(r["key"], shown(r["value"]), r["origin"]) for r in rows])
    printing.note(f"they are set in {home.config} or by weaves that are up; what each does: loom config --docs")


def shown(value: Any) -> str:
    """A value as it would stand in config.yml."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(str, value))}]"
    if isinstance(value, float):
        return f"{value:g}"
    return str(value) if value != "" else '""'


def page() -> str:
    """docs/settings.md."""
    lines = [
        "# Settings",
        "",
        "The settings of `$LOOM_HOME/config.yml`. A dot is a level of indentation, `*` a name of your choice:",
        "`providers.*.base_url` is written as",
        "",
        "    providers:",
        "      lab:",
        "        base_url: http://10.0.0.5:8000/v1",
        "",
        "An unknown key and a value of the wrong type are refused with status 78, the file and line, and the nearest",
        "right word.",
        "A [loom.yml](weave.md#settings-of-a-weave) may say settings too; while it is up they win over `config.yml`.",
        "`loom config` shows what is in force and where it comes from. The variables `LOOM_MODEL` and",
        "`LOOM_DEFAULT_PROVIDER` win over the files, flags win over all.",
        "",
        "This page is printed by `loom config --docs`, from the table that the program itself reads.",
        "",
        "| key | type | default | what it does |",
        "|---|---|---|---|",
    ]
    return "\n".join([*lines, *map(_row, TABLE)]) + "\n"


def _row(setting: Setting) -> str:
    kind = setting.type
    if any(setting.choices):
        kind = " or ".join(f"`{choice}`" for choice in setting.choices if choice)
    elif setting.most < inf:
        kind = f"{kind}, {setting.least:g} to {setting.most:g}"
    elif setting.least and kind in ("int", "float"):
        kind = f"{kind}, at least {setting.least:g}"
    default = f"`{shown(setting.default)}`" if setting.default not in ("", ()) else ""
    return f"| `{setting.key}` | {kind} | {default} | {setting.what} |"
