"""What planner, executor and verifier get wrong, and what becomes of it (docs/goals.md sections 2 and 3)."""

from __future__ import annotations

import json

import pytest
from goal_world import (
    PASSES,
    PLAN,
    PLAN_AGAIN,
    REPLAN,
    World,
    check_once,
    does,
    execute,
    planned,
    sub,
    verdict,
    verify,
    writes,
)

ONE = sub("one", deliverables=["one.md"])
TWO = sub("two", deliverables=["two.md"])
WORK = [*does(execute("one"), writes("one.md", "One.\n")), *does(execute("two"), writes("two.md", "Two.\n"))]
BLOCKED = {"match": execute("one"), "text": '{"status": "blocked", "reason": "the oven is cold"}'}


# -- planner -------------------------------------------------------------------------------------------------------

UNUSABLE = {
    "a cycle": (
        [sub("a", depends_on=["b"]), sub("b", depends_on=["c"]), sub("c", depends_on=["a"])],
        "circular dependency: a → b → c → a",
    ),
    "itself": ([sub("a", depends_on=["a"])], "subtask a depends on itself"),
    "a ghost": ([sub("a", depends_on=["nobody"])], "subtask a depends on 'nobody', which is not in the plan"),
    "an id twice": ([sub("a"), sub("a")], "subtask id a is used twice"),
    "a file twice": (
        [sub("a", deliverables=["x.md"]), sub("b", deliverables=["x.md"])],
        "deliverable x.md belongs to a and to b",
    ),
    "a file in a directory of another": (
        [sub("a", deliverables=["x/"]), sub("b", deliverables=["x/y.md"])],
        "deliverable x/y.md belongs to a and to b",
    ),
    "no last synthesis": (
        [sub("a", synthesis=True), sub("b", depends_on=["a"])],
        "subtask b depends on the synthesis a, which must come last",
    ),
    "too many": ([sub(f"s{n}") for n in range(4)], "the plan has 4 subtasks, the limit is 3"),
    "outside": ([sub("a", deliverables=["../x"])], "deliverables '../x' is not a path inside the workspace"),
    "nothing in it": ([], "the plan has no list `subtasks`"),
}


@pytest.mark.parametrize("subtasks, reason", UNUSABLE.values(), ids=UNUSABLE.keys())
def test_an_unusable_plan_goes_back_to_the_planner_with_the_reasons(world: World, subtasks, reason):
    world.config("goal:\n  max_subtasks: 3\n")
    model = world.script(planned(*subtasks), planned(ONE, match=PLAN_AGAIN), *WORK, PASSES)
    done = world.run(model=model)
    assert done.status == 0, done.err
    (refused,) = world.of("plan.refused")
    assert reason in "\n".join(refused["reasons"]) and reason.split("'")[0] in done.err
    first, second = world.requests("planner")
    assert reason in second.partition("## Refused")[2] and reason not in first
    (accepted,) = world.of("plan.accepted")
    assert [s["id"] for s in accepted["subtasks"]] == ["one"] and not accepted["degraded"]


@pytest.mark.parametrize("answer", ["I would rather not.", '{"subtasks": "many"}', '{"subtasks": [{"id": 1}]}'])
def test_a_planner_that_is_unusable_twice_leaves_one_degraded_subtask(world: World, answer):
    model = world.script(
        {"match": PLAN, "text": answer},
        {"match": PLAN_AGAIN, "text": answer},
        {"match": execute("execute-goal"), "text": "All of it is done."},
        PASSES,
    )
    done = world.run(model=model)
    assert (done.status, done.out) == (0, "All of it is done.\n"), done.err
    assert len(world.of("plan.refused")) == 2
    (accepted,) = world.of("plan.accepted")
    assert [s["id"] for s in accepted["subtasks"]] == ["execute-goal"] and accepted["degraded"]
    assert "degraded" in done.err


def test_a_degraded_subtask_may_write_what_the_goal_asks_for(world: World):
    model = world.script(
        {"match": PLAN, "text": "No plan."},
        {"match": PLAN_AGAIN, "text": "No plan."},
        *does(execute("execute-goal"), writes("notes/one.md", "Done.\n"), {"text": "Written."}),
        PASSES,
    )
    done = world.run("-w", world.work, "--land", model=model)
    assert done.status == 0, done.err
    assert (world.work / "notes" / "one.md").read_text() == "Done.\n"


@pytest.mark.parametrize("path", [".env", "conf/.env.local", ".ssh/config", "deploy/id_rsa", "secrets/token"])
def test_secrets_are_never_written_and_the_end_says_who_would_be_asked(world: World, path):
    one = sub("one", deliverables=[path])
    model = world.script(planned(one), *does(execute("one"), writes(path, "A=1\n"), {"text": "Written."}), PASSES)
    done = world.run("-w", world.work, "--land", model=model)
    assert done.status == 1
    assert path in done.err and "a person is asked before secrets are written" in done.err
    assert not (world.work / path).exists() and world.of("subtask.committed") == []


def test_a_plan_in_a_fence_with_prose_and_small_faults_is_read(world: World):
    text = "Here it is:\n```json\n{'x': 1}\n```\n```json\n" + json.dumps({"subtasks": [ONE]})[:-2] + ",],}\n```\nBye."
    assert world.run(model=world.script({"match": PLAN, "text": text}, *WORK, PASSES)).status == 0
    assert world.of("plan.refused") == []


def test_a_model_that_says_nothing_is_asked_again_and_then_given_up(world: World):
    done = world.run(model=world.program(""))
    assert done.status == 1 and "no plan: planner-1: the model answered nothing, also when asked again" in done.err


def test_a_planner_that_fails_ends_the_goal(world: World):
    done = world.run(model=world.program("sys.exit('the crystal ball is cracked')"))
    assert done.status == 1 and "the crystal ball is cracked" in done.err
    assert world.of("goal.failed")[0]["reason"].startswith("no plan: planner-1:")
    assert world.loom("goal", "show", world.goal().id).out.count("crystal ball") == 1


def test_why_a_goal_has_failed_is_said_with_q_too_and_nothing_else(world: World):
    model = world.program("sys.exit('the crystal ball is cracked')")
    done = world.loom("-q", "run", "Do it.", "--model", model)
    assert done.status == 1 and done.out == ""
    assert done.err.startswith("loom: goal failed: no plan: planner-1:") and done.err.count("\n") == 1, done.err


def test_a_planner_that_calls_a_tool_which_is_not_there_may_still_answer(world: World):
    fixed = planned(ONE)
    strange = {"match": PLAN, "calls": [{"name": "summon", "input": {}}]}
    assert world.run(model=world.script(strange, fixed, *WORK, PASSES)).status == 0


# -- executor ------------------------------------------------------------------------------------------------------


def test_what_is_blocked_is_planned_anew_and_what_is_finished_stays(world: World):
    model = world.script(
        planned({**ONE, "depends_on": ["two"]}, TWO),
        planned(sub("other", deliverables=["one.md"], depends_on=["two"]), match=REPLAN),
        BLOCKED,
        *does(execute("two"), writes("two.md", "Two.\n")),
        *does(execute("other"), writes("one.md", "One.\n")),
        PASSES,
    )
    done = world.run("--land", model=model)
    assert done.status == 0, done.err
    again = world.requests("planner")[1].partition("## Replan")[2]
    assert "`two`" in again.partition("Failed or blocked")[0] and "the oven is cold" in again
    assert (world.work / "one.md").read_text() == "One.\n" and (world.work / "two.md").read_text() == "Two.\n"
    assert [d["subtask"] for d in world.of("subtask.applied")] == ["two", "other"]


def test_blocked_again_and_again_fails_the_goal_with_the_reason(world: World):
    model = world.script(planned(ONE, {**TWO, "depends_on": ["one"]}), planned(ONE, match=REPLAN), BLOCKED)
    done = world.run(model=model)
    assert done.status == 1 and "one blocked: the oven is cold" in done.err
    # The first new plan leaves a subtask out; the next two are that plan again, which has failed.
    assert len(world.of("plan.accepted")) == 2 and len(world.of("subtask.blocked")) == 2
    assert all("the same subtasks as the one that has just failed" in r["reasons"][0] for r in world.of("plan.refused"))
    assert len(world.of("plan.refused")) == 2 and "no other way was found" in done.err
    assert world.state().status == "failed" and "the oven is cold" in world.state().reason


def test_a_tool_that_is_not_there_is_told_and_the_end_counts(world: World):
    strange = {"calls": [{"name": "summon-demon", "input": {}}]}
    model = world.script(planned(ONE), *does(execute("one"), strange, writes("one.md", "One.\n")), PASSES)
    done = world.run(model=model)
    assert done.status == 0, done.err
    assert world.of("subtask.reported")[0]["failed_calls"] == 1


LEAVES = {
    "outside": (
        [writes("one.md", "One.\n"), writes("two.md", "?\n")],
        "inside-deliverables: changed but no deliverable",
    ),
    "nothing": ([], "exists: the deliverable is missing"),
    "empty": ([writes("one.md", " \n")], "not-empty: the file is empty"),
    "a placeholder": ([writes("one.md", "One.\n[TODO]\n")], "no-placeholders: placeholder '[TODO]'"),
}


@pytest.mark.parametrize("answers, finding", LEAVES.values(), ids=LEAVES.keys())
def test_a_claim_is_no_evidence(world: World, answers, finding):
    """The second attempt, which knows the findings, does it right, in a tree of its own."""
    right = does(execute(findings=True), writes("one.md", "One.\n"))
    done = world.run(model=world.script(planned(ONE), *does(execute(findings=False), *answers), *right, PASSES))
    assert done.status == 0, done.err
    (retried,) = world.of("subtask.retried")
    assert finding in retried["findings"][0]["what"]
    assert finding in world.requests("executor")[1].partition("## Findings")[2]
    checks = world.of("check.recorded")
    assert [c["passed"] for c in checks] == [False, True]
    assert not (world.goal().workspace / "two.md").exists()


@pytest.mark.parametrize(
    "name, bad, good",
    [
        ("one.json", '{"a": 1', '{"a": 1}'),
        ("one.py", "def f(:\n", "print(1)\n"),
        ("one.yaml", "a: [1", "a: [1]\n"),
        ("one.toml", "a = ", "a = 1\n"),
        ("one.csv", "a,b\n1\n", "a,b\n1,2\n"),
    ],
)
def test_a_deliverable_must_parse(world: World, name, bad, good):
    plan = planned(sub("one", deliverables=[name]))
    first = does(execute(findings=False), writes(name, bad))
    model = world.script(plan, *first, *does(execute(findings=True), writes(name, good)), PASSES)
    done = world.run(model=model)
    assert done.status == 0, done.err
    assert world.of("subtask.retried")[0]["findings"][0]["what"].startswith("parses: ")


def test_the_same_failure_twice_climbs_and_ends_with_the_finding(world: World):
    model = world.script(planned(ONE), planned(ONE, match=REPLAN), *does(execute()))
    done = world.run(model=model)
    assert done.status == 1 and "one failed: checks failed: one.md exists: the deliverable is missing" in done.err
    # Two tries, no other tier, and twice the same plan, which is no new one.
    assert len(world.of("subtask.retried")) == 1 and len(world.of("subtask.failed")) == 1
    assert len(world.of("plan.refused")) == 2
    assert world.of("subtask.applied") == []


def test_the_builtin_roles_say_what_they_cannot_do(world: World):
    (world.work / "a.txt").write_text("Text.\n")
    done = world.run(text="Summarise missing.md.")
    assert done.status == 1 and "blocked" in done.err and "missing.md" in done.err
    assert len(world.of("plan.accepted")) == 1 and "missing.md" in world.state().reason
    other = world.run(text="Translate these documents to French.")
    assert other.status == 1 and "can only summarise documents" in other.err


def test_without_a_verifier_what_was_not_changed_is_not_done(world: World):
    (world.work / "one.md").write_text("One.\n")
    same = does(execute(), writes("one.md", "One.\n"))
    world.config("goal:\n  max_replans: 0\n")
    strict = world.run(model=world.script(planned({**ONE, "level": 1}), *same))
    assert strict.status == 1 and "the deliverable was not changed" in strict.err
    assert world.run(model=world.script(planned(ONE), *same, PASSES)).status == 0


def test_a_higher_tier_is_tried_before_a_new_plan(world: World):
    bad = world.script(planned(ONE), *does(execute()), PASSES, name="bad")
    good = world.script(*WORK, name="good")
    world.config(f"model: {bad}\nmodels:\n  tiers:\n    '2': {good}\n")
    done = world.loom("run", "Do it.", "-w", world.work)
    assert done.status == 0, done.err
    assert [r["tier"] for r in world.of("subtask.retried")] == [1, 2]
    assert len(world.of("plan.accepted")) == 1


def test_a_deliverable_that_is_a_link_is_missing(world: World):
    """An executor's program may do more than its tools; what lies in the tree is what counts."""
    source = f"""
if text.startswith("# Goal"):
    print({json.dumps({"subtasks": [{**ONE, "level": 1}]})!r})
else:
    here = os.environ["LOOM_WORKSPACE"] + "/one.md"
    if not os.path.lexists(here):
        os.symlink("/etc/passwd", here)
    print("done")
"""
    done = world.run(model=world.program(source), text="Link it.")
    assert done.status == 1 and "the deliverable is missing" in done.err


def test_a_failed_critical_subtask_ends_the_goal_at_once(world: World):
    first = {**ONE, "critical": True}
    model = world.script(planned(first, {**TWO, "depends_on": ["one"]}), BLOCKED)
    done = world.run(model=model)
    assert done.status == 1 and "one blocked: the oven is cold" in done.err
    assert len(world.of("plan.accepted")) == 1 and [s["subtask"] for s in world.of("subtask.skipped")] == ["two"]


# -- verifier ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("answer", ["Looks fine to me!", '{"passed": "yes"}', '{"verdict": true}'])
def test_a_verdict_nobody_can_read_is_asked_for_once_more_and_then_blocks(world: World, answer):
    done = world.run(model=world.script(planned(ONE), *WORK, {"match": verify(), "text": answer}))
    assert done.status == 1 and "one blocked: not verified: the verdict could not be read" in done.err
    verdicts = world.of("verdict.recorded")
    assert [(v["passed"], v["inconclusive"]) for v in verdicts] == [(False, True)] * 2
    assert len(world.requests("executor")) == 1, "the executor is not bothered"
    assert len(world.of("plan.accepted")) == 1, "no new plan gets round it"


def test_a_pass_with_a_grave_finding_is_no_pass(world: World):
    mixed = verdict(True, {"severity": "blocker", "where": "one.md", "what": "wrong", "evidence": "line 1"})
    done = world.run(model=world.script(planned(ONE), *WORK, mixed))
    assert done.status == 1 and "passes and has a grave finding" in done.err


def test_a_verifier_that_fails_is_asked_once_more_and_then_blocks(world: World):
    broken = {"match": verify(), "error": "bad_input", "message": "the lens is broken"}
    done = world.run(model=world.script(planned(ONE), *WORK, broken))
    assert done.status == 1 and "the lens is broken" in done.err
    assert len(world.of("verdict.recorded")) == 2 and len(world.requests("executor")) == 1
    assert world.state().subtasks["one"].status == "blocked"


def test_what_the_verifier_refuses_is_tried_again_with_its_findings(world: World):
    finding = {"severity": "major", "where": "one.md", "what": "the sum is wrong", "evidence": "2 + 2 = 5"}
    source = f"""
first = "one.md:1" not in text and "2 + 2 = 5" in text.partition("## Diff")[2]
if text.startswith("# Goal"):
    print({json.dumps({"subtasks": [ONE]})!r})
elif "## Claim" in text:
    findings = [{finding!r}] if first else []
    print(json.dumps({{"passed": not first, "confidence": 0.9, "findings": findings}}))
elif request["messages"][-1]["role"] == "tool":
    print("done")
else:
    text = next(m["text"] for m in request["messages"] if m["role"] == "user")
    what = {{"path": "one.md", "content": "2 + 2 = 4\\n" if "the sum is wrong" in text else "2 + 2 = 5\\n"}}
    print(json.dumps({{"reply": {{"calls": [{{"name": "write-file", "input": what}}]}}}}))
"""
    done = world.run("--land", model=world.program(source))
    assert done.status == 0, done.err
    assert (world.work / "one.md").read_text() == "2 + 2 = 4\n"
    first, second = world.requests("executor")
    assert "## Findings" not in first
    assert "major one.md: the sum is wrong (2 + 2 = 5)" in second.partition("## Findings")[2]
    assert [v["passed"] for v in world.of("verdict.recorded")] == [False, True]
    check_once(world.events())


def test_judge_and_author_are_never_the_same_process(world: World):
    done = world.run(model=world.script(planned(ONE, TWO), *WORK, PASSES))
    assert done.status == 0
    authors = {d["author"] for d in world.of("subtask.reported")}
    judges = {d["judge"] for d in world.of("verdict.recorded")}
    assert authors and judges and not authors & judges


def test_low_confidence_blocks_and_says_who_would_be_asked(world: World):
    world.config("goal:\n  min_confidence: 0.95\n")
    done = world.run(model=world.script(planned(ONE), *WORK, verdict(True, confidence=0.1)))
    assert done.status == 1 and "a person would be asked here" in done.err
    assert world.of("subtask.committed") == [] and not (world.goal().workspace / "one.md").exists()


def test_an_order_nobody_answers_in_time_is_given_up(world: World):
    world.config("goal:\n  order_timeout: 1\n  max_attempts: 1\n  max_replans: 0\n")
    late = {"match": execute(), "text": "Done.", "delay_s": 60}
    done = world.run(model=world.script(planned(ONE), late))
    assert done.status == 1 and "the deadline has passed" in done.err
    assert world.gone()
