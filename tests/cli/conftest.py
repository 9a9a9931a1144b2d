"""The command line as a user meets it: real processes, real directories, no network."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_user import Loom


@pytest.fixture
def loom(tmp_path: Path) -> Iterator[Loom]:
    runner = Loom(tmp_path)
    yield runner
    if (runner.home / "run" / "supervisor.lock").exists():
        stopped = runner("supervisor", "stop")
        assert stopped.status == 0, stopped
