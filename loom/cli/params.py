"""Types of options that several commands have."""

from __future__ import annotations

import math
from typing import Any

import click

MAX_S = 1e9  # 31 years: whatever is added to a date stays one


class Count(click.IntRange):
    """A whole number, and how many there are at least."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            int(value)
        except ValueError:
            self.fail(f"{value!r} is not a whole number", param, ctx)
        return super().convert(value, param, ctx)


class Seconds(click.FloatRange):
    """A number of seconds. `nan` compares with nothing and would pass any range."""

    name = "seconds"

    def __init__(self, *, min_open: bool = False) -> None:
        super().__init__(0, MAX_S, min_open=min_open)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            if math.isnan(float(value)):
                raise ValueError
        except ValueError:
            self.fail(f"{value!r} is not a duration in seconds", param, ctx)
        return super().convert(value, param, ctx)
