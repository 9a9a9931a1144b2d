"""A process that can open nothing more asks a model: that is no fault of the model, its program, its key or its server.

Were it taken for one, a message would fail, or an agent would wait until somebody changes settings that are right.
"""

from __future__ import annotations

import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support import forked

from loom.models.base import ModelContext, Provider
from loom.models.registry import open_model
from loom.wire.chat import ChatMessage, ChatRequest
from loom.wire.errors import Disk


def _ask(name: str, context: ModelContext) -> None:
    model = open_model(name, context)
    for _ in model.stream(ChatRequest(model.name, (ChatMessage("user", "hello"),))):
        pass


KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "script": ("script/./script", {}),
    "program": ("exec/./program", {}),
    "server": ("local/some-model", {"base_url": "http://127.0.0.1:9/v1", "key": ""}),
    "key in a file": ("local/some-model", {"base_url": "http://127.0.0.1:9/v1", "key_file": "script"}),
    "key of a command": ("local/some-model", {"base_url": "http://127.0.0.1:9/v1", "key_command": ("./program",)}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_no_descriptors_is_trouble_of_the_machine(tmp_path: Path, kind: str):
    (tmp_path / "script").write_text('{"text": "hello"}\n')
    (tmp_path / "program").write_text("#!/bin/sh\ncat >/dev/null; echo hello\n")
    (tmp_path / "program").chmod(0o755)
    name, given = KINDS[kind]
    providers = {"local": Provider("local", "openai", **{"key": "local"} | given)} if given else {}
    context = ModelContext({"PATH": "/usr/bin:/bin"}, providers, cwd=str(tmp_path))

    def work() -> dict[str, Any]:
        if kind in ("script", "program"):
            _ask(name, context)  # it is there; and what is imported needs no descriptor any more
        else:
            _refused(lambda: _ask(name, context))
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
        return {"kind": _refused(lambda: _ask(name, context))}

    ended = forked(work)
    assert ended.status == 0, ended.said
    assert ended.said["kind"] == Disk.kind


def _refused(ask: Callable[[], None]) -> str:
    from loom.wire.errors import LoomError

    try:
        ask()
    except LoomError as error:
        return error.kind
    raise AssertionError("it was not refused")
