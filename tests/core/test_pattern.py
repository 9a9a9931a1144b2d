"""Expressions of schemas: the same texts as `re` finds, and never more work than the text is long."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loom.core.pattern import MAX_STATES, TooLong, Unsupported, compile_pattern

atoms = st.sampled_from(
    ["a", "b", "1", "-", " ", ".", "[ab]", "[^a]", "[a-c1]", r"\w", r"\W", r"\d", r"\D", r"\s", r"\b", r"\B", "^", "$"]
)
counts = st.sampled_from(["*", "+", "?", "*?", "{0}", "{2}", "{1,2}", "{0,2}", "{2,}"])
expressions = st.recursive(
    atoms,
    lambda inner: st.one_of(
        st.tuples(inner, inner).map("".join),
        st.tuples(inner, inner).map("|".join),
        inner.map(lambda e: f"({e})"),
        st.tuples(inner, counts).map(lambda pair: f"(?:{pair[0]}){pair[1]}"),
    ),
    max_leaves=8,
)


@given(expressions, st.lists(st.text("ab1- c", min_size=1, max_size=9), min_size=1, max_size=6))
@settings(max_examples=300, derandomize=True, deadline=None)
def test_it_finds_what_the_standard_library_finds(expression: str, texts: list[str]):
    # Python's $ also stands before a last newline, and its \B is not in an empty text.
    peer = re.compile(expression.replace("$", r"\Z"), re.ASCII)
    found = compile_pattern(expression)
    assert [found.is_in(text) for text in texts] == [peer.search(text) is not None for text in texts]


@pytest.mark.parametrize("expression, text, found", [
    ("(a+)+$", "a" * 50_000 + "b", False),
    (r"^(\w+\s?)*$", "word " * 10_000 + "!", False),
    ("(a|aa|aaa)*b", "a" * 50_000, False),
    ("(.*a){20}$", "ab" * 20_000, False),
    ("^[a-z]{2,800}$", "a" * 20_000, False),
    ("x$", "a" * 100_000 + "x", True),
])  # fmt: skip
def test_expressions_that_make_others_explode_are_matched_like_any(expression: str, text: str, found: bool):
    assert compile_pattern(expression).is_in(text) is found


def test_the_work_for_one_text_has_an_end():
    with pytest.raises(TooLong):  # every character leads to another set of states
        compile_pattern("[ab]*a[ab]{300}c").is_in("".join(f"{n:b}" for n in range(8000)).translate({48: 97, 49: 98}))


@pytest.mark.parametrize("expression, text, found", [
    (r"^\u00e9\x41\t$", "éA\t", True), (r"\u{1F9F5}", "🧵", True), (r"\p{Lu}", "É", True), (r"\P{L}", "é", False),
    (r"^\p{gc=Nd}+$", "١٢", True), (r"^\d$", "١", False), (r"\cJ", "\n", True), (r"[\b]", "\b", True),
    ("a{,3}", "a{,3}", True), ("[]", "a", False), ("[^]", "\n", True), (".", "\r", False), ("a$", "a\n", False),
    (r"[a\-z]", "-", True), ("[a-]", "-", True), (r"\.\/\-", "./-", True), ("(?<year>a)", "a", True), ("", "", True),
    (r"^\S+$", "a\u00a0b", False), ("x*", "", True), ("^(?:)*$", "", True), (r"\0", "\0", True), ("{", "{", True),
])  # fmt: skip
def test_it_reads_what_javascript_reads(expression: str, text: str, found: bool):
    assert compile_pattern(expression).is_in(text) is found


@pytest.mark.parametrize("expression, why", [
    ("(?=a)", "lookaround"), ("(?<!a)b", "lookaround"), (r"(a)\1", r"the escape \1"), ("(?i)a", "flags"),
    ("(a", "closed"), ("a)", "unmatched"), ("[a", "closed"), ("*a", "nothing before"), ("a**", "nothing before"),
    (r"\q", "escape"),
    ("a{2,1}", "order"), ("[b-a]", "order"), ("a{2000}", "count"), ("(a{900}){900}", f"over {MAX_STATES}"),
    ("(" * 60 + ")" * 60, "deeper"), ("^*", "behind"), (r"\u12", "hexadecimal"), (r"\p{Greek}", "category"),
    ("\\", "end"), (r"\u{110000}", "hexadecimal"), (r"[\d-z]", ""),
])  # fmt: skip
def test_what_it_cannot_match_it_refuses(expression: str, why: str):
    if not why:
        assert compile_pattern(expression).is_in("-")
        return
    with pytest.raises(Unsupported, match=re.escape(why)):
        compile_pattern(expression)


@given(st.text(st.sampled_from("ab()[]{}|*+?^$\\-,0123:<=!pudLx"), max_size=30), st.text("ab0-", max_size=20))
@settings(max_examples=300, derandomize=True, deadline=None)
def test_whatever_the_expression_there_is_an_answer_or_a_reason(expression: str, text: str):
    try:
        assert compile_pattern(expression).is_in(text) in (True, False)
    except Unsupported as why:
        assert str(why)
