"""contrib/man/: the pages are those of today's commands and documents, and formatters find nothing wrong with them."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
from pathlib import Path
from types import ModuleType

import pytest

MAN = Path(__file__).parents[2] / "contrib" / "man"


def load_maker() -> ModuleType:
    spec = importlib.util.spec_from_file_location("man_make", MAN / "make.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


MAKER = load_maker()
CHECKS = {
    "man": ["man", "--warnings=w", "-l"],
    "groff": ["groff", "-ww", "-man", "-Tutf8"],
    "mandoc": ["mandoc", "-T", "lint", "-W", "error"],
}


@pytest.mark.parametrize("name", MAKER.PAGES)
def test_a_page_is_current(name: str):
    assert (MAN / name).read_text(encoding="ascii") == MAKER.page(name), "run: .venv/bin/python contrib/man/make.py"


@pytest.mark.parametrize("name", MAKER.PAGES)
@pytest.mark.parametrize("program", CHECKS)
def test_a_formatter_finds_nothing_wrong(program: str, name: str):
    if shutil.which(program) is None:
        pytest.skip(f"there is no {program} here (Debian: apt-get install {program.replace('man', 'man-db', 1)})")
    env = {**os.environ, "LC_ALL": "C.UTF-8", "MANPAGER": "cat", "MANWIDTH": "100"}
    done = subprocess.run([*CHECKS[program], str(MAN / name)], capture_output=True, text=True, env=env, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_every_command_is_on_the_first_page():
    text = (MAN / "loom.1").read_text(encoding="ascii").replace("\\-", "-")
    for words in ("loom schedule run-due", "loom agent start", "loom gc", "loom completion"):
        assert f".SS {words} " in text


@pytest.mark.parametrize(("text", "roff"), [
    ("a `-b` *c* **d** [e](f.md)", "a \\fB\\-b\\fP \\fIc\\fP \\fBd\\fP e"),
    (".hidden 'x'", "\\&.hidden \\(aqx\\(aq"),
    ("a\\b … →", "a\\eb \\[u2026] \\[u2192]"),
    ("'quoted", "\\(aqquoted"),
])  # fmt: skip
def test_text_is_told_as_it_is(text: str, roff: str):
    assert MAKER.inline(text) == roff
