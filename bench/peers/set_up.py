"""Install the peers, each in an environment of its own under build/bench/peers/, as pinned here.

    python bench/peers/set_up.py [NAME…]     all of them without a name

A peer that cannot be installed is left out, and its rows say `not measured`.
"""

from __future__ import annotations

import subprocess
import sys
import venv
from pathlib import Path

PLACE = Path(__file__).resolve().parents[2] / "build" / "bench" / "peers"
PYTHON = {
    "llm": ["llm==0.36"],
    "openai": ["openai==3.52.0"],
    "langgraph": ["langgraph==1.2.22", "langgraph-checkpoint-sqlite==3.1.2", "langchain-openai"],
    "pydantic-ai": ["pydantic-ai-slim[openai]==2.68.0"],
    "openai-agents": ["openai-agents==0.24.0"],
    "dbos": ["dbos==3.4.0", "httpx==0.28.1"],
    "mini-swe-agent": ["mini-swe-agent==2.4.6"],
}
NPM = {"codex": ["@openai/codex@0.169.0"], "claude": ["@anthropic-ai/claude-code@2.1.197"]}


def main(names: list[str]) -> int:
    missing = 0
    for name in names or [*PYTHON, *NPM]:
        place = PLACE / name
        done = place / ".pinned"
        wanted = "\n".join(PYTHON.get(name) or NPM[name])
        if done.exists() and done.read_text() == wanted:
            continue
        print(f"setting up {name}", file=sys.stderr, flush=True)
        try:
            if name in PYTHON:
                venv.create(place, with_pip=True, clear=True)
                pip = [str(place / "bin" / "python"), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
                subprocess.run([*pip, *PYTHON[name]], check=True)
            else:
                place.mkdir(parents=True, exist_ok=True)
                argv = ["npm", "install", "--silent", "--no-fund", "--no-audit", "--prefix", str(place), *NPM[name]]
                subprocess.run(argv, check=True)
            done.write_text(wanted)
        except (OSError, subprocess.CalledProcessError) as error:
            print(f"{name} is left out: {error}", file=sys.stderr, flush=True)
            missing += 1
    return missing


if __name__ == "__main__":
    main(sys.argv[1:])
