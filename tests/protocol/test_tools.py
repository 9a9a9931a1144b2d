"""Every shipped tool keeps the protocol (docs/tools.md), and does what it says of itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from uuid import uuid4

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toolkit import ALL_TOOLS, FILE_TOOLS, TOOLS, alive, invoke, loaded, refusal, result, start

MINIMAL = {
    "read-file": {"path": "a.txt"},
    "write-file": {"path": "a.txt", "content": "x"},
    "list-files": {},
    "search-files": {"query": "x"},
    "run-shell": {"command": "true"},
}
UNSAFE = {"LOOM_UNSAFE_NO_SANDBOX": "1"}


@pytest.fixture
def work(tmp_path: Path) -> Path:
    (tmp_path / "a.txt").write_text("one\ntwo x\nthree\n")
    return tmp_path


# --- the protocol ------------------------------------------------------------------------------------------------


def test_the_suite_knows_every_shipped_tool():
    assert sorted(p.name for p in TOOLS.iterdir() if os.access(p, os.X_OK) and p.is_file()) == sorted(ALL_TOOLS)


@pytest.mark.parametrize("tool", ALL_TOOLS)
def test_describe_prints_one_line_with_the_six_fields(tool):
    done = start(tool, "describe")
    assert done.returncode == 0 and done.stderr == b""
    spec = json.loads(done.stdout)
    assert list(spec) == ["name", "description", "input_schema", "idempotent", "network", "writes"]
    assert spec["name"] == tool and spec["description"]
    assert spec["input_schema"]["type"] == "object"
    assert spec["input_schema"]["additionalProperties"] is False
    assert set(spec["input_schema"]["required"]) <= set(spec["input_schema"]["properties"])
    assert all(type(spec[flag]) is bool for flag in ("idempotent", "network", "writes"))


def test_only_writers_say_that_they_write_and_only_the_shell_may_not_be_repeated():
    specs = [json.loads(start(tool, "describe").stdout) for tool in ALL_TOOLS]
    assert {s["name"] for s in specs if s["writes"]} == {"write-file", "run-shell"}
    assert {s["name"] for s in specs if not s["idempotent"]} == {"run-shell"}


@pytest.mark.parametrize("tool", ALL_TOOLS)
@pytest.mark.parametrize("verb", ["", "help", "--version"])
def test_a_wrong_verb_is_wrong_usage(tool, verb):
    done = start(tool, verb)
    assert done.returncode == 2 and done.stdout == b"" and done.stderr.startswith(b"usage: ")


@pytest.mark.parametrize("tool", ALL_TOOLS)
@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"nonsense",
        b"[]",
        b"null",
        b'"text"',
        b"\xff\xfe{}",
        b'{"path": NaN}',
        b"[" * 100_000,
        b'{"limit": ' + b"9" * 5000 + b"}",
        b'{"a":"' + b"x" * (8 * 1024 * 1024) + b'"}',
    ],
    ids=["empty", "cut", "text", "array", "null", "string", "not-utf8", "nan", "deep", "huge-int", "too-large"],
)
def test_bad_input_is_an_answer_for_the_model(tool, data, work):
    done = start(tool, "invoke", data, LOOM_WORKSPACE=str(work), **UNSAFE)
    assert done.returncode == 0 and done.stderr == b""
    reply = json.loads(done.stdout)
    assert reply["status"] == "error" and reply["error"].isprintable()


@pytest.mark.parametrize("tool", ALL_TOOLS)
def test_an_unknown_field_is_named_with_those_there_are(tool, work):
    error = refusal(tool, MINIMAL[tool] | {"pa\x1bth": 1}, LOOM_WORKSPACE=str(work), **UNSAFE)
    assert "'pa\\x1bth'" in error and next(iter(MINIMAL[tool] or {"path": 0})) in error


@pytest.mark.parametrize("tool", [t for t in ALL_TOOLS if MINIMAL[t]])
def test_a_missing_field_is_named(tool, work):
    assert f"'{next(iter(MINIMAL[tool]))}'" in refusal(tool, {}, LOOM_WORKSPACE=str(work), **UNSAFE)


@pytest.mark.parametrize("tool", ALL_TOOLS)
@pytest.mark.parametrize("value", [None, 7, True, ["a"], {"a": 1}, "\ud800"], ids=repr)
def test_a_field_of_the_wrong_type_is_refused(tool, value, work):
    field = next(iter(MINIMAL[tool] or {"path": 0}))
    error = refusal(tool, MINIMAL[tool] | {field: value}, LOOM_WORKSPACE=str(work), **UNSAFE)
    assert f"'{field}'" in error


@pytest.mark.parametrize("tool", ALL_TOOLS)
@pytest.mark.parametrize("workspace", [None, "", "relative/dir", "/does/not/exist"])
def test_without_a_usable_workspace_nothing_is_done(tool, workspace):
    env = UNSAFE | ({} if workspace is None else {"LOOM_WORKSPACE": workspace})
    reply = invoke(tool, MINIMAL[tool], **env)
    if tool == "run-shell" and workspace == "/does/not/exist":
        assert reply["result"]["exit_code"] == 127 and "No such file" in reply["result"]["output"]
    else:
        assert reply["status"] == "error" and "workspace" in reply["error"].lower()


@pytest.mark.parametrize("tool", ALL_TOOLS)
def test_a_tool_runs_by_its_shebang_through_a_link_and_without_site(tool, work, tmp_path):
    link = tmp_path / "granted"
    link.symlink_to(TOOLS / tool)
    env = {"PATH": os.environ["PATH"], "LOOM_WORKSPACE": str(work)} | UNSAFE
    for command in ([str(link)], ["python3", "-I", "-S", str(TOOLS / tool)]):
        asked = json.dumps(MINIMAL[tool]).encode()
        done = subprocess.run([*command, "invoke"], input=asked, capture_output=True, env=env, check=True)
        assert json.loads(done.stdout)["status"] == "ok"


@pytest.mark.parametrize("tool", FILE_TOOLS)
def test_a_locale_that_is_not_utf8_changes_nothing(tool, work):
    (work / "ä.txt").write_text("x")
    asked = MINIMAL[tool] | {"path": "ä.txt" if tool in ("read-file", "write-file") else "."}
    reply = invoke(tool, asked, LOOM_WORKSPACE=str(work), LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")
    assert "ä.txt" in json.dumps(reply, ensure_ascii=False) and reply["status"] == "ok"


@pytest.mark.parametrize("tool", ALL_TOOLS)
def test_tools_load_neither_loom_nor_anything_installed(tool):
    check = (
        "import sys; from importlib.machinery import SourceFileLoader as L;"
        f"L('t', {str(TOOLS / tool)!r}).load_module();"
        "bad = {'loom', 'dataclasses', 'typing', 'pathlib', 'subprocess', 'asyncio'} & set(sys.modules);"
        "sys.exit(str(bad) if bad else 0)"
    )
    subprocess.run([sys.executable, "-I", "-S", "-B", "-W", "ignore", "-c", check], check=True)


# --- read-file ---------------------------------------------------------------------------------------------------


def test_read_file_gives_content_and_size(work):
    assert result("read-file", {"path": "a.txt"}, LOOM_WORKSPACE=str(work)) == {
        "path": "a.txt",
        "content": "one\ntwo x\nthree\n",
        "size_bytes": 16,
        "truncated": False,
    }


@pytest.mark.parametrize("data", [b"\xff\xfeabc", b"abc\x80", b"abc\xe2\x82", b"\x89PNG\r\n\x1a\n"])
def test_read_file_refuses_what_is_not_text(data, work):
    (work / "picture").write_bytes(data)
    error = refusal("read-file", {"path": "picture"}, LOOM_WORKSPACE=str(work))
    assert "'picture' is not text in UTF-8" in error


def test_read_file_says_when_an_offset_is_inside_a_character(work):
    (work / "e.txt").write_text("aé")
    assert "inside a character" in refusal("read-file", {"path": "e.txt", "offset": 2}, LOOM_WORKSPACE=str(work))


def test_read_file_past_the_end_is_empty(work):
    got = result("read-file", {"path": "a.txt", "offset": 999}, LOOM_WORKSPACE=str(work))
    assert got["content"] == "" and not got["truncated"]


def test_the_reply_to_a_read_never_exceeds_what_a_runner_takes(work):
    (work / "worst").write_bytes(b"\x01" * (3 * 1024 * 1024))  # each becomes six bytes in JSON
    asked = json.dumps({"path": "worst", "limit": 1024 * 1024}).encode()
    done = start("read-file", "invoke", asked, LOOM_WORKSPACE=str(work))
    assert len(done.stdout) <= 1024 * 1024
    assert json.loads(done.stdout)["result"]["next_offset"] > 0


@pytest.fixture(scope="module")
def pieces(tmp_path_factory):
    """Read a file piece by piece, in this process."""
    top = tmp_path_factory.mktemp("pieces")
    read_file = loaded("read-file").read_file

    def read(data: bytes, limit: int) -> list[str]:
        (top / "f").write_bytes(data)
        texts, offset = [], 0
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("LOOM_WORKSPACE", str(top))
            while True:
                got = read_file({"path": "f", "offset": offset, "limit": limit})
                texts.append(got["content"])
                if not got["truncated"]:
                    return texts
                assert got["next_offset"] > offset
                offset = got["next_offset"]

    return read


@given(text=st.text(max_size=200), limit=st.integers(4, 64))
@settings(max_examples=300, deadline=None)
def test_the_pieces_of_a_file_make_up_the_file(pieces, text, limit):
    texts = pieces(text.encode(), limit)
    assert "".join(texts) == text
    assert all(len(piece.encode()) <= limit for piece in texts)


# --- write-file --------------------------------------------------------------------------------------------------


def test_write_file_creates_its_directories_and_says_what_changed(work):
    asked = {"path": "new/deep/b.txt", "content": "hé"}
    first = result("write-file", asked, LOOM_WORKSPACE=str(work))
    assert first == {"path": "new/deep/b.txt", "size_bytes": 3, "created": True, "changed": True}
    assert (work / "new/deep/b.txt").read_text() == "hé"
    assert result("write-file", asked, LOOM_WORKSPACE=str(work)) == first | {"created": False, "changed": False}
    other = result("write-file", asked | {"content": "ho!"}, LOOM_WORKSPACE=str(work))
    assert other == first | {"size_bytes": 3, "created": False}


def test_the_same_bytes_are_not_written_again(work):
    before = (work / "a.txt").stat()
    result("write-file", {"path": "a.txt", "content": "one\ntwo x\nthree\n"}, LOOM_WORKSPACE=str(work))
    after = (work / "a.txt").stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


def test_write_file_keeps_the_mode_of_what_it_replaces(work):
    (work / "a.txt").chmod(0o750)
    result("write-file", {"path": "a.txt", "content": "new"}, LOOM_WORKSPACE=str(work))
    assert (work / "a.txt").stat().st_mode & 0o7777 == 0o750


def test_a_failed_write_leaves_no_temporary_file_and_the_old_content(work, monkeypatch):
    tool = loaded("write-file")
    monkeypatch.setenv("LOOM_WORKSPACE", str(work))

    def no_rename(*_args, **_more):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tool.os, "rename", no_rename)
    with pytest.raises(tool.Refused, match="No space left"):
        tool.write_file({"path": "a.txt", "content": "new"})
    assert [p.name for p in work.iterdir()] == ["a.txt"]
    assert (work / "a.txt").read_text().startswith("one")


def test_content_of_several_mebibytes_is_written(work):
    content = "é" * (2 * 1024 * 1024)
    asked = json.dumps({"path": "big", "content": content}, ensure_ascii=False).encode()
    done = start("write-file", "invoke", asked, LOOM_WORKSPACE=str(work))
    assert json.loads(done.stdout)["result"]["size_bytes"] == 4 * 1024 * 1024
    assert (work / "big").read_text() == content


# --- list-files --------------------------------------------------------------------------------------------------


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in ("a-b.txt", "a/z.py", "a/deep/er/x.py", ".git/config", ".hidden", "a.py", ".loom-tmp-1-aa"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "loop").symlink_to(".")
    (tmp_path / "link.py").symlink_to("a.py")
    Path(os.fsdecode(bytes(tmp_path) + b"/bad\xff")).write_text("x")
    return tmp_path


def listed(tree: Path, **asked: object) -> list[str]:
    return [f["path"] for f in result("list-files", asked, LOOM_WORKSPACE=str(tree))["files"]]


def test_list_files_is_sorted_by_path_without_links_git_and_litter(tree):
    paths = listed(tree)
    assert paths == [".hidden", "a-b.txt", "a.py", "a/deep/er/x.py", "a/z.py"]
    assert paths == sorted(paths)


def test_names_that_are_not_utf8_are_counted(tree):
    got = result("list-files", {}, LOOM_WORKSPACE=str(tree))
    assert got["unreadable_names"] == 1 and got["files"][0] == {"path": ".hidden", "size_bytes": 7}


@pytest.mark.parametrize(
    "asked, paths",
    [
        ({"glob": "*.py"}, ["a.py", "a/deep/er/x.py", "a/z.py"]),
        ({"glob": "./a/*.py"}, ["a/z.py"]),
        ({"glob": "a/**/*.py"}, ["a/deep/er/x.py", "a/z.py"]),
        ({"glob": "**/er/*"}, ["a/deep/er/x.py"]),
        ({"glob": "**/" * 60 + "nothing"}, []),
        ({"path": "a", "glob": "*/er/[xy].py"}, ["a/deep/er/x.py"]),
        ({"path": "./a/"}, ["a/deep/er/x.py", "a/z.py"]),
    ],
)
def test_a_glob_names_files_below_the_path(asked, paths, tree):
    assert listed(tree, **asked) == paths


def test_list_files_stops_at_its_limit_and_says_so(tree):
    got = result("list-files", {"limit": 2}, LOOM_WORKSPACE=str(tree))
    assert len(got["files"]) == 2 and got["truncated"]
    assert not result("list-files", {"limit": 5}, LOOM_WORKSPACE=str(tree))["truncated"]


def test_a_tree_deeper_than_the_bound_is_cut_and_said_to_be(tmp_path):
    deep = tmp_path.joinpath(*["d"] * 60)
    deep.mkdir(parents=True)
    (deep / "f").write_text("x")
    assert result("list-files", {}, LOOM_WORKSPACE=str(tmp_path)) == {"files": [], "truncated": True}


def test_list_files_of_a_file_is_refused(tree):
    assert "not a directory" in refusal("list-files", {"path": "a.py"}, LOOM_WORKSPACE=str(tree))


# --- search-files ------------------------------------------------------------------------------------------------


def matches(work: Path, **asked: object) -> list[tuple[str, int]]:
    return [(m["path"], m["line"]) for m in result("search-files", asked, LOOM_WORKSPACE=str(work))["matches"]]


def test_search_is_literal_unless_asked(work):
    (work / "b.txt").write_text("t.o\nTWO\n")
    assert matches(work, query="t.o") == [("b.txt", 1)]
    assert matches(work, query="t.o", regex=True) == [("a.txt", 2), ("b.txt", 1)]
    assert matches(work, query="two", ignore_case=True) == [("a.txt", 2), ("b.txt", 2)]
    assert matches(work, query="two", path="a.txt") == [("a.txt", 2)]


def test_search_passes_over_binary_and_large_files(work):
    (work / "nul").write_bytes(b"two\0")
    (work / "latin").write_bytes(b"two \xe4")
    (work / "large").write_bytes(b"two\n" * (2 * 1024 * 1024 + 1))
    assert matches(work, query="two") == [("a.txt", 2)]


def test_a_long_line_is_cut_around_its_match(work):
    (work / "long").write_text("a" * 5000 + "needle" + "b" * 5000)
    text = result("search-files", {"query": "needle"}, LOOM_WORKSPACE=str(work))["matches"][0]["text"]
    assert len(text) == 300 and "needle" in text


def test_search_stops_at_its_limit_and_says_so(work):
    (work / "many").write_text("hit\n" * 50)
    got = result("search-files", {"query": "hit", "limit": 50}, LOOM_WORKSPACE=str(work))
    assert len(got["matches"]) == 50 and not got["truncated"]
    assert result("search-files", {"query": "hit", "limit": 49}, LOOM_WORKSPACE=str(work))["truncated"]


def test_an_expression_that_never_ends_is_stopped(work, monkeypatch):
    tool = loaded("search-files")
    monkeypatch.setattr(tool, "REGEX_S", 0.2)
    monkeypatch.setenv("LOOM_WORKSPACE", str(work))
    (work / "bomb").write_text("a" * 60 + "c")
    asked = {"query": "(a|a)*b", "path": ".", "regex": True, "ignore_case": False, "limit": 10}
    with pytest.raises(tool.Refused, match="took more than"):
        tool.search_files(asked)


@pytest.mark.parametrize("query", ["(", "", "two\nthree", "a{99999999999}"])
def test_a_query_that_cannot_be_searched_is_refused(query, work):
    refusal("search-files", {"query": query, "regex": True}, LOOM_WORKSPACE=str(work))


# --- run-shell ---------------------------------------------------------------------------------------------------


def shell(work: Path, command: str, **more: object) -> dict:
    return result("run-shell", {"command": command, **more}, LOOM_WORKSPACE=str(work), **UNSAFE)


@pytest.mark.parametrize("env", [{}, {"LOOM_UNSAFE_NO_SANDBOX": ""}, {"LOOM_UNSAFE_NO_SANDBOX": "yes"}])
def test_the_shell_does_not_start_without_a_sandbox_unless_told(env, work):
    error = refusal("run-shell", {"command": "touch made"}, LOOM_WORKSPACE=str(work), **env)
    assert "--unsafe-no-sandbox" in error and not (work / "made").exists()


def test_the_shell_gives_exit_code_and_both_streams(work):
    got = shell(work, "pwd; echo bad >&2; exit 3")
    assert got == {"exit_code": 3, "timed_out": False, "output": f"{work}\nbad\n", "omitted_bytes": 0}


def test_the_shell_sees_only_plain_variables_and_looms_own(work):
    asked = {"command": "env"}
    env = {"LOOM_WORKSPACE": str(work), "LOOM_GOAL": "g", "OPENAI_API_KEY": "sk-1", "LANG": "C.UTF-8"} | UNSAFE
    names = {line.split("=")[0] for line in result("run-shell", asked, **env)["output"].splitlines()}
    assert names <= {"PATH", "HOME", "PWD", "OLDPWD", "TERM", "LANG", "SHLVL", "_"} | {
        n for n in env if n.startswith("LOOM_")
    }
    assert "LOOM_GOAL" in names


def test_a_shell_that_takes_too_long_is_killed_with_all_it_started(work):
    mark = f"LOOM_MARK={uuid4()}"
    env = {"LOOM_WORKSPACE": str(work), "LOOM_MARK": mark.split("=")[1]} | UNSAFE
    command = "echo began; sleep 1000 & (setsid sleep 1000 &); trap '' TERM; sleep 1000; sleep 1000"
    got = result("run-shell", {"command": command, "timeout_s": 1}, **env)
    assert got["timed_out"] and got["exit_code"] is None and got["signal"] == 9 and got["output"] == "began\n"
    assert alive(mark) == []


def test_children_that_hold_the_output_open_do_not_hold_up_the_shell(work):
    mark = f"LOOM_MARK={uuid4()}"
    env = {"LOOM_WORKSPACE": str(work), "LOOM_MARK": mark.split("=")[1]} | UNSAFE
    got = result("run-shell", {"command": "(setsid setsid sleep 1000 &) ; sleep 1000 & echo done"}, **env)
    assert got["exit_code"] == 0 and got["output"] == "done\n" and not got["timed_out"]
    assert alive(mark) == []


@pytest.mark.parametrize("what", ["yes", "tr '\\0' '\\001' < /dev/zero"])
def test_a_flood_keeps_its_head_and_tail_and_fits_into_a_reply(what, work):
    command = f"echo first; {what} | head -c 5000000; echo last"
    asked = json.dumps({"command": command}).encode()
    done = start("run-shell", "invoke", asked, LOOM_WORKSPACE=str(work), **UNSAFE)
    assert len(done.stdout) <= 1024 * 1024
    got = json.loads(done.stdout)["result"]
    assert got["output"].startswith("first\n") and got["output"].endswith("last\n")
    assert got["omitted_bytes"] > 3_900_000 and "bytes left out" in got["output"]


def test_output_that_is_not_utf8_is_still_an_answer(work):
    assert shell(work, "printf 'a\\377b'")["output"] == "a\ufffdb"
