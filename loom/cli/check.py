"""One finding of `loom doctor`.

ok       as it should be        note   worth knowing; nothing is broken        problem   something will not work
"""

from __future__ import annotations

from typing import Literal

from loom.wire.record import record


@record
class Check:
    """What was looked at and what was found. `hint` says what to do."""

    what: str
    status: Literal["ok", "note", "problem"]
    found: str
    hint: str = ""
