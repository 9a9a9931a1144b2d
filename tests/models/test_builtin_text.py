"""The built-in models' reading of texts: what is prose, where sentences end, which of them are central."""

from __future__ import annotations

import random

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from loom.models.builtin import echo, extract, markup
from loom.models.builtin.rank import summarise
from loom.models.builtin.text import Sentence, is_binary, key, sentences, words
from loom.wire.chat import ChatMessage, ChatReply, ChatRequest, TextDelta


def said(block: str) -> list[str]:
    return [s.text for s in sentences(block)]


def prose(text: str) -> list[str]:
    return [s.text for s in markup.read(text).sentences]


def ask(model: object, text: str) -> str:
    request = ChatRequest("builtin/x", (ChatMessage("system", "be brief"), ChatMessage("user", text)))
    chunks = list(model.stream(request))  # type: ignore[attr-defined]
    reply = chunks[-1]
    assert isinstance(reply, ChatReply)
    assert all(isinstance(c, TextDelta) for c in chunks[:-1])
    assert "".join(c.text for c in chunks[:-1]) == reply.text
    return reply.text


@pytest.mark.parametrize(
    "block, expected",
    [
        ("One goes. Two stay.", ["One goes.", "Two stay."]),
        ("Ask Dr. Weber, e.g. on Monday. Then go.", ["Ask Dr. Weber, e.g. on Monday.", "Then go."]),
        ("It costs 3.50 euros. See Fig. 4 for why.", ["It costs 3.50 euros.", "See Fig. 4 for why."]),
        ("Is it safe? No. It is not.", ["Is it safe?", "No.", "It is not."]),
        ("See no. 7 and go on.", ["See no. 7 and go on."]),
        ("J. Smith wrote v1.2.3 of it. Good.", ["J. Smith wrote v1.2.3 of it.", "Good."]),
        ('He said "Stop!" and left. She stayed.', ['He said "Stop!" and left.', "She stayed."]),
        ('He said "Stop." She did.', ['He said "Stop."', "She did."]),
        ("Read https://x.org/a.b?c=d. Then act.", ["Read https://x.org/a.b?c=d.", "Then act."]),
        ("Call `a. B` twice. Done.", ["Call `a. B` twice.", "Done."]),
        ("It ends here. loom goes on.", ["It ends here.", "loom goes on."]),
        ("Apples, pears etc. are fruit.", ["Apples, pears etc. are fruit."]),
        ("Well... We shall see.", ["Well...", "We shall see."]),
        ("**Bold it is. And more.**", ["Bold it is.", "And more."]),
        ("这是第一句。这是第二句！", ["这是第一句。", "这是第二句！"]),
        ("यह पहला है। यह दूसरा है।", ["यह पहला है।", "यह दूसरा है।"]),
        ("a line without an end", ["a line without an end"]),
        ("... --- !!!", []),
        ("[](target)", []),
    ],
)
def test_sentences_end_where_a_reader_would_end_them(block: str, expected: list[str]) -> None:
    assert said(block) == expected


@pytest.mark.parametrize(
    "text, expected",
    [
        ("---\ntitle: T\n---\nBody stays.", ["Body stays."]),
        ("# H\n\nBefore.\n\n```py\ncode. Here.\n```\n\nAfter.", ["Before.", "After."]),
        ("~~~\nnever closed. At all.", []),
        ("Before.\n\n    indented code. Yes.\n\nAfter.", ["Before.", "After."]),
        ("| a | b |\n|---|---|\n| Cell one. | Cell two. |\n\nAfter.", ["After."]),
        ("a | b\n--|--\nCell. | Cell.\n\nAfter.", ["After."]),
        ("Seen. <!-- hidden. --> Also seen.", ["Seen.", "Also seen."]),
        ("<!--\nhidden. All of it.\n-->\nSeen.", ["Seen."]),
        ("Use `<!-- x -->` here.", ["Use `<!-- x -->` here."]),
        ("<!-- never closed. So it is text.", ["<!-- never closed.", "So it is text."]),
        ("- one point\n- two points\n  go on here\n", ["one point", "two points go on here"]),
        ("1. First.\n2. [x] Second.\n", ["First.", "Second."]),
        ("> Quoted words\n> go on.\n", ["Quoted words go on."]),
        ("Wrapped over\r\ntwo lines.\r\n", ["Wrapped over two lines."]),
        ("[1]: https://x.org\nSee [it][1].", ["See [it][1]."]),
        ("[![badge](a.svg)](b)\n<p align='center'>\nText.\n</p>", ["Text."]),
        ("Title\n=====\n\nText.", ["Text."]),
        (".. note::\n   directive text.\n\nText.", ["Text."]),
        ("- item\n---\nText.", ["item", "Text."]),
    ],
)
def test_only_prose_is_read(text: str, expected: list[str]) -> None:
    assert prose(text) == expected


@pytest.mark.parametrize(
    "text, title",
    [
        ("---\ntitle: From the front\n---\n# Heading", "From the front"),
        ("Text.\n\n## The *first* `heading` ##\n# Second", "The first heading"),
        ("Underlined\n-----\n", "Underlined"),
        ("\ufeff# After a mark", "After a mark"),
        ("No heading.", ""),
        ("---\n\nA rule, no front matter.\n\n---\n", ""),
    ],
)
def test_the_title_is_the_front_matters_or_the_first_heading(text: str, title: str) -> None:
    assert markup.read(text).title == title


def test_markup_whitespace_and_case_make_no_other_sentence() -> None:
    assert key("The **broker**  holds\n[keys](k.md).") == key("the broker holds keys.")
    assert key("2*3 is six") != key("23 is six")
    assert key("snake_case name") != key("snakecase name")


def test_words_of_unspaced_scripts_are_pairs() -> None:
    assert words("数据库很快") == ["数据", "据库", "库很", "很快"]


def test_binary_is_told_from_text() -> None:
    assert is_binary("\x7fELF\x00\x01") and is_binary("\ufffd" * 5 + "abc")
    assert not is_binary("") and not is_binary("déjà vu\n\t数据")


damaged = st.one_of(
    st.text(max_size=400),
    st.text(alphabet="ab.!? \n#-*_`|<>[]()!\t\"'~=:1\r\x00\x85\u2028。", max_size=400),
    st.lists(
        st.sampled_from(
            [
                "# T\n",
                "```\n",
                "| a | b |\n|--|--|\n",
                "<!-- ",
                "-->",
                "---\n",
                "- x\n",
                "> q\n",
                "Word word. ",
                "\n\n",
                "[a](b) ",
            ]
        ),
        max_size=40,
    ).map("".join),
)


@given(damaged)
@example("")
@example("x" * 5000)
@example("word " * 3000)
@example("字" * 3000)
@settings(deadline=None, max_examples=200)
def test_no_text_makes_the_reader_fail_and_words_stay_as_they_are(text: str) -> None:
    flat = "".join(c for c in text if c.isalnum())
    for sentence in (*markup.read(text).sentences, *markup.read_lines(text)):
        assert sentence.text == " ".join(sentence.text.split())
        assert sentence.key and len(sentence.text) <= 1200
        if "<!--" not in text:  # a comment taken out may join what stood on both sides of it
            assert "".join(c for c in sentence.text if c.isalnum()) in flat
    assert isinstance(extract.extract(text), str)


@given(st.lists(st.text(alphabet="abcd ", min_size=1, max_size=20), max_size=30), st.integers(0, 6))
@settings(deadline=None)
def test_a_summary_is_a_subsequence_of_distinct_sentences_as_long_as_asked(lines: list[str], wanted: int) -> None:
    given_ = [Sentence(line + ".") for line in lines]
    chosen = summarise(given_, wanted)
    keys = [s.key for s in chosen]
    assert len(keys) == len(set(keys)) == min(wanted, len({s.key for s in given_}))
    rest = iter(given_)
    assert all(any(s is c for s in rest) for c in chosen)  # in the order of the source


# The lead is about the weather; everything after it is about one thing.
LEAD = "The morning was cold and grey over the harbour. Two gulls fought about a sandwich. Somebody whistled a waltz. "
CORE = (
    "The journal records every event before the router delivers it. A router that is killed reads the journal again. "
    "Every event in the journal carries the hash of the event before it. A journal is the only truth about a goal. "
    "Nobody but the router writes events to the journal. An auditor checks the journal of a goal from its first event. "
    "The router delivers an order only after its event is in the journal."
)


def test_a_summary_is_not_the_first_sentences() -> None:
    summary = extract.extract(LEAD + CORE)
    assert "gulls" not in summary and "waltz" not in summary and "harbour" not in summary
    assert summary.count("journal") >= 3


def test_a_summary_does_not_say_the_same_thing_twice() -> None:
    twin = "The router writes every event to the journal at once."
    summary = extract.extract(f"{twin} {twin[:-1]} too. {CORE}")
    assert summary.count("to the journal at once") <= 1


def test_other_texts_have_other_summaries_and_the_same_text_the_same() -> None:
    other = CORE.replace("journal", "mailbox").replace("event", "message")
    model = extract.open("builtin/extract")
    assert ask(model, CORE) == ask(extract.open("builtin/extract"), CORE) != ask(model, other)


def test_a_short_text_is_its_own_summary() -> None:
    for text in ("", "One thing.\n", "# Title\n\nOne. Two. Three.\n", "x = 1\n"):
        assert ask(extract.open("builtin/extract"), text) == text


def test_a_text_without_prose_is_summarised_by_its_lines() -> None:
    table = "\n".join(f"| row {i} | value {i * i} of the table |" for i in range(50))
    lines = extract.extract(table).split("\n")
    assert len(lines) == 4 and all(line.removeprefix("- ") in table for line in lines)


def test_long_texts_are_summarised_whatever_their_shape() -> None:
    draw = random.Random(7)
    vocabulary = [f"w{i}" for i in range(500)]
    text = " ".join(draw.choice(vocabulary) for _ in range(40_000))
    for shape in (text, text.replace(" w1", ". W1"), text.replace(" ", "\n")):
        assert 0 < len(extract.extract(shape)) < 5000


def test_echo_answers_verbatim_and_counts_words() -> None:
    text = "  two words\n\n\n" + "x" * 9000
    assert ask(echo.open("builtin/echo"), text) == text
    reply = list(echo.open("builtin/echo").stream(ChatRequest("m", (ChatMessage("user", "a b c"),))))[-1]
    assert isinstance(reply, ChatReply)
    assert (reply.usage.input_tokens, reply.usage.output_tokens, reply.model) == (3, 3, "builtin/echo")
