"""`loom --version` against an interpreter that does nothing, and against other agents' command lines."""

from __future__ import annotations

from functools import partial

from measure import Table, in_turn, process_ms
from world import LOOM, PYTHON, environment, peer_program, scratch


def run(quick: bool) -> Table:
    table = Table("startup", "whole processes in turn; `--version` of each")
    with scratch() as place:
        env = environment(place)

        def version(peer: str, program: str) -> float:
            return process_ms([str(peer_program(peer, program)), "--version"], env)

        cases = {
            "python -c pass": partial(process_ms, [str(PYTHON), "-c", "pass"], env),
            "loom --version": partial(process_ms, [str(LOOM), "--version"], env, expect=b"loom"),
            "llm --version": partial(version, "llm", "llm"),
            "codex --version": partial(version, "codex", "codex"),
            "claude --version": partial(version, "claude", "claude"),
        }
        table.rows = in_turn(cases, 5 if quick else 21)
    table.at_most("loom --version / python -c pass", "loom --version", "python -c pass", 4)
    return table
