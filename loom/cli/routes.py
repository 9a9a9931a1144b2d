"""`loom route`, `loom unroute` and `loom routes`: who hears whom (docs/weave.md)."""

from __future__ import annotations

import click

from loom.cli import printing, weaving
from loom.cli.ensure import ensure_supervisor
from loom.cli.homes import existing_home, look_into_home
from loom.cli.words import nearest
from loom.core.routing import circle, end_of
from loom.spool import agents, tally
from loom.spool.layout import Home
from loom.wire import ids
from loom.wire.errors import NotFound, Usage
from loom.wire.weave import Route

_TO = click.option("--to", "to", required=True, metavar="B", help="The agent that hears it.")
_PIPE = click.option("--pipe", "pipe", default="", metavar="P", help="Through an instance of this pipe.")


@click.command("route")
@click.argument("source", metavar="A")
@_TO
@_PIPE
def route(source: str, to: str, pipe: str) -> None:
    """Have agent B hear what agent A answers, its failures too."""
    home = existing_home()
    with weaving.held(home):
        for name in (source, to):
            agents.find(home, ids.check_agent(name))
        pipes = weaving.pipes(home)
        if pipe and pipe not in pipes:
            raise NotFound(f"there is no pipe {pipe!r}", hint=nearest(pipe, pipes) or "list them with: loom pipes")
        new, routes = Route(source, to, pipe), weaving.routes(home)
        if any((r.source, r.to, r.pipe) == (source, to, pipe) for r in routes):
            printing.note(f"{to} hears {source} already")
            return
        if way := circle([*((r.source, r.to) for r in routes), (source, to)]):
            raise Usage(f"circular route detected: {' → '.join(way)}", hint="see: loom routes")
        if pipe:
            weaving.write_instance(home, new, pipes[pipe])
        weaving.write_routes(home, [*routes, new])
        ensure_supervisor(home)
    printing.note(f"{to} hears {source}{f' through {pipe}' if pipe else ''}")


@click.command("unroute")
@click.argument("source", metavar="A")
@_TO
@_PIPE
def unroute(source: str, to: str, pipe: str) -> None:
    """End a route. An instance of a pipe is stopped and keeps what it holds; the same route goes on with it."""
    home = existing_home()
    with weaving.held(home):
        routes = weaving.routes(home)
        gone = [r for r in routes if (r.source, r.to, r.pipe) == (source, to, pipe)]
        if not gone:
            near = [f"{r.source} --to {r.to}" + (f" --pipe {r.pipe}" if r.pipe else "") for r in routes]
            hint = nearest(f"{source} --to {to}" + (f" --pipe {pipe}" if pipe else ""), near) or "see: loom routes"
            raise NotFound(f"there is no such route from {source} to {to}", hint=hint)
        left = [r for r in routes if r not in gone]
        weaving.write_routes(home, left)
        if pipe and not any(end_of(r) == end_of(gone[0]) for r in left):
            weaving.want(home.agent(end_of(gone[0])), "down")
    if weave := gone[0].weave:
        printing.note(f"the route belongs to the weave {weave!r}: its next `loom up` brings it back")
    printing.note(f"{to} does not hear {source} any more")


@click.command("routes")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def routes(as_json: bool) -> None:
    """List the routes, how many messages went along each and when the last did."""
    home = look_into_home()
    counts = tally.read(home.agent("router"))
    rows = []
    for one in weaving.routes(home):
        counted = counts.get((one.source, end_of(one)), tally.Count())
        rows.append(
            {
                "from": one.source,
                "pipe": one.pipe,
                "to": one.to,
                "weave": one.weave,
                "messages": counted.messages,
                "last": counted.last,
                "trouble": _trouble(home, one),
            }
        )
    if as_json:
        printing.json_line({"v": 1, "routes": rows})
        return
    head: tuple[str, ...] = ("FROM", "PIPE", "TO", "WEAVE", "MESSAGES", "LAST")
    cells: list[tuple[str, ...]] = [
        (
            str(row["from"]),
            str(row["pipe"]) or "-",
            str(row["to"]),
            str(row["weave"]) or "-",
            str(row["messages"]),
            str(row["last"])[:19].replace("T", " ") or "-",
        )
        for row in rows
    ]
    if any(row["trouble"] for row in rows):
        head = (*head, "TROUBLE")
        cells = [(*cell, str(row["trouble"]) or "-") for cell, row in zip(cells, rows, strict=True)]
    printing.table(head, cells)


def _trouble(home: Home, one: Route) -> str:
    """Why nothing will get through, empty when it will."""
    if name := weaving.missing(home, one):
        return f"there is no agent {name!r}"
    for name in (end_of(one), one.to):
        if agents.read_want(home.agent(name)) not in ("up", "demand"):
            return f"{name} is not wanted up: its mail waits"
    return ""
