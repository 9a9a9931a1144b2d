"""The rules that a tool has to keep (docs/tools.md), each tried with real processes in a workspace of its own."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from loom.cli.conformance import Broken, Rule
from loom.proc import toolchild
from loom.proc.toolbox import argv
from loom.wire import exits, ids
from loom.wire.jsontext import Malformed, dumps, loads_object
from loom.wire.record import record

PATIENCE_S = 30.0
_FLAGS = ("idempotent", "network", "writes")
_FIELDS: Mapping[str, type] = {"description": str, "input_schema": dict, **dict.fromkeys(_FLAGS, bool)}
_SAMPLES: Mapping[str, Any] = {"string": "x", "integer": 1, "number": 1, "boolean": False, "array": [], "object": {}}


@record
class _Said:
    status: int
    out: bytes


def _call(program: str, place: Path, verb: str, data: bytes = b"") -> _Said:
    told = {"LOOM_HOME": str(place), "LOOM_AGENT": "candidate", "LOOM_AGENT_DIR": str(place)}
    env = toolchild.environment({**told, "LOOM_WORKSPACE": str(place)})
    words = [word for word in argv(Path(program), verb) if word]
    child = subprocess.Popen(
        words,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=env,
        cwd=place,
        start_new_session=True,
    )
    try:
        out, _ = child.communicate(data, PATIENCE_S)
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()
        raise Broken(f"`{verb}` with {data[:40]!r} on stdin did not end within {PATIENCE_S:g} s") from None
    return _Said(child.returncode, out)


def _object(said: _Said, what: str) -> dict[str, Any]:
    lines = [line for line in said.out.split(b"\n") if line.strip()]
    if not lines:
        raise Broken(f"{what} printed nothing and ended with {said.status}")
    try:
        return loads_object(lines[-1])
    except Malformed as error:
        raise Broken(f"the last line of {what} is no JSON object: {error}") from None


def _described(program: str, place: Path) -> dict[str, Any]:
    said = _call(program, place, "describe")
    if said.status != exits.DONE:
        raise Broken(f"`describe` ended with {said.status}, not 0")
    return _object(said, "`describe`")


def _describe(program: str, place: Path) -> None:
    spec = _described(program, place)
    name = Path(program).name
    if spec.get("name") != name or not ids.is_agent(name):
        raise Broken(
            f"`name` is {spec.get('name')!r}, and the file's name {name!r}; they are the same, as [a-z][a-z0-9-]*"
        )
    for field, kind in _FIELDS.items():
        if field not in _FLAGS and field not in spec:
            raise Broken(f"`{field}` is missing")
        if not isinstance(spec.get(field, kind()), kind):
            raise Broken(f"`{field}` is no {kind.__name__}")
    if spec["input_schema"].get("type") != "object":
        raise Broken("`input_schema` is not of the type object")
    if _described(program, place) != spec:
        raise Broken("asked twice it describes itself in two ways")


def _usage(program: str, place: Path) -> None:
    for verb in ("", "help", "--version"):
        said = _call(program, place, verb)
        if said.status != exits.USAGE or said.out:
            raise Broken(
                f"called with {verb!r} it ended with {said.status} and printed {said.out[:40]!r}, not 2 and nothing"
            )


def _result(said: _Said, what: str) -> str:
    result = _object(said, what)
    status = result.get("status")
    if status not in ("ok", "error"):
        raise Broken(f"the result of {what} has the status {status!r}")
    if status == "ok" and "result" not in result:
        raise Broken(f"the result of {what} lacks `result`")
    if status == "error" and not isinstance(result.get("error"), str):
        raise Broken(f"the error of {what} is no text")
    return str(status)


def _answers(program: str, place: Path) -> None:
    schema = _described(program, place)["input_schema"]
    known = schema.get("properties", {})
    asked = {name: _sample(known.get(name, {})) for name in schema.get("required", ())}
    said = _call(program, place, "invoke", dumps(asked))
    if said.status != exits.DONE:
        raise Broken(f"`invoke` with {asked} ended with {said.status}, not 0: an error is an answer too")
    _result(said, f"`invoke` with {asked}")


def _sample(schema: Mapping[str, Any]) -> Any:
    if "enum" in schema:
        return schema["enum"][0]
    return schema.get("default", _SAMPLES.get(str(schema.get("type")), "x"))


def _rubbish(program: str, place: Path) -> None:
    for data in (b"", b"{", b"[]", b"null", b"\xff\xfe", b"\0" * 1000, b"[" * 10_000):
        said = _call(program, place, "invoke", data)
        what = f"`invoke` with {data[:20]!r}"
        if said.status == exits.DONE and _result(said, what) == "ok":
            raise Broken(f"{what} went well")


RULES = (
    Rule("`describe` prints name, description and input_schema, the same each time, and ends with 0", _describe),
    Rule("called in any other way it ends with 2 and prints nothing", _usage),
    Rule("`invoke` answers what its schema asks for with one result, and ends with 0", _answers),
    Rule("what is no JSON object is refused, and hangs nothing", _rubbish),
)
