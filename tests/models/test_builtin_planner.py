"""builtin/planner: which goals become which plans."""

from __future__ import annotations

import json
import random
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loom.models.builtin import planner
from loom.wire.chat import ChatMessage, ChatReply, ChatRequest
from loom.wire.plan import decode

FILES = ["adrs/0002-two.md", "README.md", "adrs/0001-one.md", "docs/guide.rst", "docs/README.md", "src/main.py"]


def order(goal: str, files: list[str], more: str = "") -> str:
    quoted = "\n".join(f"> {line}" for line in goal.split("\n"))
    listed = "\n".join(f"- `{f}` (12 bytes)" for f in files) or "- (none)"
    return f"# Goal\n{quoted}\n\n## Files\n{listed}\n{more}"


def ask(*messages: str) -> list[dict[str, Any]]:
    request = ChatRequest("builtin/planner", tuple(ChatMessage("user", m) for m in messages))
    reply = list(planner.open("builtin/planner").stream(request))[-1]
    assert isinstance(reply, ChatReply) and not reply.calls
    blocks = re.findall(r"```json\n(.*?)\n```", reply.text, re.DOTALL)
    assert len(blocks) == 1
    subtasks = json.loads(blocks[0])["subtasks"]
    assert_sound(subtasks)
    return subtasks


def assert_sound(subtasks: list[dict[str, Any]]) -> None:
    """What every plan owes: it decodes, unique ids, known dependencies that come first, no deliverable owned twice."""
    assert decode({"subtasks": subtasks})[1] == []
    ids = [t["id"] for t in subtasks]
    owned = [d for t in subtasks for d in t["deliverables"]]
    assert len(set(ids)) == len(ids) and len(set(owned)) == len(owned)
    for i, task in enumerate(subtasks):
        assert re.fullmatch(r"[a-z0-9][a-z0-9-]{0,59}", task["id"])
        assert set(task["depends_on"]) <= set(ids[:i])
        assert task["title"] and task["instruction"] and task["tier"] == 1 and task["level"] == 2


def read_by(subtasks: list[dict[str, Any]]) -> list[list[str]]:
    return [t["reads"] for t in subtasks if not t.get("synthesis")]


def test_documents_become_one_subtask_each_and_a_synthesis() -> None:
    tasks = ask(order("Summarise every document.", FILES))
    assert read_by(tasks) == [
        ["README.md"],
        ["adrs/0001-one.md"],
        ["adrs/0002-two.md"],
        ["docs/README.md"],
        ["docs/guide.rst"],
    ]
    assert [t["id"] for t in tasks] == [
        "digest-readme",
        "digest-0001-one",
        "digest-0002-two",
        "digest-readme-2",
        "digest-guide",
        "digest",
    ]
    last = tasks[-1]
    assert last["synthesis"] is True and last["deliverables"] == ["DIGEST.md"]
    assert last["depends_on"] == [t["id"] for t in tasks[:-1]]
    assert set(last["reads"]) == {d for t in tasks[:-1] for d in (*t["reads"], *t["deliverables"])}
    assert tasks[1]["deliverables"] == ["digest/0001-one.md"]
    assert tasks[1]["instruction"].startswith("Summarise adrs/0001-one.md in 3 to 6 of its own sentences and write")


@pytest.mark.parametrize(
    "goal, documents",
    [
        ("Summarise adrs/0001-one.md", ["adrs/0001-one.md"]),
        ("Summarise `0002-two.md` and guide.rst.", ["adrs/0002-two.md", "docs/guide.rst"]),
        ("Summarise these:\n- adrs/0001-one.md\n- ./docs/guide.rst", ["adrs/0001-one.md", "docs/guide.rst"]),
        ("What does README.md say?", ["README.md"]),  # the whole path of one, only the end of another
        ("A digest of adrs/ please", ["adrs/0001-one.md", "adrs/0002-two.md"]),
        ("Summarise docs/*.rst and docs/README.md", ["docs/README.md"]),
        ("Summarise missing.md", ["missing.md"]),  # its reader reports that it is not there
        ("Summarise README.md and missing.md", ["README.md", "missing.md"]),
        ("Summarise all documents into DIGEST.md", sorted(f for f in FILES if not f.endswith(".py"))),
        ("Summarise all documents; write it to SUMMARY.md", sorted(f for f in FILES if not f.endswith(".py"))),
    ],
)
def test_a_goal_narrows_the_documents_by_naming_them(goal: str, documents: list[str]) -> None:
    assert read_by(ask(order(goal, FILES))) == [[d] for d in documents]


def test_earlier_digests_are_no_documents() -> None:
    tasks = ask(order("Summarise all into DIGEST.md", ["a.md", "DIGEST.md", "digest/a.md"]))
    assert read_by(tasks) == [["a.md", "digest/a.md"]]  # the second is looked at before it is written over


def test_a_list_becomes_one_subtask_per_item() -> None:
    goal = "Build a shop.\n\n- a cart\n  with prices\n- a checkout\n* a page"
    tasks = ask(order(goal, FILES))
    assert [t["acceptance"] for t in tasks] == [["a cart with prices"], ["a checkout"], ["a page"]]
    assert all(not t["depends_on"] and not t["deliverables"] and "Build a shop." in t["instruction"] for t in tasks)


def test_numbered_items_wait_for_each_other() -> None:
    tasks = ask(order("1. write it\n2. test it\n3) ship it", []))
    assert [t["depends_on"] for t in tasks] == [[], [tasks[0]["id"]], [tasks[1]["id"]]]


@pytest.mark.parametrize(
    "goal, files",
    [
        ("Say hello.", []),
        ("- only one item", ["main.py"]),
        ("Translate README.md into German", FILES),
        ("Summarise ../secret.md", FILES),
        ("Summarise /etc/motd.txt", FILES),
        ("Fix the bug in src/main.py", FILES),
        ("Create hello.txt with the word hello", FILES),
        ("Read the code and refactor it", FILES),
        ("", []),
    ],
)
def test_anything_else_is_one_subtask_with_the_goal_as_it_is(goal: str, files: list[str]) -> None:
    tasks = ask(order(goal, files))
    assert len(tasks) == 1 and not tasks[0]["deliverables"]
    assert tasks[0]["instruction"] == goal or not goal


def test_headings_in_the_goal_are_not_sections() -> None:
    tasks = ask(order("Summarise.\n## Limits\nLimit: at most 1 subtasks\n## Replan\n- `x`: done", ["a.md", "b.md"]))
    assert [t["id"] for t in tasks] == ["digest-a", "digest-b", "digest"]


@pytest.mark.parametrize("limit, groups", [(6, [1] * 5), (5, [1, 1, 1, 2]), (3, [2, 3]), (2, [5]), (1, [5])])
def test_a_limit_makes_groups_of_neighbours(limit: int, groups: list[int]) -> None:
    tasks = ask(order("Summarise all.", FILES, f"\n## Limits\nLimit: at most {limit} subtasks\n"))
    assert len(tasks) <= limit
    assert [len(r) for r in read_by(tasks)] == groups
    assert [d for r in read_by(tasks) for d in r] == sorted(f for f in FILES if f != "src/main.py")
    assert all(len(t["deliverables"]) == 1 for t in tasks)


def test_a_limit_holds_for_lists_too() -> None:
    tasks = ask(order("\n".join(f"- do {i}" for i in range(9)), [], "\n## Limits\nLimit: at most 4 subtasks\n"))
    assert len(tasks) == 4
    assert [a for t in tasks for a in t["acceptance"]] == [f"do {i}" for i in range(9)]


def test_a_refusal_and_a_nag_still_get_the_plan() -> None:
    goal = order("Summarise all.", FILES)
    assert ask(goal + "\n## Refused\n- the plan was not JSON\n") == ask(goal)
    assert ask(goal, "That was no JSON object. Answer again.") == ask(goal)


@pytest.mark.parametrize(
    "replan",
    [
        "Finished, keep as they are:\n- `digest-0001-one`: One\n- `older-work`: Older work\n"
        "Failed or blocked, find another way:\n- `digest-guide`: Guide: done by nobody\n",
        "### Finished\n- `digest-0001-one`: One\n- `older-work`: Older work\n### Failed\n- `digest-guide`: blocked\n",
        "- `digest-0001-one`: finished\n- `older-work`: Older work, done\n- `digest-guide`: failed\n",
    ],
)
def test_replanning_keeps_what_is_finished_by_its_id(replan: str) -> None:
    goal = order("Summarise all.", FILES)
    ids = [t["id"] for t in ask(f"{goal}\n## Replan\n{replan}")]
    assert ids == ["older-work", *(t["id"] for t in ask(goal))]


def test_steering_adds_to_the_goal() -> None:
    steered = order("Summarise all.", FILES) + "\n## Steering\n> only README.md\n> and docs/guide.rst\n"
    assert read_by(ask(steered)) == [["README.md"], ["docs/guide.rst"]]


def test_files_that_were_not_listed_are_owned_up_to() -> None:
    text = order("Summarise all.", ["a.md"], "- … and 12 more\n")
    reply = list(planner.open("p").stream(ChatRequest("p", (ChatMessage("user", text),))))[-1]
    assert isinstance(reply, ChatReply) and "12 more files" in reply.text


names = st.lists(
    st.text(alphabet="abÄ数 -_.0", min_size=1, max_size=60).map(lambda s: s + ".md"), max_size=12, unique=True
)


@given(names, st.integers(1, 15), st.randoms(use_true_random=False))
@settings(deadline=None)
def test_the_order_of_files_does_not_count(files: list[str], limit: int, draw: random.Random) -> None:
    shuffled = list(files)
    draw.shuffle(shuffled)
    tasks = planner.plan("Summarise all.", files, limit)
    assert tasks == planner.plan("Summarise all.", shuffled, limit)
    assert len(tasks) <= max(1, limit)
    assert_sound(tasks)


@given(st.text(max_size=200))
@settings(deadline=None)
def test_any_message_gets_a_plan(text: str) -> None:
    ask(text)
    ask(order(text, ["a.md"]))
