"""Types of options that several commands have."""

from __future__ import annotations

import math
from typing import Any

import click

MAX_S = 1e9  # 31 years: whatever is added to a date stays one


class Seconds(click.FloatRange):
    """A number of seconds. `nan` compares with nothing and would pass any range."""

    name = "seconds"

    def __init__(self, *, min_open: bool = False) -> None:
        super().__init__(0, MAX_S, min_open=min_open)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        seconds = super().convert(value, param, ctx)
        if math.isnan(seconds):
            self.fail(f"{value!r} is no number of seconds", param, ctx)
        return seconds
