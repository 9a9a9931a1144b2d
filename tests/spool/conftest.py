"""Fixtures for the tests of the spool."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import scratch


@pytest.fixture
def quick_path() -> Iterator[Path]:
    """Like tmp_path, in memory where there is such a place: for tests that sync at every byte of a file."""
    path = scratch()
    yield path
    shutil.rmtree(path, ignore_errors=True)
