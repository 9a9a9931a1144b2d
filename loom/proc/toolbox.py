"""Which tools an agent has: names to executables, and what each says of itself.

A tool is found by its name in the first directory that has it, asked once with `describe`, and asked again only
when its file has changed. What a broken tool does wrong is said with its name and path.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from loom.proc import toolchild
from loom.wire import errors
from loom.wire.chat import ToolSpec, tool_from_json
from loom.wire.record import record

NAME = re.compile(r"[a-z][a-z0-9-]{0,63}")
PYTHON = re.compile(rb"#!.*\bpython[0-9.]*(\s|$)")
DESCRIBE_S = 5.0
DESCRIPTION_BYTES = 256 * 1024

_described: dict[tuple[str, int, int], ToolSpec] = {}


@record
class Tool:
    """An executable that answers one call, and what it says of itself."""

    path: Path
    spec: ToolSpec


def find_tools(names: Sequence[str], dirs: Sequence[Path], describe_s: float = DESCRIBE_S) -> dict[str, Tool]:
    """The tools called `names`, in that order; the first of `dirs` that has a name wins.

    describe_s  how long each may take to say what it is
    Raises errors.Usage for an impossible name, errors.NotFound for a missing tool, errors.Config for a broken one,
    errors.Disk when we cannot start a process.
    """
    return {name: _tool(name, dirs, describe_s) for name in names}


def argv(path: Path, verb: str) -> list[str]:
    """The command line for one call. Python tools run under the interpreter that runs loom, whatever PATH says.

    Raises OSError when the file cannot be read, errors.Disk when the reason is our own lack of descriptors.
    """
    try:
        with path.open("rb") as file:
            first = file.readline(256)
    except OSError as error:
        if error.errno in toolchild.OUR_LACK:
            raise toolchild.lacking(str(path), error) from error
        raise
    if PYTHON.match(first):
        return [sys.executable, "-I", str(path), verb]
    return [str(path), verb]


def _tool(name: str, dirs: Sequence[Path], describe_s: float) -> Tool:
    if not NAME.fullmatch(name):
        raise errors.Usage(
            f"{name!r} cannot be the name of a tool",
            hint="a name is a lower-case letter, then letters, digits and dashes, 64 at most",
        )
    path = next((d / name for d in dirs if (d / name).exists()), None)
    if path is None:
        raise _missing(name, dirs)
    path = path.absolute()
    if not path.is_file():
        raise errors.Config(f"tool {name} is not a file: {path}", hint="put an executable there")
    if not os.access(path, os.X_OK):
        raise errors.Config(f"tool {name} may not be executed: {path}", hint=f"run: chmod +x {path}")
    found = path.stat()
    key = (str(path), found.st_mtime_ns, found.st_size)
    if key not in _described:
        _described[key] = _describe(name, path, describe_s)
    return Tool(path, _described[key])


def _missing(name: str, dirs: Sequence[Path]) -> errors.NotFound:
    import difflib

    there = sorted({entry for d in dirs for entry in _names(d)})
    near = difflib.get_close_matches(name, there, n=1)
    hint = f"did you mean {near[0]}?" if near else f"there is: {', '.join(there) or 'none'}"
    return errors.NotFound(f"no tool {name} in {', '.join(map(str, dirs)) or 'any directory'}", hint=hint)


def _names(directory: Path) -> Iterable[str]:
    try:
        return [entry for entry in os.listdir(directory) if NAME.fullmatch(entry)]
    except OSError:
        return []


def _describe(name: str, path: Path, describe_s: float) -> ToolSpec:
    """What `PATH describe` says within that time, checked."""

    def broken(what: str) -> errors.Config:
        return errors.Config(f"tool {name} ({path}) is broken: {what}", hint=f"try: {path} describe")

    try:
        ended = toolchild.run(
            argv(path, "describe"),
            b"",
            env=toolchild.environment({}),
            cwd="/",
            timeout_s=describe_s,
            max_output_bytes=DESCRIPTION_BYTES,
            on_line=lambda line: "it printed more than one line",
            starts=toolchild.MAX_STARTS,
        )
    except (toolchild.NotStarted, OSError) as error:
        raise broken(f"it cannot be started: {error}") from error
    if ended.timed_out:
        raise broken(f"'describe' took more than {describe_s:g} s")
    if ended.fault or ended.exit_code or ended.last_line is None:
        raise broken(ended.fault or f"'describe' ended with {ended.exit_code} and {ended.last_line!r:.80}")
    try:
        spec = tool_from_json(json.loads(ended.last_line))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise broken(
            f"'describe' did not print name, description and input_schema as JSON: {type(error).__name__} {error}"
        ) from error
    if spec.name != name:
        raise broken(f"it calls itself {spec.name!r}; file and name must agree")
    if spec.input_schema.get("type") != "object":
        raise broken("its input_schema is not of type object")
    return spec
