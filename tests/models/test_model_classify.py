"""Errors of providers: what they mean, how long to wait, and what their texts never show."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loom.models.classify import Endpoint, clean, http_error, is_transient, retry_after_s, stream_error, unreachable
from loom.wire import errors

KEY = "sk-0123456789"
LAB = Endpoint("lab", "m1", "http://lab:8000/v1", "LAB_API_KEY", KEY)
NOW = 1_700_000_000.0


@pytest.mark.parametrize(
    "headers, seconds",
    [
        ({}, None),
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": " 0.5 "}, 0.5),
        ({"retry-after": "999999"}, 3600.0),  # capped
        ({"retry-after-ms": "1500", "retry-after": "2"}, 1.5),  # the finer one wins
        ({"retry-after": "Tue, 14 Nov 2023 22:14:20 GMT"}, 60.0),  # NOW is 22:13:20
        ({"retry-after": "Tue, 14 Nov 2023 22:00:00 GMT"}, 0.0),  # over already
        ({"retry-after": "Fri, 31 Dec 9999 23:59:59 GMT"}, 3600.0),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "-5"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "٣"}, None),
        ({"retry-after": "1e400"}, None),
        ({"retry-after": "3\x1f"}, 3.0),  # white to str.strip, not to float
    ],
)
def test_retry_after(headers, seconds):
    assert retry_after_s(headers, NOW) == seconds


@given(st.text(max_size=40))
def test_any_retry_after_gives_a_sane_number_or_none(value):
    seconds = retry_after_s({"retry-after": value}, NOW)
    assert seconds is None or 0 <= seconds <= 3600


@pytest.mark.parametrize(
    "message",
    [
        "This model's maximum context length is 8192 tokens",
        "prompt is too long: 210000 tokens > 200000 maximum",
        "the request exceeds the available context size",
        "Please reduce the length of the messages",
        "Input is too long for requested model",
    ],
)
@pytest.mark.parametrize("status", [400, 413, 500])
def test_an_overflow_is_known_by_its_words(message, status):
    body = b'{"error": {"message": "%s"}}' % message.encode()
    assert type(http_error(LAB, status, {}, body, NOW)) is errors.ContextOverflow


def test_a_request_over_the_limit_of_a_minute_is_not_worth_waiting_for():
    body = b'{"error": {"message": "Request too large for m1 on tokens per min (TPM)", "code": "rate_limit_exceeded"}}'
    assert type(http_error(LAB, 429, {}, body, NOW)) is errors.ContextOverflow


@pytest.mark.parametrize("body", [b'{"error": "no"}', b'{"message": "no"}', b'[{"error": {"message": "no"}}]', b"no"])
def test_the_reason_is_found_wherever_servers_put_it(body):
    assert "lab/m1 answered 500: no;" in http_error(LAB, 500, {}, body, NOW).line()


def test_openrouter_keeps_the_real_reason_deeper():
    body = b'{"error": {"message": "Provider returned error", "code": 500, "metadata": {"raw": "gpu on fire"}}}'
    assert "gpu on fire" in str(http_error(LAB, 500, {}, body, NOW))


@pytest.mark.parametrize(
    "error, kind",
    [
        ({"code": 429, "message": "x"}, errors.TryLater),
        ({"code": "529", "message": "x"}, errors.TryLater),
        ({"type": "overloaded_error"}, errors.TryLater),
        ({"code": "insufficient_quota"}, errors.Config),
        ({"code": "model_not_found"}, errors.ModelNotFound),
        ({"message": "x"}, errors.BrokenStream),
        ("x", errors.BrokenStream),
        ({"code": "²²²"}, errors.BrokenStream),
        (True, errors.BrokenStream),
    ],
)
def test_an_error_in_a_stream(error, kind):
    assert type(stream_error(LAB, error)) is kind


@given(st.integers(300, 999), st.binary(max_size=200), st.dictionaries(st.text(max_size=5), st.text(max_size=5)))
def test_every_answer_is_classified_in_one_short_line_without_the_key(status, noise, headers):
    error = http_error(LAB, status, headers, noise + KEY.encode() + noise, NOW)
    assert KEY not in error.line() and KEY not in error.hint
    assert error.line().isprintable()
    assert len(error.line()) < 700


@pytest.mark.parametrize(
    "text, shown",
    [
        ("a\nb\tc", "a b c"),
        ("\x1b[31mred\x07", "[31mred"),
        ("\u202egnp.exe", "gnp.exe"),  # no turning of the reading direction
        (f"key {KEY}!", "key [key]!"),
        (f"{KEY[:4]}\x00{KEY[4:]}", "[key]"),  # not hidden from us by a control character
        ("x" * 400, "x" * 299 + "…"),
    ],
)
def test_texts_of_servers_are_made_safe(text, shown):
    assert clean(text, KEY) == shown


def test_the_key_is_cut_out_before_the_text_is_cut_off():
    assert "sk-0" not in clean("x" * 295 + KEY, KEY)


def test_an_endpoint_does_not_print_its_key():
    assert KEY not in repr(LAB)


def test_what_is_worth_another_try():
    assert is_transient(unreachable("connect", "lab:8000", "refused"))
    assert is_transient(errors.BrokenStream("x"))
    assert is_transient(errors.TryLater("x"))
    for permanent in (errors.BadInput, errors.ContextOverflow, errors.Config, errors.ModelNotFound, errors.WorkFailed):
        assert not is_transient(permanent("x"))
