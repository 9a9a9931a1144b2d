"""Where the suites of this room put their homes."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from support import ROOT


def on_disk() -> Path:
    """A new directory on a real disk: in $LOOM_SOAK_DIR, else in the checkout's build/."""
    base = Path(os.environ.get("LOOM_SOAK_DIR") or ROOT / "build")
    base.mkdir(parents=True, exist_ok=True)
    return Path(tempfile.mkdtemp(prefix="soak-", dir=base))
