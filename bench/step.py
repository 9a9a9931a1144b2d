"""What one tool step costs the harness: all of it durable, the tool's own process subtracted."""

from __future__ import annotations

import statistics
import time
from functools import partial
from pathlib import Path
from subprocess import run as run_process

from measure import Row, Table, in_turn, process_ms
from world import LOOM, PEERS, disk_of, environment, far_side, peer_python, scratch

from loom.spool.home import open_home

TOOL = """#!/bin/sh
case $1 in
describe) echo '{"name":"note","description":"notes","input_schema":{"type":"object"}}' ;;
invoke) read -r _; echo '{"status":"ok","result":"noted"}' ;;
esac
"""
STEPS = (50, 200)


def run(quick: bool) -> Table:
    how = "(a turn with n tool steps − a turn with none) / n − the tool alone; zero-latency server, record on disk"
    table = Table("step", how)
    with scratch(on_disk=True) as place, far_side() as url:
        table.notes.append(f"disk: {disk_of(place)}")
        env = environment(place, OPENAI_API_KEY="sk-bench", OPENAI_BASE_URL=f"{url}/v1")
        tool = open_home(place / ".loom").tools / "note"
        tool.parent.mkdir(mode=0o700, exist_ok=True)
        tool.write_text(TOOL)
        tool.chmod(0o700)
        alone = statistics.median(_alone(tool) for _ in range(50))
        table.rows.append(Row("the tool alone", [alone]))
        base = [str(LOOM), "agent", "start", "s", "--stdin", "--tools", "note", "--max-steps", "300", "--model"]

        def turn(steps: int) -> float:
            return process_ms([*base, f"openai/steps-{steps}"], env, b"go")

        def per_step(steps: int) -> float:
            return (turn(steps) - turn(0)) / steps - alone

        def peer(name: str, steps: int) -> float:
            argv = [str(peer_python(name)), str(PEERS / f"steps_{name.replace('-', '_')}.py"), str(steps), str(place)]
            done = run_process(argv, env=env, capture_output=True, text=True, timeout=300)
            if done.returncode:
                raise RuntimeError(done.stderr.strip().splitlines()[-1][:150])
            return float(done.stdout)

        cases = {f"loom, {n} steps": partial(per_step, n) for n in STEPS}
        for name in ("langgraph", "pydantic-ai", "openai-agents", "dbos"):
            cases |= {f"{name}, {n} steps": partial(peer, name, n) for n in STEPS}
        table.rows += in_turn(cases, 2 if quick else 5)
    table.value("one step of 50", table.median("loom, 50 steps"), 4, "ms")
    table.at_most("one step of 200 / one of 50", "loom, 200 steps", "loom, 50 steps", 1.15)
    return table


def _alone(tool: Path) -> float:
    """Starting the tool, giving it its input and reaping it, by the plainest means there are."""
    began = time.perf_counter()
    run_process([str(tool), "invoke"], input=b"{}\n", capture_output=True, check=True)
    return (time.perf_counter() - began) * 1000
