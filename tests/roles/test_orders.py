"""Orders as Markdown: what is quoted in them stays data, and the built-in models read back what was written."""

from __future__ import annotations

import json
import re
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loom.models.builtin import orders as builtin
from loom.roles import orders
from loom.wire.chat import ToolSpec
from loom.wire.order import Order, report_fault
from loom.wire.plan import Subtask, decode, is_workspace_path, subtask_to_json

PIECES = [
    "## Claim", "# Goal", "## ", "### `x`", "#", "```", "~~~", "`", "> ", "- ", "\n", "\r", "\r\n", "\n\n",
    "\x0b", "\x0c", "\x1c", "\x1d", "\x1e", "\x85", "\u2028", "\u2029", "\x00", "\x1b[2J", "\ud7ff", "\u202e", "{}",
    '"', " ", "\t", "a", "é",
]  # fmt: skip
hostile = st.lists(st.sampled_from(PIECES) | st.characters(exclude_categories=["Cs"]), max_size=12).map("".join)
names = hostile
paths = hostile
subtask_payloads = st.fixed_dictionaries(
    {
        "id": names,
        "title": hostile,
        "instruction": hostile,
        "reads": st.lists(paths, max_size=2),
        "deliverables": st.lists(paths, max_size=2),
        "acceptance": st.lists(hostile, max_size=2),
        "synthesis": st.booleans(),
    }
)
finding = st.fixed_dictionaries(dict.fromkeys(("severity", "where", "what", "evidence"), hostile))
plans = st.fixed_dictionaries(
    {
        "goal": hostile,
        "files": st.lists(st.tuples(paths, st.integers(0, 10**12)), max_size=3),
        "max_subtasks": st.integers(1, 200),
        "refused": st.lists(hostile, max_size=2),
    },
    optional={
        "replan": st.fixed_dictionaries(
            {
                "finished": st.lists(st.fixed_dictionaries({"id": names, "title": hostile}), max_size=2),
                "failed": st.lists(
                    st.fixed_dictionaries({"id": names, "title": hostile, "reason": hostile}), max_size=2
                ),
            }
        )
    },
)
executes = st.fixed_dictionaries(
    {
        "subtask": subtask_payloads,
        "results": st.lists(st.fixed_dictionaries({"id": names, "title": hostile, "summary": hostile}), max_size=2),
        "findings": st.lists(finding, max_size=2),
    }
)
verifies = st.fixed_dictionaries(
    {
        "subtask": subtask_payloads,
        "checks": st.lists(
            st.fixed_dictionaries({"name": hostile, "passed": st.booleans(), "detail": hostile}), max_size=2
        ),
        "diff": hostile,
        "claim": hostile,
    }
)
SECTIONS = {
    "plan": ["# Goal", "## Files", "## Limits"],
    "execute": ["# Subtask", "## Reads", "## Deliverables", "## Acceptance"],
    "verify": ["# Subtask", "## Reads", "## Deliverables", "## Acceptance", "## Checks", "## Diff", "## Claim"],
}
MORE = {
    "plan": ["## Refused", "## Replan"],
    "execute": ["## Synthesis", "## Results of earlier subtasks", "## Findings"],
    "verify": ["## Synthesis"],
}
ANY_BREAK = re.compile(r"[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]")


@given(st.one_of(
    st.tuples(st.just("plan"), plans), st.tuples(st.just("execute"), executes), st.tuples(st.just("verify"), verifies)
))  # fmt: skip
@settings(max_examples=300, derandomize=True, deadline=None)
def test_nothing_that_is_quoted_makes_a_heading_or_closes_a_fence(given_: tuple[str, dict[str, Any]]):
    kind, payload = given_
    text = orders.request(Order(kind, payload=payload), "m", ()).messages[1].text
    # A reader may break lines at \n alone or at whatever Python, Unicode or a terminal takes for one.
    for lines in (text.split("\n"), ANY_BREAK.split(text)):
        headings = [line for line in lines if re.match(r"#{1,2}(\s|$)", line)]
        wanted = SECTIONS[kind]
        optional = [h for h in headings if h in MORE[kind]]
        assert [h.split(" `")[0] for h in headings if h not in MORE[kind]] == wanted
        assert len(set(optional)) == len(optional)
        fences = [line for line in lines if line.startswith("```")]
        assert len(fences) >= (2 if kind == "verify" else 0) and (kind == "verify" or not fences)
        if fences:
            ticks = fences[0].removesuffix("diff")
            assert set(ticks) == {"`"} and fences[-1] == ticks
            assert not any(ticks in line for line in fences[1:-1])


# -- what the built-in models read ----------------------------------------------------------------------------------

said = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
real_paths = st.text(st.sampled_from("ab `.-_é(){}#>"), min_size=1, max_size=10).filter(is_workspace_path)


def lines_of(text: str) -> str:
    return "\n".join(text.splitlines()).strip()


@given(said, st.lists(st.tuples(real_paths, st.integers(0, 10**12)), max_size=4, unique_by=lambda f: f[0]))
@settings(max_examples=200, derandomize=True, deadline=None)
def test_a_goal_and_its_files_are_read_back(goal: str, files: list[tuple[str, int]]):
    text = orders.plan_text({"goal": goal, "files": files, "max_subtasks": 7, "refused": ["a"]})
    order = builtin.parse(text)
    assert (order.heading, order.text()) == ("Goal", lines_of(goal))
    assert order.paths("files") == [path for path, _ in files]
    assert order.items("limits") == [] and order.sections["limits"][0] == "Limit: at most 7 subtasks"
    assert order.items("refused") == ["a"] and not order.has("replan")


def test_files_that_are_left_out_are_counted():
    order = builtin.parse(orders.plan_text({"goal": "x", "files": [[f"f{n}", 1] for n in range(orders.MAX_FILES + 5)]}))
    assert len(order.paths("files")) == orders.MAX_FILES and order.more("files") == 5


subtasks = st.builds(
    Subtask,
    st.just("a-1"),
    said.filter(str.strip),
    said.filter(str.strip),
    acceptance=st.lists(said, max_size=2, unique=True).map(tuple),
    deliverables=st.lists(real_paths, max_size=3, unique=True).map(tuple),
    reads=st.lists(real_paths, max_size=3, unique=True).map(tuple),
    synthesis=st.booleans(),
)


@given(subtasks, said, said)
@settings(max_examples=200, derandomize=True, deadline=None)
def test_a_subtask_is_read_back_from_both_orders(subtask: Subtask, diff: str, claim: str):
    payload = subtask_to_json(subtask)
    result = {"id": "b", "title": "t", "summary": claim}
    execute = builtin.parse(orders.execute_text({"subtask": payload, "results": [result], "findings": []}))
    check = {"name": "exists", "passed": True, "detail": ""}
    verify = builtin.parse(orders.verify_text({"subtask": payload, "checks": [check], "diff": diff, "claim": claim}))
    for order in (execute, verify):
        assert order.heading == f"Subtask `a-1`: {' '.join(subtask.title.split())}".strip()
        assert order.text() == lines_of(subtask.instruction)
        assert tuple(order.paths("reads")) == subtask.reads
        assert tuple(order.paths("deliverables")) == subtask.deliverables
        items = [" ".join(a.split()) for a in subtask.acceptance]
        assert [i for i in order.items("acceptance") if i] == (
            [i for i in items if i] or (["(none)"] if not items else [])
        )
        assert order.has("synthesis") == subtask.synthesis
    assert builtin.unquoted(verify.sections["claim"]) == lines_of(claim)
    assert verify.items("checks") == ["exists: passed"]
    assert builtin.unquoted(execute.sections["results of earlier subtasks"]) == lines_of(claim)


@given(real_paths)
def test_a_path_stands_in_backticks_as_commonmark_reads_them(path: str):
    match = re.fullmatch(r"(`+)(.*?)\1", orders.code(path))
    assert match and match[1] not in match[2]
    assert builtin.path_of(orders.code(path)) == path


def test_names_that_cannot_be_shown_are_escaped():
    assert orders.code("a\nb\u2028c") == "`a\\nb\\u2028c`"


# -- answers --------------------------------------------------------------------------------------------------------

anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | hostile,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(
        ["passed", "findings", "severity", "what", "where", "confidence", "inconclusive", "status", "reason",
         "subtasks"]
    ), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


@given(anything, hostile)
@settings(max_examples=400, derandomize=True, deadline=None)
def test_whatever_a_model_says_is_a_report_that_the_router_accepts(answer: Any, around: str):
    text = around + json.dumps(answer) + around
    for kind in ("plan", "execute", "verify"):
        assert report_fault(kind, orders.read(Order(kind), text)) == ""
    assert report_fault("verify", orders.read_verdict(around)) == ""


@given(st.dictionaries(st.sampled_from(["passed", "confidence", "findings", "inconclusive", "x"]), anything))
@settings(max_examples=300, derandomize=True, deadline=None)
def test_a_pass_is_a_pass_only_when_it_says_so_and_nothing_speaks_against_it(said: dict[str, Any]):
    read = orders.read_verdict(json.dumps(said))
    if read["passed"]:
        assert said["passed"] is True and said.get("inconclusive") is not True and not read["inconclusive"]
        assert all(f["severity"] == "minor" for f in read["findings"])
    if said.get("passed") is not True:
        assert not read["passed"]


@pytest.mark.parametrize("text", [
    "", "passed", "It passes.", '{"passed": "true"}', '{"passed": 1}', '{"passed": null}',
    '{"verdict": {"passed": true}}',
    '{"passed": true, "inconclusive": true}',
    '{"passed": true, "findings": [{"severity": "blocker", "what": "x"}]}',
    '{"passed": true, "findings": [{"severity": "BLOCKER"}]}',
    '{"passed": true, "findings": ["it is wrong"]}',
    '{"passed": true, "findings": "it is wrong"}',
    '{"passed": true, "findings": {"severity": "major"}}',
    '{"passed": true, "findings": 5} {"passed": false}',
    'The diff says {"passed": true} but {"passed": false, "findings": []}',
    'The diff says ```\n{"passed": true}\n``` but {"passed": false}',
    '```json\n{"passed": true}\n```\n```json\n{"passed": false}\n```',
])  # fmt: skip
def test_what_is_no_clear_pass_is_none(text: str):
    read = orders.read_verdict(text)
    assert not read["passed"] and read["inconclusive"] and read["why"]


@pytest.mark.parametrize("text, confidence", [
    ('{"passed": true}', 0.5), ('{"passed": true, "confidence": 1}', 1.0), ('{"passed": true, "confidence": 7}', 0.5),
    ('{"passed": true, "confidence": true}', 0.5), ('{"passed": true, "confidence": "0.9"}', 0.5),
    ('{"passed": true, "confidence": 0.25, "findings": [{"severity": "minor", "what": "x"}]}', 0.25),
    ('Well.\n```json\n{"passed": true,}\n```', 0.5),
])  # fmt: skip
def test_a_clear_pass_is_one(text: str, confidence: float):
    read = orders.read_verdict(text)
    assert (read["passed"], read["confidence"], read["inconclusive"]) == (True, confidence, False)


def test_a_clear_rejection_is_one_with_its_findings():
    read = orders.read_verdict(
        '{"passed": false, "findings": [{"severity": "minor", "where": "a\\nb", "what": "x"}, 7]}'
    )
    assert not read["passed"] and not read["inconclusive"]
    assert read["findings"] == [{"severity": "minor", "where": "a b", "what": "x", "evidence": ""}]


@pytest.mark.parametrize("text, expected", [
    (" plain words ", {"status": "done", "summary": "plain words"}),
    ('{"status": "done", "summary": " s "}', {"status": "done", "summary": "s"}),
    ('{"status": "done"}', {"status": "done", "summary": '{"status": "done"}'}),
    ('{"status": "blocked", "reason": "a\\nb"}', {"status": "blocked", "reason": "a b"}),
    ('{"status": "blocked"}', {"status": "blocked", "reason": "no reason given"}),
    ('{"status": "blocked", "reason": 7}', {"status": "blocked", "reason": "7"}),
])  # fmt: skip
def test_what_an_executor_says(text: str, expected: dict[str, str]):
    assert orders.read_result(text) == expected


def test_what_a_planner_says():
    assert orders.read_plan('Here: {"subtasks": []}') == {"plan": {"subtasks": []}}
    assert "subtasks" in orders.read_plan("I cannot.")["unusable"]


@given(subtasks)
def test_a_plan_that_is_written_is_the_plan_that_is_read(subtask: Subtask):
    text = f"Sure.\n```json\n{json.dumps({'subtasks': [subtask_to_json(subtask)]})}\n```\n"
    plan, faults = decode(orders.read_plan(text)["plan"])
    assert faults == [] and plan is not None and plan.subtasks == (subtask,)


def test_every_role_has_a_prompt_and_gets_its_tools():
    tool = ToolSpec("read-file", "", {})
    for kind, payload in (("plan", {"goal": "x"}), ("execute", {"subtask": subtask_to_json(Subtask("a", "a", "a"))})):
        request = orders.request(Order(kind, payload=payload), "m", [tool])
        assert request.messages[0].role == "system" and len(request.messages[0].text) > 200
        assert request.tools == (tool,) and request.model == "m"


def test_long_texts_are_cut_and_many_backticks_take_no_time():
    payload = {"subtask": subtask_to_json(Subtask("a", "a", "a")), "diff": "`" * 500_000, "claim": "x" * 500_000}
    began = time.process_time()
    text = orders.verify_text(payload)
    assert len(text) < 3 * orders.MAX_DIFF_CHARS + orders.MAX_RESULT_CHARS + 1000
    assert "[… 492000 more characters]" in text and time.process_time() - began < 2
