"""Level 1: what the keeper says of the files an executor left, whatever they hold."""

from __future__ import annotations

import csv
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loom.core.checks import (
    MAX_FINDINGS,
    MAX_READ_BYTES,
    MAX_SHOWN,
    Check,
    check_all,
    findings,
    parse_fault,
    shown,
    to_json,
)
from loom.wire.order import report_fault
from loom.wire.plan import Subtask


def run(
    deliverables: list[str], files: dict[str, bytes | None], changed: list[str] | None = None, kept: bool = False
) -> dict[str, str]:
    """Failed checks as {"name where": detail}. Everything has changed unless told otherwise."""
    subtask = Subtask("a", "a", "do it", deliverables=tuple(deliverables))
    paths = sorted(files)
    checks = check_all(subtask, paths if changed is None else changed, paths, files.__getitem__, kept)
    assert all(c.passed or c.detail for c in checks)
    return {f"{c.name} {c.where}": c.detail for c in checks if not c.passed}


def test_a_deliverable_is_there_has_changed_and_holds_something():
    assert run(["a.md"], {"a.md": b"text"}) == {}
    assert run(["a.md"], {}) == {"exists a.md": "the deliverable is missing"}
    assert run(["a.md"], {"a.md": b"text"}, []) == {"changed a.md": "the deliverable was not changed"}
    assert run(["a.md"], {"a.md": b"text"}, [], kept=True) == {}
    assert run(["a.md"], {"a.md": b" \n\t"}) == {"not-empty a.md": "the file is empty"}
    assert run(["a.md"], {"a.md": None}) == {"exists a.md": "not a regular file"}


def test_nothing_else_may_change():
    assert run([], {}, []) == {}
    assert run([], {}, ["x"]) == {"inside-deliverables x": "changed but no deliverable: x"}
    assert "and 4 more" in run(["a"], {"a": b"x"}, ["a", *"bcdefghij"])["inside-deliverables b"]
    assert "inside-deliverables ab" in run(["a"], {"a": b"x"}, ["a", "ab"])
    assert "inside-deliverables a" in run(["a/"], {"a/x": b"x"}, ["a", "a/x"])


def test_of_a_directory_only_what_changed_is_judged():
    files = {"d/old.json": b"{", "d/old.md": b"[TODO]", "d/empty": b"", "d/new.json": b"{}"}
    assert run(["d/"], files, ["d/new.json"]) == {}
    assert set(run(["d/"], files)) == {"parses d/old.json", "no-placeholders d/old.md", "not-empty d/empty"}
    assert run(["d/"], files, []) == {"changed d/": "the deliverable was not changed"}
    assert run(["d/"], {}, []) == {"exists d/": "the deliverable is missing"}
    assert set(run(["d/old.json"], files, ["d/old.json"])) == {"parses d/old.json"}


def test_files_that_are_empty_by_custom_may_be_so_below_a_directory():
    assert run(["d/"], {"d/__init__.py": b"", "d/py.typed": b"", "d/a.py": b"x = 1"}) == {}
    assert "not-empty d/__init__.py" in run(["d/__init__.py"], {"d/__init__.py": b""})


@pytest.mark.parametrize("text", ["[TBD]", "see [todo]", "[INSERT NAME HERE]", "[placeholder]", "Lorem Ipsum dolor"])
def test_placeholders_in_prose_are_found(text: str):
    assert "no-placeholders a.md" in run(["a.md"], {"a.md": text.encode()})
    assert run(["a.py"], {"a.py": f"# {text}".encode()}) == {}


@pytest.mark.parametrize("path, data", [
    ("a.py", b"x = 1"), ("a.py", b"# \xc3\xa4"), ("a.py", b"'\\d'"), ("a.json", b"[1, 2]"), ("a.json", b" 1 "),
    ("a.toml", b"a = 1\n[b]\nc = 1979-05-27"), ("a.yaml", b"a: [1, &x 2, *x]\n---\nb: 2"), ("a.yml", b"!!weird x"),
    ("a.csv", b"a,b\n1,2\n"), ("a.csv", b'a,b\r\n"x\ny",2\r\n\r\n'), ("A.JSON", b"{}"), ("b.csv", b"x" * 200_000),
])  # fmt: skip
def test_what_can_be_parsed_passes(path: str, data: bytes):
    assert parse_fault(path, data) == ""


@pytest.mark.parametrize("path, data, words", [
    ("a.py", b"def", "SyntaxError"), ("a.py", b"x = '\x00'", "null bytes"), ("a.py", b"return", "outside function"),
    ("a.json", b"{'a': 1}", "JSONDecodeError"), ("a.json", b"\xff", "not UTF-8 at byte 0"),
    ("a.json", b"{} {}", "Extra"),
    ("a.toml", b"a = ", "TOMLDecodeError"), ("a.toml", b"a = 2024-99-99", "TOMLDecodeError"),
    ("a.yaml", b"a: [1", "expected"), ("a.yaml", b"*ghost", "undefined alias"),
    ("a.yaml", b'"\\UFFFFFFFF"', "Overflow"),
    ("a.yaml", b"\x00", "special characters"),
    ("a.csv", b"a,b\n1,2,3\n", "row 2 has 3 columns, the first has 2"), ("a.csv", b'a,"b', "unexpected end of data"),
])  # fmt: skip
def test_what_cannot_be_parsed_is_said_in_one_line(path: str, data: bytes, words: str):
    fault = parse_fault(path, data)
    assert fault and words in fault and "\n" not in fault and len(fault) <= 300


@pytest.mark.parametrize("path", ["a.txt", "json", "d.json/a", "a.", "a.jsonl"])
def test_other_kinds_are_not_parsed(path: str):
    assert parse_fault(path, b"{") is None


BOMBS = {
    "nested lists.json": b"[" * 500_000,
    "nested objects.json": b'{"a":' * 300_000,
    "long number.json": b"9" * 100_000,
    "minus.py": b"-" * 500_000 + b"1",
    "brackets.py": b"(" * 500_000,
    "sum.py": b"1" + b"+1" * 200_000,
    "attributes.py": b"a" + b".b" * 200_000,
    "lambda.py": b"lambda:" * 100_000 + b"1",
    "else.py": b"".join(b" " * n + b"if 1:\n" for n in range(300)),
    "keys.toml": b"a." * 300_000 + b"b = 1",
    "header.toml": b"[" + b"a." * 300_000 + b"b]",
    "lists.toml": b"a = " + b"[" * 300_000,
    "lists.yaml": b"[" * 200_000,
    "dashes.yaml": b"- " * 100_000,
    "questions.yaml": b"? " * 100_000,
    "laughs.yaml": b"a: &a [x]\n" + b"".join(
        b"%c: &%c [*%c,*%c,*%c,*%c,*%c,*%c,*%c,*%c]\n" % (97 + n, 97 + n, *[96 + n] * 8) for n in range(1, 20)
    ),
    "itself.yaml": b"&a [*a, {b: *a}]",
    "long.yaml": b"- 1\n" * 500_000,
    "quotes.csv": b'"' * 500_000,
    "commas.csv": b"," * 500_000,
}  # fmt: skip


@pytest.mark.parametrize("name", BOMBS)
def test_no_file_takes_the_keeper_down_or_holds_it_up(name: str):
    began = time.process_time()
    run([name], {name: BOMBS[name]})
    assert time.process_time() - began < 10


def test_what_is_too_large_is_not_parsed_and_the_limit_of_a_field_is_put_back():
    usual = 77_777
    csv.field_size_limit(usual)
    assert parse_fault("a.json", b"{" * MAX_READ_BYTES) is None
    assert parse_fault("a.yaml", b"{" * (1 << 20)) is None
    parse_fault("a.csv", b'"')
    assert csv.field_size_limit() == usual


@given(st.sampled_from(["py", "json", "toml", "yaml", "csv"]), st.binary(max_size=60) | st.text(
    alphabet="{}[]\"':,.\n\t -&*!#%@`|>=\\x0Ua1é\x85\u2028", max_size=60).map(str.encode))  # fmt: skip
@settings(max_examples=300, derandomize=True, deadline=None)
def test_any_bytes_have_a_fault_or_none(suffix: str, data: bytes):
    fault = parse_fault(f"a.{suffix}", data)
    assert fault is None or (isinstance(fault, str) and "\n" not in fault)


def test_a_report_holds_so_many_checks_and_those_that_failed_come_first():
    checks = [Check("not-empty", f"d/{n}", n % 100 != 0, "" if n % 100 else "the file is empty") for n in range(5000)]
    some = shown(checks)
    assert len(some) == MAX_SHOWN + 1 and not any(c.passed for c in some[:50]) and some[50].passed
    assert some[-1].passed and some[-1].detail == f"{5000 - MAX_SHOWN} more checks, 0 of them failed"
    assert shown(checks[:5]) == checks[:5]
    worse = shown([Check("x", str(n), False, "bad") for n in range(5000)])
    assert not worse[-1].passed and len(findings(worse)) == MAX_FINDINGS


def test_what_is_reported_is_what_the_router_accepts():
    checks = check_all(Subtask("a", "a", "x", deliverables=("a.md",)), [], [], lambda path: None)
    data: dict[str, Any] = {"passed": False, "checks": [to_json(c) for c in checks], "findings": findings(checks)}
    assert data["findings"] and report_fault("inspect", {**data, "changes": "0" * 64, "diff": "0" * 64}) == ""


@pytest.mark.parametrize(
    "path", [".env", "conf/.env.local", ".ssh/config", "deploy/id_rsa", "secrets/token", "a/key.pem"]
)
def test_secrets_are_on_the_floor_also_as_deliverables(path: str):
    assert f"protected {path}" in run([path], {path: b"A=1\n"})
