"""Links of quoted sentences: from a digest they lead where they led from the document."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loom.models.builtin import executor
from loom.models.builtin.judge import judge_digest
from loom.models.builtin.links import destination, destinations, moved
from loom.models.builtin.text import key

TREE = {
    "README.md": "# Home\n\nStart with [the guide](docs/guide.md). The [licence](LICENSE) is short. That is all.",
    "docs/guide.md": (
        "# Guide\n\nRead [the depths](deep/notes.md#first) after this. Go [home](../README.md) at any time. "
        "![A picture](pictures/one%20map.png) shows the way."
    ),
    "docs/deep/notes.md": (
        "# Notes\n\nThe [guide](../guide.md \"before\") came before. See [above](#first) and [the decision]"
        "(<../../adrs/0001 names.md>). The [folder](../) holds both; [another project](../../../other/) does not."
    ),
    "adrs/0001 names.md": "# Names\n\nNames are [as plain](../docs/deep/notes.md) as can be. Two more. Three more.",
    "LICENSE": "none",
    "docs/pictures/one map.png": "png",
}  # fmt: skip
DOCUMENTS = sorted(path for path in TREE if path.endswith(".md"))


def digested(texts: dict[str, str]) -> dict[str, str]:
    """The digests of texts by path, each made alone, and DIGEST.md from them."""
    paths = {path: f"digest/{number}.md" for number, path in enumerate(sorted(texts))}
    made = {to: executor.digest({path: texts[path]}, to)[0] for path, to in paths.items()}
    return {**made, "DIGEST.md": executor.whole(made, sorted(texts), "DIGEST.md")[0]}


def test_every_link_of_a_digest_resolves_from_where_it_lies(tmp_path: Path):
    texts = {path: TREE[path] for path in DOCUMENTS}
    made = digested(texts)
    for path, text in {**TREE, **made}.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    for path in made:
        for line in (tmp_path / path).read_text().splitlines():
            for target in targets(line):
                there = (tmp_path / path).parent / unquote(target.partition("#")[0])
                assert there.exists(), f"{path}: {target}"
    assert sum(len(targets(line)) for line in made["DIGEST.md"].splitlines()) > 10
    assert "and another project does not" not in made["DIGEST.md"] and "another project does not." in made["DIGEST.md"]


def targets(line: str) -> list[str]:
    """What stands in brackets after brackets, found without the code under test."""
    found = [piece.partition(")")[0] for piece in line.split("](")[1:]]
    return [t.split(' "')[0].strip("<>") for t in found]


def test_the_verifier_finds_nothing_in_such_digests():
    texts = {path: TREE[path] for path in DOCUMENTS}
    made = digested(texts)
    whole = made.pop("DIGEST.md")
    assert judge_digest({"DIGEST.md": whole}, {**texts, **made}, True) == []
    for path, to in zip(sorted(texts), made, strict=True):
        assert judge_digest({to: made[to]}, {path: texts[path]}, False) == []


def test_the_verifier_tells_a_link_that_leads_elsewhere_and_refuses_nothing_for_it():
    texts = {"docs/guide.md": TREE["docs/guide.md"]}
    good = executor.digest(texts, "digest/guide.md")[0]
    for wrong in (good.replace("../docs/deep", "deep"), good.replace("../README", "https://example.org/README")):
        assert wrong != good
        (finding,) = judge_digest({"digest/guide.md": wrong}, texts, False)
        assert finding["severity"] == "minor" and "does not lead where that of docs/guide.md leads" in finding["what"]


@pytest.mark.parametrize("text, there", [
    ("[a](b.md)", "[a](../docs/b.md)"),
    ("[a](./x/../b.md#p-1)", "[a](../docs/b.md#p-1)"),
    ("[a](../b.md?plain=1)", "[a](../b.md?plain=1)"),
    ("[a](../digest/b.md)", "[a](b.md)"),
    ("[a](..)", "[a](..)"),
    ("[a](sub/)", "[a](../docs/sub/)"),
    ("[a](#here)", "[a](../docs/of.md#here)"),
    ("[a](b_(c).md 'why')", "[a](../docs/b_%28c%29.md 'why')"),
    ("[a](<b c.md>)", "[a](../docs/b%20c.md)"),
    ("[![i](j.png)](b.md)", "[![i](../docs/j.png)](../docs/b.md)"),
    ("![i](j.png) and ![k](../../l.png) more", "![i](../docs/j.png) and more"),
    ("[a **b**](../../c.md) d", "a **b** d"),
    ("[![i](j.png)](../../c.md)", "![i](../docs/j.png)"),
    ("[a](https://x.org/b.md) [b](/c.md) [d](mailto:e@f.gh) [g]() [h](<https://x.org/i j>)", None),
    ("`[a](b.md)` \\[a](b.md) [a][b] [a] (b.md) ![", None),
])  # fmt: skip
def test_where_a_link_leads_decides_how_it_is_spelled(text: str, there: str | None):
    assert moved(text, "docs/of.md", "digest/x.md") == (there or text)


def test_what_markdown_cannot_hold_is_encoded():
    assert moved("[a](b.md)", "my (own) notes/é#1.md", "DIGEST.md") == "[a](my%20%28own%29%20notes/b.md)"
    assert moved("[a](#b)", "my (own) notes/é#1.md", "DIGEST.md") == "[a](my%20%28own%29%20notes/é%231.md#b)"


FOLDERS = st.lists(st.sampled_from(["a", "b c", "ü(1)"]), max_size=3)
FILES = st.builds(lambda folders, name: "/".join([*folders, name]), FOLDERS, st.sampled_from(["x.md", "y z.md"]))
LINKS = st.builds(
    lambda up, folders, name, rest: "../" * up + "/".join([*folders, name]) + rest,
    st.integers(0, 4),
    st.lists(st.sampled_from(["a", "b%20c", ".", ".."]), max_size=3),
    st.sampled_from(["x.md", "y%20z.md", "sub/", "n_(1).png"]),
    st.sampled_from(["", "#part", "?a=b#c"]),
)


@given(LINKS, FILES, FILES, FILES)
def test_a_link_leads_to_the_same_place_wherever_it_is_moved(link: str, source: str, one: str, other: str):
    text = f"See [words]({link}) and ![picture]({link})."
    end = destination(link, source)
    once = moved(text, source, one)
    assert destinations(once, one) == {end} - {None}
    assert moved(once, one, other) == moved(text, source, other)
    assert key(once) == key(text)


@given(st.dictionaries(FILES, st.lists(LINKS, min_size=1, max_size=4), min_size=1, max_size=4))
@settings(deadline=None, max_examples=60)
def test_digests_of_linked_documents_pass_without_a_finding(links: dict[str, list[str]]):
    texts = {
        path: "# T\n\n" + " ".join(f"Sentence {n} has [a link]({link})." for n, link in enumerate(found))
        for path, found in links.items()
    }
    made = digested(texts)
    whole = made.pop("DIGEST.md")
    assert judge_digest({"DIGEST.md": whole}, {**texts, **made}, True) == []
