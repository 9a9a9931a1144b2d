"""The shape of the code, kept by reading it: rooms and arrows, one module that changes files, pure rooms, small rules.

Everything here looks at syntax trees; nothing is imported or run.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "loom"

# room -> the rooms it may import
ARROWS: dict[str, set[str]] = {
    "wire": set(),
    "core": {"wire"},
    "spool": {"wire"},
    "proc": {"wire"},
    "models": {"wire"},
    "roles": {"wire", "core", "spool", "proc", "models"},
    "daemons": {"wire", "core", "spool", "proc", "models", "roles"},
    "cli": {"wire", "core", "spool", "proc", "models"},
    "fronts": {"wire", "core", "spool"},
}

# (module, room or module it also imports): why. `cli` names daemons by string only.
_MAY_GO = "what may go and what a finding means is decided in core; gc and fsck need no daemon to carry it out"
ALSO: dict[tuple[str, str], str] = {
    ("loom.spool.broom", "core"): _MAY_GO,
    ("loom.spool.litter", "core"): _MAY_GO,
    ("loom.spool.retention", "core"): _MAY_GO,
    ("loom.spool.findings", "core"): _MAY_GO,
    ("loom.spool.fsck", "core"): _MAY_GO,
    ("loom.spool.fsck_mail", "core"): _MAY_GO,
    ("loom.spool.fsck_goals", "core"): _MAY_GO,
}

# module: the calls it may make besides, and why. Everything else that changes files is in spool/fs.py.
ALSO_CHANGES_FILES: dict[str, tuple[set[str], str]] = {
    "loom.proc.cgroup": ({".mkdir", ".rmdir"}, "groups of processes, which the kernel shows as directories: no disk"),
}

FILE_CHANGING = {
    "os": {
        "rename", "renames", "replace", "unlink", "remove", "removedirs", "rmdir", "mkdir", "makedirs", "link",
        "symlink", "mkfifo", "mknod", "truncate", "ftruncate", "chmod", "fchmod", "lchmod", "chown", "fchown",
        "lchown", "utime", "fsync", "fdatasync", "sync", "copy_file_range", "setxattr", "removexattr",
        "posix_fallocate", "sendfile",
    },
    "shutil": {"copy", "copy2", "copyfile", "copytree", "copyfileobj", "move", "rmtree", "chown", "make_archive",
               "unpack_archive", "copymode", "copystat"},
    "tempfile": {"*"},
}  # fmt: skip
# Methods of paths and files; `replace` and `rename` are told from those of strings by their receiver below.
FILE_METHODS = {
    "write_text", "write_bytes", "touch", "unlink", "rmdir", "mkdir", "symlink_to", "hardlink_to", "chmod", "lchmod",
}  # fmt: skip

IMPURE = {
    "os", "time", "random", "secrets", "subprocess", "socket", "logging", "threading", "multiprocessing", "asyncio",
    "pathlib", "shutil", "tempfile", "signal", "select", "fcntl", "io", "sys", "httpx", "psutil", "ssl", "urllib",
    "http", "uuid", "getpass", "platform", "locale", "ctypes", "mmap", "pty", "resource", "concurrent", "glob",
    "datetime", "zoneinfo", "atexit", "warnings", "watchfiles",
}  # fmt: skip
# (module, import): the names of it that may be used, all pure.
PURE_PARTS = {
    ("loom.wire.times", "time"): {"strftime", "gmtime", "strptime"},
    ("loom.core.checks", "io"): {"StringIO"},
    ("loom.core.checks", "warnings"): {"catch_warnings", "simplefilter"},  # of the compiler, about text it is given
}


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_bytes(), str(path))


def imports_of(path: Path) -> Iterator[tuple[str, int]]:
    """Every module imported anywhere in the file, with its line; `from a import b` gives a and a.b."""
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            yield node.module or "", node.lineno
            for alias in node.names:
                yield f"{node.module}.{alias.name}", node.lineno


def room_of(module: str) -> str:
    parts = module.split(".")
    if module == "loom.__main__":
        return "cli"
    return parts[1] if parts[0] == "loom" and len(parts) > 1 else ""


def parametrized(paths: list[Path]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("path", paths, ids=lambda p: str(p.relative_to(ROOT)))


# -- arrows ----------------------------------------------------------------------------------------------------


def test_there_is_something_to_look_at():
    assert len(modules()) > 25
    assert {room_of(name_of(p)) for p in modules()} - {""} <= ARROWS.keys(), "a room without a place in the order"


@parametrized(modules())
def test_imports_point_downwards(path: Path):
    module = name_of(path)
    room = room_of(module)
    wrong = []
    for imported, line in imports_of(path):
        other = room_of(imported)
        if not other or other == room or other in ARROWS[room]:
            continue
        if (module, other) not in ALSO and (module, imported) not in ALSO:
            wrong.append(f"{path.relative_to(ROOT)}:{line}: {room} imports {imported}")
    assert wrong == []


def test_no_module_imports_itself_round_a_corner():
    """At the top of modules: an import inside a function is made later and closes no circle."""
    names = {name_of(p): p for p in modules()}
    top: dict[str, set[str]] = {}
    for module, path in names.items():
        found: set[str] = set()
        for node in _top_level(tree_of(path)):
            if isinstance(node, ast.Import):
                found |= {a.name for a in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                exact = {f"{node.module}.{a.name}" for a in node.names} & names.keys()
                found |= exact or {node.module}
        top[module] = (found & names.keys()) - {module}
    done: set[str] = set()

    def visit(module: str, way: tuple[str, ...]) -> None:
        assert module not in way, " -> ".join([*way[way.index(module) :], module])
        if module not in done:
            for other in sorted(top[module]):
                visit(other, (*way, module))
            done.add(module)

    for module in sorted(top):
        visit(module, ())


def _top_level(tree: ast.Module) -> Iterator[ast.stmt]:
    for node in tree.body:
        if isinstance(node, ast.If):  # `if TYPE_CHECKING:` is not executed
            test = ast.unparse(node.test)
            if "TYPE_CHECKING" not in test:
                yield from node.body
            yield from node.orelse
        else:
            yield node


def test_tools_do_not_import_loom():
    programs = [p for p in (ROOT / "tools").iterdir() if p.is_file()]
    assert programs
    for path in programs:
        for imported, line in imports_of(path):
            assert imported.split(".")[0] != "loom", f"{path.name}:{line}"


# -- one module changes files ----------------------------------------------------------------------------------


def changes(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """Calls that change files, as far as a reader of the text can tell, with their lines."""
    direct: dict[str, str] = {}  # local name -> os.rename and the like
    aliases: dict[str, str] = {}  # local name -> os, shutil, tempfile
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name in FILE_CHANGING:
                    aliases[alias.asname or alias.name] = alias.name
        elif isinstance(node, ast.ImportFrom) and node.module in FILE_CHANGING:
            for alias in node.names:
                direct[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in aliases:
            module = aliases[node.value.id]
            if node.attr in FILE_CHANGING[module] or "*" in FILE_CHANGING[module]:
                yield f"{module}.{node.attr}", node.lineno
        elif isinstance(node, ast.Name) and node.id in direct and isinstance(node.ctx, ast.Load):
            module, name = direct[node.id].split(".")
            if name in FILE_CHANGING[module] or "*" in FILE_CHANGING[module]:
                yield direct[node.id], node.lineno
        elif isinstance(node, ast.Call):
            yield from _call_changes(node, aliases, direct)


def _call_changes(node: ast.Call, aliases: dict[str, str], direct: dict[str, str]) -> Iterator[tuple[str, int]]:
    function = node.func
    if isinstance(function, ast.Name) and function.id == "open" and _writes(node, 1):
        yield "open for writing", node.lineno
    if isinstance(function, ast.Name) and direct.get(function.id) == "os.open":
        yield from _os_open(node)
    if not isinstance(function, ast.Attribute):
        return
    on = ast.unparse(function.value)
    if aliases.get(on) == "os" and function.attr == "open":
        yield from _os_open(node)
    if on in aliases or on in ("fs", "fs.calls", "calls", "self"):
        return
    if function.attr in FILE_METHODS:
        yield f".{function.attr}", node.lineno
    if function.attr == "open" and _writes(node, 0):
        yield ".open for writing", node.lineno
    if function.attr in ("rename", "replace") and len(node.args) == 1 and not node.keywords:
        yield f".{function.attr}", node.lineno  # of a path: that of a string takes two, that of a record keywords


def _writes(node: ast.Call, place: int) -> bool:
    mode = node.args[place] if len(node.args) > place else None
    mode = next((k.value for k in node.keywords if k.arg == "mode"), mode)
    return isinstance(mode, ast.Constant) and isinstance(mode.value, str) and bool(set(mode.value) & set("wax+"))


def _os_open(node: ast.Call) -> Iterator[tuple[str, int]]:
    flags = " ".join(ast.unparse(a) for a in node.args[1:2])
    if "O_CREAT" in flags or "O_TRUNC" in flags or "O_TMPFILE" in flags:
        yield "os.open that makes a file", node.lineno


@parametrized([p for p in modules() if p != PACKAGE / "spool" / "fs.py"])
def test_only_one_module_changes_files(path: Path):
    allowed, _ = ALSO_CHANGES_FILES.get(name_of(path), (set(), ""))
    wrong = [f"{path.relative_to(ROOT)}:{line}: {what}" for what, line in changes(tree_of(path)) if what not in allowed]
    assert wrong == [], "call loom.spool.fs instead"


def test_every_exception_is_needed_and_has_its_reason():
    for module, (allowed, reason) in ALSO_CHANGES_FILES.items():
        path = ROOT / Path(*module.split(".")).with_suffix(".py")
        assert reason
        assert allowed == {what for what, _ in changes(tree_of(path))}, f"{module}: an exception nobody needs"
    for (module, imported), reason in ALSO.items():
        path = ROOT / Path(*module.split(".")).with_suffix(".py")
        assert reason
        assert imported in {i for i, _ in imports_of(path)} | {room_of(i) for i, _ in imports_of(path)}


def test_inside_it_only_the_primitive_calls_touch_the_kernel():
    """Outside `Calls` everything goes through `calls`, or the crash tests would not see it."""
    tree = tree_of(PACKAGE / "spool" / "fs.py")
    primitive = {"Calls", "_rename_noreplace", "_syncfs"}
    for node in tree.body:
        if getattr(node, "name", "") in primitive:
            continue
        found = list(changes(ast.Module([node], [])))
        wrapped = ast.Module([ast.parse("import os").body[0], node], [])
        assert [*found, *changes(wrapped)] == [], f"fs.{getattr(node, 'name', node)} changes files by itself"


@pytest.mark.parametrize("text, found", [
    ("import os\nos.rename(a, b)", "os.rename"),
    ("import os as o\no.unlink(a)", "os.unlink"),
    ("from os import replace as r\nr(a, b)", "os.replace"),
    ("import os\nf = os.mkdir", "os.mkdir"),
    ("import os\nos.open(a, os.O_WRONLY | os.O_CREAT)", "os.open that makes a file"),
    ("import shutil\nshutil.rmtree(a)", "shutil.rmtree"),
    ("import tempfile\ntempfile.mkstemp()", "tempfile.mkstemp"),
    ("open(a, 'w')", "open for writing"),
    ("open(a, mode='ab')", "open for writing"),
    ("open(a, 'r+')", "open for writing"),
    ("p.open('x')", ".open for writing"),
    ("p.write_text('x')", ".write_text"),
    ("(p / 'a').unlink()", ".unlink"),
    ("p.rename(q)", ".rename"),
    ("p.replace(q)", ".replace"),
    ("p.mkdir(parents=True)", ".mkdir"),
])  # fmt: skip
def test_the_reader_sees_a_change(text: str, found: str):
    assert found in {what for what, _ in changes(ast.parse(text))}


@pytest.mark.parametrize("text", [
    "s.replace('a', 'b')", "open(a)", "open(a, 'rb')", "p.open()", "import os\nos.open(a, os.O_RDONLY)",
    "fs.calls.rename(a, b)", "fs.replace(a, b)", "from dataclasses import replace\nreplace(m, a=1)", "p.read_text()",
])  # fmt: skip
def test_the_reader_takes_nothing_else_for_one(text: str):
    assert list(changes(ast.parse(text))) == []


# -- pure rooms ------------------------------------------------------------------------------------------------


@parametrized([p for p in modules() if room_of(name_of(p)) in ("wire", "core")])
def test_records_and_decisions_need_nothing_from_outside(path: Path):
    module = name_of(path)
    for imported, line in imports_of(path):
        top = imported.split(".")[0]
        if top not in IMPURE:
            continue
        parts = PURE_PARTS.get((module, top))
        assert parts is not None, f"{path.relative_to(ROOT)}:{line}: imports {imported}"
        used = {
            node.attr
            for node in ast.walk(tree_of(path))
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == top
        }
        assert used <= parts, f"{path.relative_to(ROOT)}: uses {top}.{sorted(used - parts)}"
    allowed = {"exec"} if path.name == "record.py" else set()  # it compiles `__init__` from names of fields (ADR-0018)
    forbidden = {"open", "print", "input", "exec", "eval", "__import__"} - allowed
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in forbidden, f"{path}:{node.lineno}"


# -- small rules -----------------------------------------------------------------------------------------------


@parametrized([p for p in modules() if p.name != "__init__.py"])
def test_every_module_says_what_it_is_for(path: Path):
    assert ast.get_docstring(tree_of(path)), f"{path.relative_to(ROOT)} has no docstring"


@parametrized([p for p in modules() if p.name == "__init__.py"])
def test_an_init_is_empty(path: Path):
    assert path.read_bytes() == b""


def test_every_directory_with_modules_is_a_package():
    for directory in {p.parent for p in modules()}:
        assert (directory / "__init__.py").exists(), directory


def test_nothing_is_called_utils():
    for path in [*modules(), *(ROOT / "tools").iterdir(), *(ROOT / "runners").iterdir()]:
        assert path.stem.strip("_") not in ("utils", "util", "helpers", "helper", "misc", "common_utils"), path


@parametrized(modules())
def test_importing_does_nothing(path: Path):
    """No environment read, no directory made, nothing printed while a module is imported."""
    for node in _top_level(tree_of(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        for inner in ast.walk(node):
            text = ast.unparse(inner) if isinstance(inner, ast.Attribute | ast.Call) else ""
            assert not text.startswith(("os.environ[", "os.environ.get(", "os.getenv(", "print(", "os.makedirs(")), (
                f"{path.relative_to(ROOT)}:{node.lineno}: {text}"
            )
