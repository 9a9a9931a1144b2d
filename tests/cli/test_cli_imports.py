"""What a command loads: a filter pays for nothing it does not use."""

from __future__ import annotations

import subprocess
import sys

import pytest
from cli_user import Loom

LOADED = "import sys; from loom.cli.main import main; main(sys.argv[1:]); print(*sys.modules, file=sys.stderr)"
HEAVY = (
    *("httpx", "yaml", "psutil", "watchfiles", "asyncio", "orjson", "ssl", "http.client", "socket", "email"),
    *("loom.core.schema", "loom.core.answer", "loom.core.extract", "loom.cli.attaching", "loom.cli.schema_option"),
    *("subprocess", "ctypes", "loom.cli.ensure", "loom.proc.toolcall", "loom.daemons.service", "loom.models.openai"),
)


def loaded(loom: Loom, *words: str) -> set[str]:
    """The modules in memory when the command has ended."""
    done = subprocess.run(
        [sys.executable, "-S", "-c", f"import sys; sys.path[:0] = {sys.path!r}; {LOADED}", *words],
        capture_output=True,
        text=True,
        env=loom.env,
        timeout=30,
        check=True,
    )
    return set(done.stderr.split())


@pytest.mark.parametrize("words", [("--version",), ("help",), ()])
def test_version_and_help_load_no_command_and_no_parser(loom: Loom, words: tuple[str, ...]) -> None:
    modules = loaded(loom, *words)
    assert modules.isdisjoint({"click", "pathlib", "json", "dataclasses", "inspect", "logging"})
    assert {m for m in modules if m.startswith("loom.")} == {
        *("loom.cli", "loom.cli.main", "loom.cli.printing", "loom.wire", "loom.wire.exits", "loom.wire.errors")
    }


def test_a_filter_loads_nothing_heavy(loom: Loom) -> None:
    words = ("agent", "start", "x", "--model", "builtin/echo", "--prompt", "hi")
    loaded(loom, *words)  # the first one in a home tests the file system, which takes ctypes
    assert loaded(loom, *words).isdisjoint(HEAVY)


def test_sending_loads_no_model_and_no_daemon(loom: Loom) -> None:
    loom("agent", "start", "x", "--model", "builtin/echo", "--detach")
    modules = loaded(loom, "send", "x", "hello")
    heavy = {m for m in modules if m.startswith(("loom.models", "loom.daemons", "loom.proc"))}
    assert heavy == set()
    assert modules.isdisjoint({"httpx", "yaml", "psutil", "watchfiles", "asyncio", "orjson", "ssl", "subprocess"})
