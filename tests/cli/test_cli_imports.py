"""What a command loads: a filter pays for nothing it does not use."""

from __future__ import annotations

import subprocess
import sys

import pytest
from cli_user import Loom
from far_side import FarSide

EVENTS = b'data: {"choices": [{"delta": {"content": "hello"}, "finish_reason": "stop"}]}\n\ndata: [DONE]\n\n'
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: %d\r\n\r\n" % len(EVENTS) + EVENTS
LOADED = "import sys; from loom.cli.main import main; main(sys.argv[1:]); print(*sys.modules, file=sys.stderr)"
HEAVY = (
    *("httpx", "yaml", "psutil", "watchfiles", "asyncio", "orjson", "ssl", "_hashlib", "http.client", "email"),
    *("loom.core.schema", "loom.core.answer", "loom.core.extract", "loom.cli.attaching", "loom.cli.schema_option"),
    *("subprocess", "ctypes", "loom.cli.ensure", "loom.proc.toolcall", "loom.daemons.service"),
    *("dataclasses", "difflib", "heapq", "random", "tempfile", "shutil", "base64", "logging", "encodings.idna"),
)
# What one streamed call takes, by room of loom/.
OURS_OF_A_CALL = {
    "cli": "agent agent_start filtering groups homes input main params printing words",
    "core": "first_aid turn",
    "daemons": "filter surroundings turnloop",
    "models": (
        "address base classify connecting decode dialect http1 keys openai openai_answer proxies registry sse transport"
    ),
    "proc": "stopping",
    "roles": "chat",
    "spool": "agents blobs bodies config fs heartbeat home layout locks logs mailbox ndjson secrets threads turns",
    "wire": "agent chat errors exits ids jsontext message provider record release settings times turn warm",
}


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
        *("loom.cli", "loom.cli.main", "loom.cli.printing"),
        *("loom.wire", "loom.wire.exits", "loom.wire.errors", "loom.wire.release"),
    }


def test_a_filter_loads_nothing_heavy(loom: Loom) -> None:
    words = ("agent", "start", "x", "--model", "builtin/echo", "--prompt", "hi")
    loaded(loom, *words)  # the first one in a home tests the file system, which takes ctypes
    modules = loaded(loom, *words)
    assert modules.isdisjoint(HEAVY)
    assert modules.isdisjoint({"socket", "loom.models.openai", "loom.models.transport"})  # it asks no server


def test_one_call_of_a_model_server_loads_this_and_nothing_else(loom: Loom) -> None:
    words = ("agent", "start", "x", "--model", "openai/m1", "--prompt", "hi")
    loaded(loom, "agent", "start", "x", "--model", "builtin/echo", "--prompt", "hi")  # for the file system
    with FarSide() as far:
        far.answers.append([ANSWER])
        loom.env |= {"OPENAI_BASE_URL": far.url, "OPENAI_API_KEY": "sk-test"}
        modules = loaded(loom, *words)
    assert modules.isdisjoint(HEAVY)
    ours = {f"loom.{room}.{name}" for room, names in OURS_OF_A_CALL.items() for name in names.split()}
    assert {m for m in modules if m.startswith("loom.")} == ours | {f"loom.{room}" for room in OURS_OF_A_CALL}


def test_a_filter_that_is_handed_over_loads_next_to_nothing(loom: Loom) -> None:
    loom("agent", "start", "serves", "--model", "builtin/echo", "--detach")  # brings a supervisor
    show = "def leave(status): print(*sys.modules, file=sys.stderr); raise SystemExit(status)"
    source = f"import os, sys\n{show}\nos._exit = leave\nfrom loom.cli.main import command\ncommand()"
    found = []
    for run in (source, "import sys; print(*sys.modules, file=sys.stderr)"):
        words = [sys.executable, "-c", run, "agent", "start", "x", "--model", "builtin/echo", "--stdin"]
        done = subprocess.run(words, input=b"hi\n", capture_output=True, env=loom.env, timeout=30, check=True)
        found.append(set(done.stderr.decode().split()))
    assert found[0] - found[1] == {
        *("loom", "loom.cli", "loom.cli.main", "loom.cli.printing", "loom.cli.warm"),
        *("loom.wire", "loom.wire.exits", "loom.wire.errors", "loom.wire.release", "loom.wire.warm"),
        *("__future__", "errno", "gc", "_socket"),
    }


def test_sending_loads_no_model_and_no_daemon(loom: Loom) -> None:
    loom("agent", "start", "x", "--model", "builtin/echo", "--detach")
    modules = loaded(loom, "send", "x", "hello")
    heavy = {m for m in modules if m.startswith(("loom.models", "loom.daemons", "loom.proc"))}
    assert heavy == set()
    assert modules.isdisjoint({"httpx", "yaml", "psutil", "watchfiles", "asyncio", "orjson", "ssl", "subprocess"})
