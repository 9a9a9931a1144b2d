"""How sure we are is a number from 0 to 1, more evidence for it never lowers it; and when two failures are one."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loom.core.confidence import confidence, signature

counts = st.integers(0, 50)
verdicts = st.none() | st.floats(0, 1)


@given(counts, counts, verdicts, counts, st.integers(0, 10), counts)
def test_it_lies_between_0_and_1(passed: int, more: int, verdict: float | None, retries: int, most: int, failed: int):
    assert 0 <= confidence(passed, passed + more, verdict, retries, most, failed) <= 1


def test_all_well_is_1_and_all_ill_is_near_0():
    assert confidence(5, 5, 1.0, 0, 4, 0) == 1.0
    assert confidence(0, 0, None, 0, 4, 0) == 1.0
    assert confidence(0, 5, 0.0, 4, 4, 10**6) == 0.0


@given(counts, st.floats(0, 0.9), counts, counts)
def test_each_kind_of_trouble_lowers_it_and_none_raises_it(passed: int, verdict: float, retries: int, failed: int):
    base = confidence(passed, 50, verdict, retries, 60, failed)
    assert confidence(min(50, passed + 1), 50, verdict, retries, 60, failed) >= base
    assert confidence(passed, 50, verdict + 0.1, retries, 60, failed) > base
    assert confidence(passed, 50, verdict, retries + 1, 60, failed) < base + 1e-9
    assert confidence(passed, 50, verdict, retries, 60, failed + 1) <= base


def test_a_verdict_weighs_more_than_a_tool_call_that_failed():
    assert confidence(1, 1, 0.5, 0, 4, 0) < confidence(1, 1, 1.0, 0, 4, 50)


@pytest.mark.parametrize("one, other", [
    ("line 3 is wrong", "line 44 is wrong"),
    ("cannot read /tmp/a/b", "cannot read /var/c"),
    ("cannot  read\n./x/y7", "cannot read d/z"),
])  # fmt: skip
def test_digits_and_paths_do_not_make_another_failure(one: str, other: str):
    assert signature(one) == signature(other)


@pytest.mark.parametrize("one, other", [("the file is empty", "the file is missing"), ("a", "b")])
def test_other_words_do(one: str, other: str):
    assert signature(one) != signature(other)


def test_a_long_failure_takes_no_time():
    began = time.process_time()
    assert len(signature("x" * 2_000_000)) <= 180
    assert time.process_time() - began < 2
