"""Which loom this is. The same stands in pyproject.toml."""

from __future__ import annotations

VERSION = "0.1.0"
