"""`settings:` and `gc:` of loom.yml: settings of the home for as long as the weave is up (docs/weave.md, ADR-0033).

Enters: nodes of the file, and what other weaves say. Leaves: Overrides, each checked as in config.yml, or Config that
names file and line. Stays out: files.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from loom.core.retention import DAY_S
from loom.core.weave_nodes import Reader
from loom.wire import settings as wire
from loom.wire.errors import Config
from loom.wire.settings import Override
from loom.wire.yamltext import Node

GC = ("retention",)
_PREFIX = "retention."


def is_retention(key: str) -> bool:
    """Whether a setting says no more than how long something is kept."""
    return key.startswith(_PREFIX)


RETENTION: Mapping[str, wire.Setting] = {
    row.key.removeprefix(_PREFIX): row for row in wire.TABLE if is_retention(row.key)
}


def settings(read: Reader, top: Mapping[str, Node]) -> tuple[Override, ...]:
    """What the file says of settings, in its order. Raises Config."""
    found: dict[str, Override] = {}
    told = _walk(read, top["settings"], "") if "settings" in top else iter(())
    kept = _retention(read, top["gc"]) if "gc" in top else iter(())
    for one in (*told, *kept):
        if one.key in found:
            why = f"{one.key} is set twice, first in line {found[one.key].line}"
            raise read.fault(one.line, why)
        found[one.key] = one
    return tuple(found.values())


def _walk(read: Reader, node: Node, prefix: str) -> Iterator[Override]:
    """The leaves below `settings:`, written as in config.yml."""
    what = f"settings.{prefix}".rstrip(".")
    if node.value is None:
        return  # a heading whose lines are all commented out
    for word, value in read.mapping(node, what).items():
        if "." in word:
            raise read.fault(value.line, f"{what} has the key {word!r:.80}", "a dot is a level of indentation here")
        key = f"{prefix}{word}"
        if wire.is_group(key) and (value.value is None or isinstance(value.value, dict)):
            yield from _walk(read, value, f"{key}.")
        elif isinstance(value.value, dict) and wire.row_of(key) is not None:
            raise read.fault(value.line, f"{key} is a mapping, expected one value")
        else:
            yield Override(key, wire.check(key, _plain(value), read.place(value.line)), value.line)


def _plain(node: Node) -> Any:
    return [_plain(one) for one in node.value] if isinstance(node.value, list) else node.value


def _retention(read: Reader, node: Node) -> Iterator[Override]:
    """`gc.retention`: durations, as everywhere in loom.yml, become the days of the settings."""
    keys = read.mapping(node, "gc", GC)
    if "retention" not in keys:
        return
    for name, value in read.mapping(keys["retention"], "gc.retention", RETENTION).items():
        row, what = RETENTION[name], f"gc.retention.{name}"
        if row.type == "int":
            yield Override(row.key, read.count(value, what, int(row.least)), value.line)
            continue
        days = read.duration_s(value, what, zero=True) / DAY_S
        if days < row.least:
            raise read.fault(value.line, f"{what} is {value.value}, expected at least {row.least:g}d")
        yield Override(row.key, days, value.line)


def joined(
    standing: Iterable[Override], mine: Sequence[Override], weave: str, file: str, shown: str
) -> tuple[Override, ...]:
    """What all weaves of a home say once this one says `mine`. Raises Config where another says otherwise.

    file   the whole path of this weave's file; shown: as errors name it
    """
    others = [one for one in standing if one.weave != weave]
    by_key = {one.key: one for one in others}
    for one in mine:
        other = by_key.get(one.key)
        if other is not None and other.value != one.value:
            why = f"{one.key} is {one.value!r} here, and the weave {other.weave!r} says {other.value!r}"
            hint = (
                f"see {other.file}:{other.line}; say the same, or take the other down: loom down --name {other.weave}"
            )
            raise Config(f"{shown}:{one.line}: {why}", hint=hint)
    return (*others, *(replace(one, file=file, weave=weave) for one in mine))
