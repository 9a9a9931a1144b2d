"""Which limit is exceeded, and how it is called."""

from __future__ import annotations

import pytest

from loom.core.limits import BUSY_S, MOST_S, Usage, exceeded, pause_s, size_text
from loom.wire.agent import AgentLimits

MIB = 1 << 20


@pytest.mark.parametrize(
    "limits, within, over, words",
    [
        (AgentLimits(memory=256 * MIB), Usage(memory=256 * MIB), Usage(memory=256 * MIB + 1), "memory 256 MiB"),
        (AgentLimits(cpu_s=1.5), Usage(cpu_s=1.5), Usage(cpu_s=1.6), "cpu 1.5 s"),
        (AgentLimits(files=64), Usage(files=63), Usage(files=64), "files 64"),
        (AgentLimits(processes=3), Usage(processes=3), Usage(processes=4), "processes 3"),
        (AgentLimits(disk=100 * MIB + 512), Usage(disk=100), Usage(disk=101 * MIB), "disk 104858112 bytes"),
    ],
)
def test_each_limit_has_a_name(limits: AgentLimits, within: Usage, over: Usage, words: str) -> None:
    assert exceeded(limits, within) == ""
    assert exceeded(limits, over) == f"limit: {words} exceeded"
    assert exceeded(AgentLimits(), over) == ""


def test_what_was_not_looked_at_exceeds_nothing() -> None:
    assert exceeded(AgentLimits(disk=100_000), Usage(disk=None)) == ""


def test_the_longer_it_waits_the_more_seldom_one_looks() -> None:
    pause, waits = BUSY_S, []
    while pause < MOST_S:
        waits.append(pause := pause_s(pause, busy=False))
    assert waits == sorted(waits) and sum(waits) < 3 * MOST_S and pause_s(MOST_S, busy=False) == MOST_S
    assert pause_s(MOST_S, busy=True) == BUSY_S


@pytest.mark.parametrize(
    "size, text",
    [(1, "1 bytes"), (1024, "1 KiB"), (256 * MIB, "256 MiB"), (MIB + 1, "1048577 bytes"), (1 << 40, "1024 GiB")],
)
def test_sizes_are_told_as_they_were_given(size: int, text: str) -> None:
    assert size_text(size) == text
