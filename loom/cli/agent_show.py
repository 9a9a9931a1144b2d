"""`loom agent show`: everything about one agent, for a person or as one JSON object."""

from __future__ import annotations

import os
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from loom.cli import agent_state, printing
from loom.cli.homes import look_into_home
from loom.spool import agents, crashes, fs, mailbox
from loom.spool.layout import AgentDir
from loom.wire import agent as wire
from loom.wire.errors import Config
from loom.wire.jsontext import loads_object
from loom.wire.times import day_of


@click.command("show")
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def cli(name: str, as_json: bool) -> None:
    """Show the settings, the state, the mail and the last crash of agent NAME."""
    home = look_into_home()
    agent = agents.find(home, name)
    state = asdict(agent_state.of(home, agent))
    about: dict[str, Any] = {"v": 1, **state, "mail": mail(agent), "spec": _spec(agent)}
    about["last_failure"] = _last_failure(agent)
    about["last_exit"] = agents.read_hint(agent.last_exit)
    about["last_crash"] = crashes.newest(agent)
    about["directory"] = str(agent.path)
    if as_json:
        printing.json_line(about)
    else:
        _print(about, agent)


def _spec(agent: AgentDir) -> dict[str, Any] | str:
    try:
        return loads_object(wire.encode(agents.read_spec(agent)))
    except Config as error:
        return error.line()


def _last_failure(agent: AgentDir) -> dict[str, Any] | None:
    """The newest failed message and what its error.json says, or None."""
    try:
        failed = mailbox.failed(agent)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return {"message": failed[-1], **(mailbox.read_error(agent, failed[-1]) or {})} if failed else None


def mail(agent: AgentDir) -> dict[str, int]:
    """How many messages stand where; `processed_today` by the UTC date of their names."""
    today = agent.inbox / ".processed" / day_of(time.time_ns() // 1_000_000)
    return {
        "waiting": agents.waiting(agent),
        "in_progress": _count(agent.in_progress),
        "processed_today": _count(today),
        "failed": _count(agent.failed),
        "unreadable": _count(agent.unreadable, ""),
        "outbox": _count(agent.outbox),
    }


def _count(directory: Path, suffix: str = ".msg") -> int:
    try:
        names = os.listdir(directory)
    except (FileNotFoundError, NotADirectoryError):
        return 0
    return sum(1 for n in names if n.endswith(suffix) and not n.startswith(".") and not n.endswith(".error.json"))


def _print(about: dict[str, Any], agent: AgentDir) -> None:
    spec = about["spec"]
    pid = f", pid {about['pid']}, since {about['started_at']}" if about["pid"] else ""
    on = [("working on", f"{about['message']}, since {about['message_since']}")] if about["message"] else []
    rows = [
        ("name", about["name"]),
        ("status", about["status"] + pid),
        *on,
        *([("reason", about["reason"])] if about["reason"] else []),
        ("want", about["want"]),
        ("mail", ", ".join(f"{count} {what.replace('_', ' ')}" for what, count in about["mail"].items())),
    ]
    if failure := about["last_failure"]:
        rows.append(("last failure", f"{failure['message']}: {failure.get('last_error', '')}"))
        rows.append(("", f"to try again: loom agent retry {agent.name}"))
    if isinstance(spec, str):
        rows.append(("agent.json", spec))
    else:
        told = {key: value for key, value in spec.items() if key not in ("v", "name") and value not in ([], {})}
        rows += [(key, _words(value)) for key, value in told.items()]
    rows += [("prompt", _first_line(agent)), ("last exit", about["last_exit"] or "-")]
    crash = about["last_crash"]
    if crash:
        how = crash.get("signal") or f"status {crash.get('exit_code')}"
        rows.append(("last crash", f"{crash.get('ts')}: {how} {crash.get('last_error', '')}"))
        rows += [("", line) for line in str(crash.get("stderr", "")).splitlines()[-3:]]
    rows += [("directory", str(agent.path)), ("logs", str(agent.logs))]
    width = max(len(key) for key, _ in rows)
    for key, value in rows:
        printing.line(printing.escaped(f"{key:<{width}}  {' '.join(str(value).split())}"))


def _words(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k}={v}" for k, v in value.items())
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return "-" if value is None else str(value)


def _first_line(agent: AgentDir) -> str:
    try:
        text = fs.read(agent.prompt, 1 << 20).decode("utf-8", "replace").strip()
    except (FileNotFoundError, fs.NotRegular, fs.TooLarge):
        return "-"
    first = text.split("\n", 1)[0][:100]
    return f"{first} […]" if len(text) > len(first) else first or "-"
