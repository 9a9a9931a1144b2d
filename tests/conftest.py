"""Its place makes `tests/` importable for the tests of all rooms (support.py)."""

from __future__ import annotations

import pytest
from hypothesis import settings

# For `make nightly`; a test that says itself how many examples it takes keeps to that.
settings.register_profile("nightly", max_examples=2000, deadline=None)

# Whole goals, supervisors and enumerated crashes: minutes in all. `make check` leaves them out, `make test` runs them.
SLOW_ROOMS = {"goals", "crash", "daemons", "soak", "hostile", "model"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test of the slow rooms."""
    for item in items:
        if item.path.parent.name in SLOW_ROOMS:
            item.add_marker(pytest.mark.slow)
