"""The judging of digests, and the refusals: each starts from a good digest and breaks it in one way."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loom.models.builtin import executor, markup
from loom.models.builtin.digest import NO_SENTENCES, parse
from loom.models.builtin.judge import Finding, refused
from loom.models.builtin.text import key
from loom.models.builtin.verifier import judge_digest

MAIL = """# Mailboxes

A message lies in the inbox until its runner claims it. The claim is a rename, so exactly one runner wins a message.
A runner that dies leaves its claim in place, e.g. after a kill. The next runner finds the claim and goes on with it.
A message that was answered moves on to the processed ones. Nobody edits a message after its delivery.
"""
KEYS = """# Secrets

The broker is the only process that holds a secret. A runner speaks to the broker as if it were the provider.
The broker adds the secret to the request of a runner. No tool can read a secret, for no tool has the descriptor.
Every use of a secret is journaled by the broker. A secret that leaked is revoked in one place, at the broker.
"""
TABLE = "# Numbers\n\n| a | b |\n|---|---|\n| 1 | 2 |\n"
SOURCES = {"a/mail.md": MAIL, "b/keys.md": KEYS, "c/table.md": TABLE}


def good_digest(path: str = "a/mail.md") -> tuple[dict[str, str | None], dict[str, str | None]]:
    return {"digest/x.md": executor.digest({path: SOURCES[path]}, "digest/x.md")[0]}, {path: SOURCES[path]}


def good_whole() -> tuple[dict[str, str | None], dict[str, str | None]]:
    digests = {
        f"digest/{i}.md": executor.digest({p: t}, f"digest/{i}.md")[0] for i, (p, t) in enumerate(SOURCES.items())
    }
    text, _ = executor.whole(digests, sorted(SOURCES), "DIGEST.md")
    return {"DIGEST.md": text}, {**SOURCES, **digests}


def says(findings: list[Finding], words: str) -> bool:
    assert refused(findings)
    return any(words in f["what"] for f in findings)


def test_the_form_of_a_digest() -> None:
    text = good_digest()[0]["digest/x.md"]
    assert text == (
        "## Mailboxes\nSource: a/mail.md\n\n"
        "- A message lies in the inbox until its runner claims it.\n"
        "- The claim is a rename, so exactly one runner wins a message.\n"
        "- A runner that dies leaves its claim in place, e.g. after a kill.\n"
    )


def test_the_form_of_the_digest_of_all() -> None:
    text = good_whole()[0]["DIGEST.md"]
    assert text is not None
    lines = text.split("\n")
    assert lines[:4] == ["# Digest of 3 documents", "", "## Overview", ""]
    overview = parse(text).overview
    assert overview is not None and 3 <= len(overview.items) <= 7
    assert all(item.text.endswith((". ([a/mail.md])", ". ([b/keys.md])")) for item in overview.items)
    assert text.endswith(f"## Numbers\nSource: c/table.md\n\n{NO_SENTENCES}\n")


def test_good_digests_pass_without_a_finding() -> None:
    for path in SOURCES:
        assert judge_digest(*good_digest(path), False) == []
    assert judge_digest(*good_whole(), True) == []


def test_a_group_of_documents_in_one_digest_passes() -> None:
    assert judge_digest({"digest/part-01.md": executor.digest(SOURCES, "digest/part-01.md")[0]}, SOURCES, False) == []


def break_digest(old: str, new: str) -> list[Finding]:
    deliverables, sources = good_digest()
    text = deliverables["digest/x.md"]
    assert text is not None and old in text
    return judge_digest({"digest/x.md": text.replace(old, new)}, sources, False)


FIRST = "- A message lies in the inbox until its runner claims it."


@pytest.mark.parametrize(
    "old, new, what",
    [
        (FIRST, "- The moon is made of cheese.", "stands in no source"),
        (FIRST, f"{FIRST} The moon is made of cheese.", "stands in no source"),
        (FIRST, f"{FIRST}\nThe moon is made of cheese.", "stands in no source"),
        (FIRST, FIRST.replace("claims", "loses"), "stands in no source"),
        (FIRST, "- A message lies in the inbox until its", "only the beginning of a sentence"),
        (FIRST, "- exactly one runner wins a message", "only a piece of a sentence"),
        (FIRST, "-", "an empty list item"),
        ("## Mailboxes", "## Mailboxes lose every message", "the heading is neither a title"),
        ("## Mailboxes", "Everything is lost.\n\n## Mailboxes", "text outside of any section"),
        ("## Mailboxes", "# All mail is lost\n\n## Mailboxes", "the heading does not say"),
        ("Source: a/mail.md", "Source: a/other.md", "was not to be read"),
        ("Source: a/mail.md\n", "", "no section has a `Source:` line"),
        ("- The claim is a rename, so exactly one runner wins a message.\n", "", "at least 3 are needed"),
    ],
)
def test_a_broken_digest_is_refused(old: str, new: str, what: str) -> None:
    assert says(break_digest(old, new), what)


def test_a_missing_deliverable_is_refused() -> None:
    _, sources = good_digest()
    assert says(judge_digest({"digest/x.md": None}, sources, False), "missing or cannot be read")
    assert says(judge_digest({}, sources, False), "nothing to judge")


@pytest.mark.parametrize("text", ["", " \n\n"])
def test_an_empty_file_is_refused(text: str) -> None:
    assert says(judge_digest({"digest/x.md": text}, good_digest()[1], False), "the digest is empty")


@pytest.mark.parametrize("rest", ["", f"\n{NO_SENTENCES}\n"])
def test_an_empty_section_is_refused_when_the_document_has_sentences(rest: str) -> None:
    text = f"## Mailboxes\nSource: a/mail.md\n{rest}"
    assert says(judge_digest({"digest/x.md": text}, good_digest()[1], False), "the document has sentences")


def test_a_document_without_a_section_is_refused() -> None:
    deliverables, sources = good_digest()
    assert says(
        judge_digest(deliverables, {**sources, "b/keys.md": KEYS}, False), "no section for the document b/keys.md"
    )


def test_the_digest_of_another_document_is_refused() -> None:
    other = good_digest("b/keys.md")[0]
    assert says(judge_digest(other, good_digest()[1], False), "was not to be read")
    disguised = str(other["digest/x.md"]).replace("b/keys.md", "a/mail.md").replace("## Secrets", "## Mailboxes")
    assert says(judge_digest({"digest/x.md": disguised}, good_digest()[1], False), "stands in no source")
    both = {"a/mail.md": MAIL, "b/keys.md": KEYS}
    assert says(judge_digest({"digest/x.md": disguised}, both, False), "stands in b/keys.md, not in a/mail.md")


def test_a_document_that_cannot_be_read_is_not_judged() -> None:
    assert says(judge_digest(good_digest()[0], {"a/mail.md": None}, False), "cannot be read")


def test_a_copy_of_the_whole_document_is_no_digest() -> None:
    text = "# T\n\n" + " ".join(f"Sentence number {i} is about topic {i}." for i in range(8))
    bullets = "".join(f"- {s.text}\n" for s in markup.read(text).sentences)
    findings = judge_digest({"d.md": f"## T\nSource: t.md\n\n{bullets}"}, {"t.md": text}, False)
    assert says(findings, "a copy, no digest")


def test_findings_say_where_and_stay_few() -> None:
    finding = break_digest(FIRST, "- The moon is made of cheese.")[0]
    assert finding["where"] == "digest/x.md:4" and finding["evidence"] == "The moon is made of cheese."
    flood = "## Mailboxes\nSource: a/mail.md\n\n" + "".join(f"- Wrong {i}.\n" for i in range(500))
    assert len(judge_digest({"digest/x.md": flood}, good_digest()[1], False)) <= 50


def test_what_another_author_may_do() -> None:
    for new in (
        FIRST.replace("message", "**message**"),
        FIRST.replace("- ", "* "),
        FIRST.replace("until", "\n  until"),
        f"{FIRST} The claim is a rename, so exactly one runner wins a message.",
        FIRST.removeprefix("- "),
    ):
        assert break_digest(FIRST, new) == [], new
    assert break_digest("## Mailboxes", "# Digest of a/mail.md\n\n## mail.md") == []


@given(st.data())
@settings(deadline=None, max_examples=150)
def test_every_cut_inside_a_digest_is_refused(data: st.DataObject) -> None:
    deliverables, sources = good_digest()
    text = deliverables["digest/x.md"]
    assert text is not None
    cut = data.draw(st.integers(0, len(text) - 2))
    assert refused(judge_digest({"digest/x.md": text[:cut]}, sources, False))


@given(st.data())
@settings(deadline=None, max_examples=150)
def test_every_cut_inside_the_digest_of_all_is_refused(data: st.DataObject) -> None:
    deliverables, sources = good_whole()
    text = deliverables["DIGEST.md"]
    assert text is not None
    cut = data.draw(st.integers(0, len(text) - 2))
    assert refused(judge_digest({"DIGEST.md": text[:cut]}, sources, True))


def break_whole(old: str, new: str, drop: str = "") -> list[Finding]:
    deliverables, sources = good_whole()
    text = deliverables["DIGEST.md"]
    assert text is not None and old in text
    return judge_digest({"DIGEST.md": text.replace(old, new, 1)}, {p: t for p, t in sources.items() if p != drop}, True)


@pytest.mark.parametrize(
    "old, new, what",
    [
        ("# Digest of 3 documents", "# Digest of 4 documents", "the heading does not say"),
        ("# Digest of 3 documents\n", "", "the heading `# Digest of 3 documents` is missing"),
        ("## Overview", "## Introduction", "the section `## Overview` is missing"),
        (" ([a/mail.md])", "", "names no source at its end"),
        (" ([a/mail.md])", " ([b/keys.md])", "stands in a/mail.md, not in b/keys.md"),
        ("Source: b/keys.md\n", "Source: b/keys.md\n\n- The moon is made of cheese.\n", "stands in no source"),
        (f"\n## Numbers\nSource: c/table.md\n\n{NO_SENTENCES}\n", "", "no section for the document c/table.md"),
    ],
)
def test_a_broken_synthesis_is_refused(old: str, new: str, what: str) -> None:
    assert says(break_whole(old, new), what)


def test_a_synthesis_that_leaves_out_a_sentence_of_a_digest_is_refused() -> None:
    deliverables, sources = good_whole()
    text = str(deliverables["DIGEST.md"])
    head, section = text.split("Source: a/mail.md\n\n")
    _, rest = section.split("\n", 1)
    findings = judge_digest({"DIGEST.md": f"{head}Source: a/mail.md\n\n{rest}"}, sources, True)
    assert says(findings, "lacks this sentence of its digest")


def test_a_synthesis_with_an_empty_overview_is_refused() -> None:
    deliverables, sources = good_whole()
    text = str(deliverables["DIGEST.md"])
    rest = text[text.index("## Mailboxes") :]
    empty = f"# Digest of 3 documents\n\n## Overview\n\n{NO_SENTENCES}\n\n{rest}"
    assert says(judge_digest({"DIGEST.md": empty}, sources, True), "the overview is empty")


def test_a_synthesis_without_its_digests_is_not_judged() -> None:
    deliverables, _ = good_whole()
    assert says(judge_digest(deliverables, SOURCES, True), "no digests")
    assert says(judge_digest(deliverables, {**SOURCES, "digest/0.md": None}, True), "this digest is missing")


NASTY = {
    "headings only": "# One\n\n## Two\n\n### Three\n",
    "code only": "```\ncode. More code.\n```\n",
    "empty": "",
    "blank": "\r\n \r\n",
    "table": TABLE,
    "windows": MAIL.replace("\n", "\r\n"),
    "long line": "word " * 50_000,
    "long line of sentences": MAIL.replace("\n", " ") * 300,
    "quotes": 'He said: "See https://x.org/a. Now!" and left. Dr. No, i.e. the doctor, stayed (why?). "So." She did.',
    "bullets without a period": "- alpha is first in line\n- beta follows alpha\n- gamma\n- delta is last in line\n",
    "one title for two": "# Overview\n\nThis document is called as the overview is. It says little.\n",
    "looks like a digest": "## X\nSource: y.md\n\n- Words of nobody at all.\n(no sentences)\n# Digest of 9 documents\n",
    "marks in words": "Use *args_ and **kwargs in `f(*a, **k)`. A line - with - dashes. * no list. _half open. Done__.",
    "chinese": "# 标题\n\n数据库很快。消息在收件箱里。代理是一个进程!它写文件。日志是真相。没有日志就没有真相。",
    "escapes": 'A \\*star\\* stays. An [a](b.md "t") link. ![i](j.png) An image. <https://x.org> is it. [r][1] too.',
    "twin": MAIL,
}


def test_a_draft_is_digested_without_its_gaps() -> None:
    text = (
        "# [TODO] title\n\nLorem ipsum dolor sit amet.\n\nThe price is [INSERT price] euros. " + MAIL.split("\n", 1)[1]
    )
    digest, _ = executor.digest({"a.md": text}, "digest/a.md")
    assert "TODO" not in digest and "INSERT" not in digest and "Lorem" not in digest
    assert judge_digest({"digest/a.md": digest}, {"a.md": text}, False) == []
    gaps, _ = executor.digest({"a.md": "Lorem ipsum dolor sit amet."}, "digest/a.md")
    assert NO_SENTENCES in gaps
    assert judge_digest({"digest/a.md": gaps}, {"a.md": "Lorem ipsum dolor sit amet."}, False) == []


@pytest.mark.parametrize("name", NASTY)
def test_nasty_documents_have_digests_that_pass_and_stand_in_them(name: str) -> None:
    path = f"docs/{name.replace(' ', '-')}.md"
    text = NASTY[name]
    digest, _ = executor.digest({path: text}, "digest/x.md")
    assert judge_digest({"digest/n.md": digest}, {path: text}, False) == []
    keys = {key(s.text) for s in markup.read(text).sentences}
    [part] = parse(digest).parts
    assert all(key(item.text) in keys for item in part.items)
    assert bool(part.items) == bool(keys)
    assert part.says_none != bool(keys)


some_paths = st.sampled_from(["a.md", "b/c.txt", "d e.md"])
some_text = st.one_of(st.text(max_size=300), st.sampled_from(sorted(NASTY.values())))


@given(st.dictionaries(some_paths, some_text, min_size=1))
@settings(deadline=None, max_examples=150)
def test_whatever_is_digested_passes(texts: dict[str, str]) -> None:
    digests = {f"digest/{i}.md": executor.digest({p: t}, f"digest/{i}.md")[0] for i, (p, t) in enumerate(texts.items())}
    for i, (path, text) in enumerate(texts.items()):
        assert judge_digest({f"digest/{i}.md": digests[f"digest/{i}.md"]}, {path: text}, False) == []
    whole, _ = executor.whole(digests, sorted(texts), "DIGEST.md")
    assert judge_digest({"DIGEST.md": whole}, {**texts, **digests}, True) == []
    assert whole == executor.whole(dict(reversed(digests.items())), sorted(texts, reverse=True), "DIGEST.md")[0]
