"""A filter from argv to exit: one streamed call to a server without latency, through each program once a round.

loom twice: cold, and carried out by a supervisor that runs anyway (LOOM_WARM).
"""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

from far_server import TEXT
from measure import Table, in_turn, process_ms
from world import LOOM, PEERS, PYTHON, environment, far_side, peer_program, peer_python, scratch

PROMPT = b"Say eight pieces."


def run(quick: bool) -> Table:
    how = "whole processes in turn: the prompt on stdin, one streamed answer of eight pieces, its text on stdout"
    table = Table("filter", how)
    with scratch() as place, far_side() as url, _supervisor(environment(place)):
        env = environment(place, OPENAI_API_KEY="sk-bench", OPENAI_BASE_URL=f"{url}/v1")
        _configure(place, url)
        expect = TEXT.encode()

        def peer(*argv: str, name: str, program: str, **more: str) -> float:
            return process_ms([str(peer_program(name, program)), *argv], {**env, **more}, PROMPT, expect)

        def script(name: str, python: str) -> float:
            return process_ms([python, str(PEERS / name)], env, PROMPT, expect)

        words = [str(LOOM), "agent", "start", "a", "--model", "openai/m", "--stdin"]
        codex = ["exec", "--skip-git-repo-check", "-c", 'model_provider="far"', "-m", "m", "-"]
        cases = {
            "http.client, 20 lines": partial(script, "http_client.py", str(PYTHON)),
            "loom agent start": partial(process_ms, words, {**env, "LOOM_WARM": "0"}, PROMPT, expect),
            "the same, warm": partial(process_ms, words, env, PROMPT, expect),
            "openai package": lambda: script("openai_sdk.py", str(peer_python("openai"))),
            "llm": lambda: peer("-m", "far", name="llm", program="llm"),
            "codex exec": lambda: peer(*codex, name="codex", program="codex", CODEX_HOME=str(place / "codex")),
            "claude -p": lambda: peer(
                "-p", name="claude", program="claude", ANTHROPIC_BASE_URL=url, ANTHROPIC_API_KEY="sk-bench"
            ),
        }
        table.rows = in_turn(cases, 4 if quick else 15)
    table.at_most("loom / http.client", "loom agent start", "http.client, 20 lines", 1.9)
    table.at_most("warm / cold", "the same, warm", "loom agent start", 0.5)
    table.at_least("llm / loom", "llm", "loom agent start", 8)
    table.at_least("codex exec / loom", "codex exec", "loom agent start", 4)
    return table


@contextlib.contextmanager
def _supervisor(env: Mapping[str, str]) -> Iterator[None]:
    """One that is ready to carry filters out."""
    words = [str(LOOM), "supervisor"]
    with subprocess.Popen([*words, "run"], env=env, stderr=subprocess.DEVNULL) as running:
        socket = Path(env["LOOM_HOME"]) / "run" / "filters.sock"
        while not socket.exists() and running.poll() is None:
            time.sleep(0.01)
        try:
            yield
        finally:
            running.terminate()


def _configure(place: Path, url: str) -> None:
    """Tell the peers that read files where the far side is."""
    llm = place / ".config" / "io.datasette.llm"
    llm.mkdir(parents=True)
    entry = f"- model_id: far\n  model_name: m\n  api_base: {url}/v1\n  api_key_name: openai\n"
    (llm / "extra-openai-models.yaml").write_text(entry)
    codex = place / "codex"
    codex.mkdir()
    provider = f'[model_providers.far]\nname = "far"\nbase_url = "{url}/v1"\nwire_api = "responses"\n'
    (codex / "config.toml").write_text(f'{provider}env_key = "OPENAI_API_KEY"\n')
