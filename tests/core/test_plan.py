"""Which plans are refused and with which words: they go back to the planner."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loom.core.plan import covers, find_cycle, fresh, overlaps, refusals, single, with_synthesis_last
from loom.wire.plan import Plan, Subtask


def sub(name: str, *depends_on: str, files: Collection[str] = (), synthesis: bool = False) -> Subtask:
    return Subtask(name, name, f"do {name}", depends_on, deliverables=tuple(files), synthesis=synthesis)


def judge(*subtasks: Subtask, limit: int = 10, finished: Collection[Subtask] = ()) -> list[str]:
    return refusals(Plan(subtasks), limit, {s.id: s for s in finished})


@pytest.mark.parametrize("subtasks, reasons", [
    ([sub("a"), sub("b", "a")], []),
    ([sub("a"), sub("a")], ["subtask id a is used twice"]),
    ([sub("a"), sub("a"), sub("a")], ["subtask id a is used twice"]),
    ([sub("a", "x")], ["subtask a depends on 'x', which is not in the plan"]),
    ([sub("a", "a")], ["subtask a depends on itself"]),
    ([sub("a", "b"), sub("b", "a")], ["circular dependency: a → b → a"]),
    ([sub("z", "a"), sub("a", "b"), sub("b", "c"), sub("c", "a")], ["circular dependency: a → b → c → a"]),
    ([sub("a", files=["x"]), sub("b", files=["x"])], ["deliverable x belongs to a and to b"]),
    ([sub("a", files=["d/"]), sub("b", files=["d/x"])], ["deliverable d/x belongs to a and to b"]),
    ([sub("a", files=["d/x"]), sub("b", files=["d/"])], ["deliverable d/ belongs to a and to b"]),
    ([sub("a", files=["d/e/f"]), sub("b", files=["d/e/g", "d/"])], ["deliverable d/ belongs to a and to b"]),
    ([sub("a", files=["d"]), sub("b", files=["d/x"])], ["deliverable d/x belongs to a and to b"]),
    ([sub("a", files=["d"]), sub("b", files=["d/"])], ["deliverable d/ belongs to a and to b"]),
    ([sub("a", files=["d"]), sub("b", files=["de", "d.x"])], []),
    ([sub("a", files=["d/", "d/x"])], []),
    ([sub("a", synthesis=True), sub("b", synthesis=True)], ["more than one synthesis: a, b"]),
    ([sub("s", synthesis=True), sub("b", "s")], ["subtask b depends on the synthesis s, which must come last"]),
    ([sub("s", "b", synthesis=True), sub("b")], []),
])  # fmt: skip
def test_what_is_wrong_with_a_plan_is_said(subtasks: list[Subtask], reasons: list[str]):
    assert judge(*subtasks) == reasons


def test_all_faults_are_named_at_once():
    assert len(judge(sub("a", "a", "x"), sub("a", files=["f"]), sub("c", files=["f"]))) == 4


@pytest.mark.parametrize("count, refused", [(10, False), (11, True)])
def test_the_limit_is_how_many_subtasks_there_may_be(count: int, refused: bool):
    reasons = judge(*[sub(f"s{n}") for n in range(count)])
    assert reasons == (["the plan has 11 subtasks, the limit is 10"] if refused else [])


def test_a_plan_far_beyond_the_limit_is_not_looked_at():
    reasons = judge(*[sub("a", "x", files=["f"]) for _ in range(1000)])
    assert reasons == ["the plan has 1000 subtasks, the limit is 10"]


def test_many_deliverables_take_no_time_that_grows_with_their_square():
    many = sub("a", files=[f"d{n}/x/y" for n in range(20_000)]), sub("b", files=[f"d{n}/x/z" for n in range(20_000)])
    began = time.process_time()
    assert judge(*many) == []
    assert time.process_time() - began < 5


def test_finished_subtasks_may_be_named_repeated_and_described_anew_and_keep_their_files():
    done = sub("a", files=["a.md"])
    assert judge(sub("b", "a"), finished=[done]) == []
    assert judge(sub("a", "b"), sub("b", "a"), finished=[done]) == []
    assert judge(sub("a", files=["x"]), sub("b", files=["a.md"]), finished=[done]) == [
        "deliverable a.md belongs to a and to b"
    ]
    assert judge(sub("a"), sub("a"), sub("b"), finished=[done]) == ["subtask id a is used twice"]
    assert judge(sub("a"), finished=[done])[0].startswith("every subtask of the plan is finished")
    assert fresh(Plan((sub("a"), sub("b"))), {"a": done}).subtasks == (sub("b"),)


def test_repeated_finished_subtasks_do_not_count_towards_the_limit():
    done = [sub(f"d{n}") for n in range(10)]
    assert judge(*done, *[sub(f"s{n}") for n in range(10)], finished=done) == []
    assert judge(*[sub(f"s{n}") for n in range(11)], finished=done) == ["the plan has 11 subtasks, the limit is 10"]


def test_the_synthesis_depends_on_all_others_and_keeps_its_own_order():
    plan = with_synthesis_last(Plan((sub("s", "b", synthesis=True), sub("a"), sub("b"))), {"old": sub("old")})
    assert plan.subtasks[0].depends_on == ("b", "old", "a")
    assert plan.subtasks[1:] == (sub("a"), sub("b"))


def test_one_subtask_for_everything_is_marked_and_acceptable():
    for goal in ("", "Write a book."):
        plan = single(goal)
        assert plan.degraded and refusals(plan, 1) == [] and plan.subtasks[0].instruction.strip()


# -- paths ----------------------------------------------------------------------------------------------------------

paths = st.lists(st.sampled_from(["a", "b", "ab"]), min_size=1, max_size=3).map("/".join)
deliverables = st.builds(lambda path, tail: path + tail, paths, st.sampled_from(["", "/"]))


@given(deliverables, deliverables, paths)
def test_two_deliverables_that_allow_one_path_overlap(one: str, other: str, path: str):
    assert overlaps(one, other) == overlaps(other, one)
    if covers(one, path) and covers(other, path):
        assert overlaps(one, other)
    if overlaps(one, other):  # the same, or one a directory of the other: they cannot both be files
        a, b = one.rstrip("/").split("/"), other.rstrip("/").split("/")
        assert a[: len(b)] == b or b[: len(a)] == a


@given(st.lists(deliverables, max_size=4), st.lists(deliverables, max_size=4))
def test_sharing_is_found_exactly_when_two_overlap(one: list[str], other: list[str]):
    shared = any(overlaps(a, b) for a in one for b in other)
    assert bool(judge(sub("a", files=one), sub("b", files=other))) == shared


# -- cycles ---------------------------------------------------------------------------------------------------------

graphs = st.dictionaries(st.sampled_from("abcdef"), st.lists(st.sampled_from("abcdefx"), max_size=3), max_size=6)


def has_cycle(edges: Mapping[str, Collection[str]]) -> bool:
    """By taking away, again and again, what depends on nothing that is left."""
    left = {name: set(targets) & edges.keys() for name, targets in edges.items()}
    while free := [name for name, targets in left.items() if not targets & left.keys()]:
        for name in free:
            del left[name]
    return bool(left)


@given(graphs)
def test_a_cycle_is_found_exactly_when_there_is_one_and_is_one(edges: dict[str, list[str]]):
    cycle = find_cycle(edges)
    assert bool(cycle) == has_cycle(edges)
    if cycle:
        assert cycle[0] == cycle[-1] and len(set(cycle)) == len(cycle) - 1 >= 1
        assert all(later in edges[name] for name, later in pairwise(cycle))


def test_a_chain_of_thousands_is_no_problem():
    edges = {f"s{n}": [f"s{n + 1}"] for n in range(20_000)}
    assert find_cycle(edges) == []
    assert len(find_cycle({**edges, "s20000": ["s0"]})) == 20_002


PARTS = st.sampled_from(["one", "two", "three"])


@st.composite
def plans_without_fault(draw: st.DrawFn) -> tuple[Subtask, ...]:
    names = draw(st.lists(st.sampled_from("abcdef"), min_size=1, unique=True))
    made: list[Subtask] = []
    for name in names:
        earlier = st.lists(st.sampled_from([s.id for s in made]), max_size=3, unique=True) if made else st.just([])
        made.append(
            Subtask(
                name,
                draw(PARTS),
                f"do {draw(PARTS)}",
                tuple(draw(earlier)),
                acceptance=tuple(draw(st.lists(PARTS, max_size=2, unique=True))),
                deliverables=tuple(f"{name}/{n}" for n in draw(st.lists(PARTS, max_size=2, unique=True))),
                reads=tuple(draw(st.lists(PARTS, max_size=2, unique=True))),
                tier=draw(st.integers(1, 3)),
            )
        )
    return tuple(made)


def judge_anew(new: Collection[Subtask], failed: Collection[Subtask]) -> list[str]:
    return refusals(Plan(tuple(new)), 10, {}, {s.id: s for s in failed})


@given(st.data(), plans_without_fault())
def test_the_same_work_is_refused_whatever_it_is_called_and_however_it_is_ordered(
    data: st.DataObject, failed: tuple[Subtask, ...]
):
    called = {s.id: f"x{n}" for n, s in enumerate(failed)}
    renamed = [
        replace(s, id=called[s.id], title="other words", depends_on=tuple(called[d] for d in reversed(s.depends_on)))
        for s in failed
    ]
    (reason,) = judge_anew(data.draw(st.permutations(renamed)), failed)
    assert reason.startswith("the plan has the same subtasks as the one that has just failed")


@given(st.data(), plans_without_fault())
def test_anything_that_is_done_otherwise_is_another_plan(data: st.DataObject, failed: tuple[Subtask, ...]):
    subtask = data.draw(st.sampled_from(failed))
    changed = data.draw(
        st.sampled_from(
            [
                replace(subtask, instruction=f"{subtask.instruction} with care"),
                replace(subtask, acceptance=(*subtask.acceptance, "it is short")),
                replace(subtask, deliverables=(*subtask.deliverables, "more.md")),
                replace(subtask, reads=(*subtask.reads, "more.md")),
                replace(subtask, tier=subtask.tier % 3 + 1),
                replace(subtask, level=1),
            ]
        )
    )
    assert judge_anew([changed if s is subtask else s for s in failed], failed) == []
    less = [replace(s, depends_on=()) for s in failed if s is not subtask]
    assert less == [] or judge_anew(less, failed) == []


def test_an_order_of_work_that_was_not_there_before_is_another_plan():
    failed = [sub("a"), sub("b")]
    assert judge_anew([sub("a"), sub("b", "a")], failed) == []
    assert judge_anew([sub("a", "b"), sub("b")], [sub("a"), sub("b", "a")]) == []


def test_a_first_plan_is_like_no_other():
    assert judge_anew([sub("a")], []) == []
