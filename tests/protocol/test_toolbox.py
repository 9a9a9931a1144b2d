"""Which tools are found, what a broken one is called, and how a model's input is checked before a call."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from toolkit import ALL_TOOLS, TOOLS

from loom.core.schema import check_input
from loom.proc import toolbox
from loom.proc.toolbox import find_tools
from loom.wire import errors

SH = "#!/bin/sh\n"

# --- finding tools -----------------------------------------------------------------------------------------------


def describing(directory: Path, name: str, text: str, mode: int = 0o755) -> None:
    directory.mkdir(exist_ok=True)
    (directory / name).write_text(text)
    (directory / name).chmod(mode)


def says(**spec: object) -> str:
    return SH + f"echo '{json.dumps({'description': 'd', 'input_schema': {'type': 'object'}} | spec)}'"


def test_shipped_tools_are_found_in_the_order_asked():
    names = list(reversed(ALL_TOOLS))
    found = find_tools(names, [TOOLS])
    assert list(found) == names
    assert all(tool.spec.name == name and tool.path == TOOLS / name for name, tool in found.items())


def test_the_first_directory_that_has_a_name_wins(tmp_path):
    describing(tmp_path / "mine", "read-file", says(name="read-file", description="mine"))
    found = find_tools(["read-file", "list-files"], [tmp_path / "none", tmp_path / "mine", TOOLS])
    assert found["read-file"].spec.description == "mine" and found["list-files"].path == TOOLS / "list-files"


def test_a_tool_is_asked_again_only_when_its_file_changed(tmp_path):
    text = SH + f"echo x >> {tmp_path}/asked\n" + says(name="t").removeprefix(SH)
    describing(tmp_path, "t", text)
    for _ in range(3):
        find_tools(["t"], [tmp_path])
    assert (tmp_path / "asked").read_text() == "x\n"
    describing(tmp_path, "t", text + "\n")
    find_tools(["t"], [tmp_path])
    assert (tmp_path / "asked").read_text() == "x\nx\n"


def test_a_missing_tool_is_named_with_its_neighbour():
    with pytest.raises(errors.NotFound, match="no tool read-fil ") as caught:
        find_tools(["read-fil"], [TOOLS])
    assert "did you mean read-file?" in caught.value.line()
    with pytest.raises(errors.NotFound, match="any directory"):
        find_tools(["x"], [])


@pytest.mark.parametrize("name", ["", "A", "../x", "a/b", "_common.py", "1a", "a" * 65, "a\n", "-a"])
def test_an_impossible_name_is_wrong_usage(name):
    with pytest.raises(errors.Usage, match="cannot be the name of a tool"):
        find_tools([name], [TOOLS])


BROKEN = {
    "exits": (SH + "exit 4", "ended with 4"),
    "silent": (SH, "ended with 0 and None"),
    "garbage": (SH + "echo hello", "did not print"),
    "list": (SH + "echo '[]'", "did not print"),
    "no-schema": (SH + """echo '{"name":"t","description":"d"}'""", "input_schema"),
    "schema-is-text": (says(name="t", input_schema="x"), "did not print"),
    "schema-of-no-object": (says(name="t", input_schema={"type": "string"}), "not of type object"),
    "other-name": (says(name="other"), "calls itself 'other'"),
    "two-lines": (SH + "echo '{}'; echo '{}'", "more than one line"),
    "no-interpreter": ("#!/no/such\n", "cannot be started"),
}


@pytest.mark.parametrize("text, says", BROKEN.values(), ids=BROKEN)
def test_a_broken_tool_is_a_matter_of_configuration(text, says, tmp_path):
    describing(tmp_path, "t", text)
    with pytest.raises(errors.Config, match=f"tool t .*{says}") as caught:
        find_tools(["t"], [tmp_path])
    assert str(tmp_path / "t") in caught.value.line()


def test_a_tool_that_does_not_describe_itself_in_time_is_broken(tmp_path):
    describing(tmp_path, "t", SH + "exec sleep 1000")
    with pytest.raises(errors.Config, match="took more than"):
        find_tools(["t"], [tmp_path], describe_s=0.2)


def test_what_may_not_be_executed_is_named_with_the_remedy(tmp_path):
    describing(tmp_path, "t", says(name="t"), mode=0o644)
    with pytest.raises(errors.Config) as caught:
        find_tools(["t"], [tmp_path])
    assert "chmod +x" in caught.value.line()
    (tmp_path / "d").mkdir()
    with pytest.raises(errors.Config, match="is not a file"):
        find_tools(["d"], [tmp_path])


@pytest.mark.parametrize(
    "first, by_us",
    [
        ("#!/usr/bin/env python3", True),
        ("#!/usr/bin/python3.11 -E", True),
        ("#!/usr/bin/env -S python -u", True),
        ("#!/bin/sh", False),
        ("#!/opt/pythonic/bin/ruby", False),
        ("\x7fELF python3", False),
    ],
)
def test_python_tools_run_under_our_interpreter(first, by_us, tmp_path):
    (tmp_path / "t").write_text(first + "\n")
    path = str(tmp_path / "t")
    wanted = [sys.executable, "-I", path, "invoke"] if by_us else [path, "invoke"]
    assert toolbox.argv(tmp_path / "t", "invoke") == wanted


# --- checking input ----------------------------------------------------------------------------------------------

SCHEMA = {
    "type": "object",
    "required": ["path"],
    "additionalProperties": False,
    "properties": {
        "path": {"type": "string", "maxLength": 5, "minLength": 1},
        "limit": {"type": "integer", "minimum": 1, "maximum": 9},
        "ratio": {"type": ["number", "null"]},
        "mode": {"enum": ["r", "w", 1]},
        "list": {"type": "array", "items": {"type": "object", "required": ["a"]}},
        "flag": {"type": "boolean"},
    },
}


@pytest.mark.parametrize(
    "value, faults",
    [
        ({"path": "a", "limit": 9, "ratio": None, "mode": "r", "list": [{"a": 1, "b": 2}], "flag": False}, []),
        ({"path": "a", "limit": 9.0, "ratio": 1}, []),
        ([], ["input must be of type object, not array ([])"]),
        ({}, ["input lacks the required field 'path'"]),
        ({"path": 7}, ["input.path must be of type string, not integer (7)"]),
        ({"path": ""}, ["input.path is 0 characters long; at least 1 is allowed"]),
        ({"path": "abcdef"}, ["input.path is 6 characters long; at most 5 is allowed"]),
        ({"path": "a", "limit": 0}, ["input.limit is 0; at least 1 is allowed"]),
        ({"path": "a", "limit": 10}, ["input.limit is 10; at most 9 is allowed"]),
        ({"path": "a", "limit": True}, ["input.limit must be of type integer, not boolean (True)"]),
        ({"path": "a", "limit": 1.5}, ["input.limit must be of type integer, not number (1.5)"]),
        ({"path": "a", "ratio": "x"}, ["input.ratio must be of type number or null, not string ('x')"]),
        ({"path": "a", "mode": True}, ["input.mode is True; it must be one of 'r', 'w', 1"]),
        ({"path": "a", "list": [{"a": 1}, {}]}, ["input.list[1] lacks the required field 'a'"]),
        ({"pth": "a"}, ["input lacks the required field 'path'", "input has no field 'pth'; did you mean 'path'?"]),
        (
            {"path": "a", "\x1b\n": 1},
            ["input has no field '\\x1b\\n'; its fields are path, limit, ratio, mode, list, flag"],
        ),
    ],
)
def test_input_is_checked_with_words_for_the_model(value, faults):
    assert check_input(SCHEMA, value) == faults


def test_faults_are_bounded_and_odd_schemas_harmless():
    many = {"type": "object", "additionalProperties": False}
    assert len(check_input(many, {str(n): n for n in range(100)})) == 20
    odd = {"type": 3, "properties": 4, "required": "a", "enum": {}, "items": 1, "minimum": "x", "maxLength": None}
    assert [check_input(odd, value) for value in ({"a": 1}, [1], "x", 5)] == [[], [], [], []]
    assert check_input({"properties": {"a": {"$ref": "#"}}}, {"a": 10**5000}) == []


def test_a_tool_that_somebody_kills_while_it_describes_itself_is_not_broken(tmp_path):
    count = tmp_path / "starts"
    shown = says(name="trial", description="x", input_schema={"type": "object"})
    text = f"#!/bin/sh\necho start >> {count}; [ $(wc -l < {count}) -gt 1 ] || kill -KILL $$\n"
    describing(tmp_path, "trial", text + shown.removeprefix("#!/bin/sh\n"))
    assert find_tools(["trial"], [tmp_path])["trial"].spec.description == "x"
    assert len(count.read_text().splitlines()) == 2
