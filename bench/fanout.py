"""A hundred independent subtasks of one model call of a second each, done by a hundred executors that wait already."""

from __future__ import annotations

import json
import subprocess
from functools import partial
from pathlib import Path

from measure import Row, Table, in_turn
from world import LOOM, PEERS, environment, far_side, peer_python, scratch

from loom.spool import goals
from loom.spool.layout import Home

COUNT = 100


def run(quick: bool) -> Table:
    table = Table(
        "fanout", "from the first subtask.started to the last subtask.applied in the journal, planning excluded"
    )
    count = 20 if quick else COUNT
    with scratch() as place, far_side(latency_s=1.0) as url:
        env = environment(place, OPENAI_API_KEY="sk-bench", OPENAI_BASE_URL=f"{url}/v1")
        home = Home(place / ".loom")
        _configure(place, home, count, url)
        try:
            cases = {f"loom, {count} executors": partial(_goal, home, env, place)}

            def peer(name: str) -> float:
                argv = [
                    str(peer_python(name)),
                    str(PEERS / f"fanout_{name.replace('-', '_')}.py"),
                    str(count),
                    str(place),
                ]
                done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=300)
                if done.returncode:
                    raise RuntimeError(done.stderr.strip().splitlines()[-1][:150])
                return float(done.stdout) * 1000

            cases |= {name: partial(peer, name) for name in ("langgraph", "dbos")}
            table.rows = in_turn(cases, 2 if quick else 5)
        finally:
            subprocess.run([str(LOOM), "supervisor", "stop"], env=env, capture_output=True)
    table.rows.append(Row("the ideal second", [1000.0]))
    table.at_most("loom / the ideal second", f"loom, {count} executors", "the ideal second", 1.6)
    return table


def _configure(place: Path, home: Home, count: int, url: str) -> None:
    subtasks = [
        {"id": f"s{n}", "title": f"s{n}", "instruction": f"Say something about {n}.", "deliverables": [], "level": 1}
        for n in range(count)
    ]
    (place / "plan.ndjson").write_text(json.dumps({"text": json.dumps({"subtasks": subtasks})}) + "\n")
    (place / "work").mkdir()
    home.path.mkdir(mode=0o700)
    home.config.write_text(
        f"models: {{planner: script/{place}/plan.ndjson, executor: openai/m, verifier: builtin}}\n"
        f"pools: {{planner: 1, executor: {count}, verifier: 1, keeper: 2}}\n"
        f"providers: {{openai: {{base_url: {url}/v1, key_file: {place}/key}}}}\n"
    )
    (place / "key").write_text("sk-bench\n")


def _goal(home: Home, env: dict[str, str], place: Path) -> float:
    before = set(goals.names(home))
    argv = [str(LOOM), "run", "Say a hundred things.", "-w", str(place / "work")]
    done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=300)
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[-1][:200])
    (name,) = set(goals.names(home)) - before
    times = {"subtask.started": [], "subtask.applied": []}  # type: dict[str, list[str]]
    for event in goals.events(home, home.goal(name)):
        if event.type in times:
            times[event.type].append(event.ts)
    from datetime import datetime

    first = datetime.fromisoformat(min(times["subtask.started"]))
    last = datetime.fromisoformat(max(times["subtask.applied"]))
    return (last - first).total_seconds() * 1000
