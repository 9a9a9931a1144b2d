"""`--schema FILE`: one JSON document on stdout or 65, in a filter and in a detached agent."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from cli_user import ROOT, Loom
from support import wait_until

SCHEMA = {"type": "object", "required": ["n"], "properties": {"n": {"type": "integer"}}, "additionalProperties": False}


@pytest.fixture
def start(loom: Loom) -> tuple[str, ...]:
    (loom.place / "answer.json").write_text(json.dumps(SCHEMA))
    return ("agent", "start", "x", "--schema", "answer.json")


def test_the_answer_is_one_json_document_and_a_newline(loom: Loom, start: tuple[str, ...]) -> None:
    said = loom(*start, "--model", "builtin/echo", stdin='Here it is:\n```json\n{"n": 1,}\n```\n')
    assert (said.status, said.out, said.err) == (0, '{"n":1}\n', "")


def test_an_answer_that_does_not_fit_is_asked_for_again_with_its_faults(loom: Loom, start: tuple[str, ...]) -> None:
    model = loom.script({"text": '{"n": "one"}'}, {"text": "one"}, {"text": '{"n": 1}'})
    said = loom(*start, "--model", model, stdin="how many?")
    assert (said.status, said.out) == (0, '{"n":1}\n')
    first, second = said.err.splitlines()
    assert "$.n must be of type integer, not string ('one'); asking again" in first
    assert "no JSON value" in second
    asked = [record["why"] for record in loom.log("x") if record["event"] == "asked_again"]
    assert len(asked) == 2


def test_three_answers_that_do_not_fit_are_65(loom: Loom, start: tuple[str, ...]) -> None:
    said = loom(*start, "--model", loom.script(*[{"text": f'{{"n": "{n}"}}'} for n in range(9)]), stdin="how many?")
    assert (said.status, said.out) == (65, "")
    assert said.err.splitlines()[-1] == (
        "loom: the answer does not fit the schema, also after 3 tries: $.n must be of type integer, not string ('2')"
    )
    assert loom.left() == []


def test_the_schema_is_in_the_prompt_and_in_the_request(loom: Loom, start: tuple[str, ...]) -> None:
    source = "import json, sys\nr = json.load(sys.stdin)\nopen('seen', 'w').write(json.dumps(r))\nprint('{\"n\": 3}')"
    said = loom(*start, "--model", f"exec/{loom.program('m.py', source)}", "--system", "Be kind.", stdin="x")
    assert said.out == '{"n":3}\n'
    seen = json.loads((loom.place / "seen").read_text())
    assert seen["schema"] == SCHEMA
    assert seen["messages"][0]["text"].startswith("Be kind.\n\n")
    assert json.dumps(SCHEMA, separators=(",", ":")) in seen["messages"][0]["text"]


def test_with_json_the_result_carries_the_value(loom: Loom, start: tuple[str, ...]) -> None:
    model = loom.script({"text": "no"}, {"text": 'yes: {"n": 2}'})
    events = loom(*start, "--model", model, "--json", stdin="x").objects
    assert [e["event"] for e in events] == ["start", "text", "usage", "asked_again", *["text"] * 3, "usage", "result"]
    assert "no JSON value" in events[3]["why"]
    assert (events[-1]["text"], events[-1]["value"]) == ('{"n":2}', {"n": 2})
    plain = loom("agent", "start", "y", "--model", "builtin/echo", "--json", stdin="1").objects
    assert "value" not in plain[-1]


def test_tools_may_be_called_before_the_answer(loom: Loom, start: tuple[str, ...]) -> None:
    (loom.place / "note.txt").write_text("forty-two")
    call = {"text": "I look.", "calls": [{"name": "read-file", "input": {"path": "note.txt"}}]}
    said = loom(*start, "--model", loom.script(call, {"text": '{"n": 42}'}), "--tools", "read-file", stdin="x")
    assert (said.status, said.out) == (0, '{"n":42}\n')
    assert "I look." in said.err


@pytest.mark.parametrize("schema, answer", [
    ("true", '"x"'), ('{"type": "array"}', "[1,[]]"), ('{"type": "null"}', "null"), ('{"enum": [1.5]}', "1.5"),
])  # fmt: skip
def test_the_answer_may_be_of_any_type(loom: Loom, schema: str, answer: str) -> None:
    (loom.place / "s.json").write_text(schema)
    said = loom("agent", "start", "x", "--model", "builtin/echo", "--schema", "s.json", stdin=answer)
    assert (said.status, said.out) == (0, f"{answer}\n")


BAD = [
    ('{"type": ', 65, "not JSON"),
    ("[]", 65, "no JSON Schema"),
    ("false", 65, "no JSON Schema"),
    ('{"$ref": "http://example.org/s.json"}', 65, "$.$ref is 'http://example.org/s.json'"),
    ('{"unevaluatedProperties": false}', 65, "not supported"),
    ('{"properties": {"a": {"typ": "string"}}}', 65, "$.properties.a.typ: no such keyword; did you mean 'type'?"),
    ('{"pattern": "(?<=a)b"}', 65, "lookaround"),
    ("[" * 40 + "]" * 40, 65, "nested deeper"),
    ("", 65, "empty"),
    (None, 66, "no file"),
]


@pytest.mark.parametrize("schema, status, hint", BAD)
def test_a_bad_schema_is_told_before_anything_is_asked(loom: Loom, schema: str | None, status: int, hint: str) -> None:
    if schema is not None:
        (loom.place / "s.json").write_text(schema)
    for more in ((), ("--detach",)):
        said = loom("agent", "start", "x", "--model", "exec/true", "--schema", "s.json", *more, stdin="hello")
        assert (said.status, said.out) == (status, ""), said
        assert hint in said.err and said.err.count("\n") == 1
    assert loom.left() == [] and not (loom.home / "agents" / "x" / "agent.json").exists()


def test_it_does_not_go_with_resume(loom: Loom, start: tuple[str, ...]) -> None:
    assert loom(*start, "--resume").status == 2


def test_after_a_kill_the_same_is_asked_again(loom: Loom, start: tuple[str, ...]) -> None:
    """The second of three requests is interrupted: its answer is awaited anew, the first answer is not bought twice."""
    source = """
import json, os, pathlib, sys, time
request = json.load(sys.stdin)
asked = [m["text"] for m in request["messages"]]
turn = sum(m["role"] == "assistant" for m in request["messages"])
with open("asked", "a") as file:
    file.write(json.dumps([turn, request]) + "\\n")
if turn == 1 and not pathlib.Path("go").exists():
    pathlib.Path("waiting").touch()
    time.sleep(60)
print(['{"n": "one"}', "one", '{"n": 1}'][turn])
"""
    model = f"exec/{loom.program('m.py', source)}"
    filter_ = loom.start(*start, "--model", model, "--prompt", "how many?")
    wait_until(lambda: (loom.place / "waiting").exists())
    os.kill(filter_.pid, signal.SIGKILL)
    filter_.communicate()
    (loom.place / "go").touch()
    said = loom("agent", "start", "x", "--resume")
    assert (said.status, said.out) == (0, '{"n":1}\n'), said
    asked = [json.loads(line) for line in (loom.place / "asked").read_text().splitlines()]
    assert [turn for turn, _ in asked] == [0, 1, 1, 2]
    assert asked[1] == asked[2]
    assert all(request["schema"] == SCHEMA for _, request in asked)
    assert "$.n must be of type integer" in asked[3][1]["messages"][-3]["text"]
    assert loom.left() == []


# -- detached ------------------------------------------------------------------------------------------------------


def stored(loom: Loom) -> Any:
    return json.loads((loom.home / "agents" / "x" / "agent.json").read_text()).get("schema")


def test_a_detached_agent_keeps_the_schema_itself(loom: Loom, start: tuple[str, ...]) -> None:
    assert loom(*start, "--model", "builtin/echo", "--detach").status == 0
    (loom.place / "answer.json").unlink()
    assert stored(loom) == SCHEMA
    assert loom("send", "x", 'it is {"n": 7}', "--wait").out == '{"n":7}\n'
    failed = loom("send", "x", "seven", "--wait", "--json")
    assert (failed.status, failed.objects[-1]["error"]["type"]) == (1, "schema")
    assert loom("agent", "start", "x", stdin='{"n": 8} or so').out == '{"n":8}\n'  # its filters too


def test_another_schema_is_another_setting(loom: Loom, start: tuple[str, ...]) -> None:
    loom("agent", "start", "x", "--model", "builtin/echo", "--detach")
    said = loom(*start, "--detach")
    assert (said.status, "exists with no schema" in said.err) == (2, True)
    assert loom(*start, "--detach", "--replace").status == 0
    assert loom(*start, "--detach", "--json").objects[0]["how"] == "unchanged"
    (loom.place / "answer.json").write_text("{}")
    assert "another schema" in loom(*start, "--detach").err
    said = loom("agent", "start", "x", "--schema", "", "--detach", "--replace")
    assert (said.status, stored(loom)) == (0, None)


def test_a_schema_that_a_person_spoiled_is_78(loom: Loom, start: tuple[str, ...]) -> None:
    agent = Path(loom.home / "agents" / "x" / "agent.json")
    loom(*start, "--model", "builtin/echo", "--detach")
    agent.write_text(agent.read_text().replace('"integer"', '"inteeger"'))
    said = loom("agent", "start", "x", stdin="{}")
    assert (said.status, "$.properties.n.type is 'inteeger'" in said.err) == (78, True)


# -- the example -----------------------------------------------------------------------------------------------------

FACTS = {"title": "Exit statuses", "kind": "decision", "topics": ["errors"], "date": "2024-05-01"}


def test_the_example_prints_a_line_a_document_and_goes_on_after_a_bad_one(loom: Loom) -> None:
    (loom.place / "good.md").write_text(f"It is:\n{json.dumps(FACTS, indent=1)}\n")
    (loom.place / "bad.md").write_text(json.dumps({**FACTS, "date": "May"}))
    said = loom.shell(f"sh {ROOT}/examples/facts.sh builtin/echo good.md bad.md good.md")
    assert (said.status, said.objects) == (1, [FACTS, FACTS])
    assert "facts: nothing about bad.md" in said.err
    assert loom.shell(f"sh {ROOT}/examples/facts.sh builtin/echo").status == 2
