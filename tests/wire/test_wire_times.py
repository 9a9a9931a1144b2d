"""Times as text: one form only, and back."""

from __future__ import annotations

import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loom.wire.times import day_of, parse_us, rfc3339

EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
microseconds = st.integers(0, 253_402_300_799_999_999)


@given(microseconds)
def test_a_time_is_read_back_and_is_what_the_calendar_says(us: int):
    text = rfc3339(us)
    assert parse_us(text) == us
    assert EPOCH + datetime.timedelta(microseconds=us) == datetime.datetime.fromisoformat(text)


@given(st.lists(microseconds, min_size=2, max_size=2))
def test_times_sort_as_text(pair: list[int]):
    assert sorted(map(rfc3339, pair)) == [rfc3339(us) for us in sorted(pair)]


@given(st.integers(0, 10**13 - 1))
def test_the_day_of_a_name_is_a_date_without_slashes(ts_ms: int):
    expected = (EPOCH + datetime.timedelta(milliseconds=ts_ms)).date().isoformat()
    assert day_of(ts_ms) == expected


@pytest.mark.parametrize("text", [
    "", "now", "2026-01-31T12:00:00Z", "2026-01-31T12:00:00.000Z", "2026-01-31T12:00:00.000000",
    "2026-01-31 12:00:00.000000Z", "2026-1-31T12:00:00.000000Z", "2026-01-31T12:00:00.+00001Z",
    "2026-01-31T12:00:00.1_0000Z", "2026-02-30T12:00:00.000000Z", "2026-01-31T12:00:60.000000Z",
    "2026-01-31T12:00:00.000000Zx", "2026-01-31T12:00:00.0000000Z", "2026-01-31T12:00:00.٠٠٠٠٠٠Z",
])  # fmt: skip
def test_what_is_no_time_in_our_form_is_refused(text: str):
    with pytest.raises(ValueError):
        parse_us(text)


@given(st.text(max_size=40))
def test_any_text_gives_a_number_or_a_value_error(text: str):
    try:
        us = parse_us(text)
    except ValueError:
        return
    assert rfc3339(us) == text
