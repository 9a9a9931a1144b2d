"""`loom agent start --detach`: an agent's directory, its `want`, and a supervisor that obeys it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, replace
from importlib import import_module
from typing import Any

from loom.cli import printing
from loom.cli.agent_start import WORKSPACE_ENV, Options, existing, open_and_load, spec_of, system_of
from loom.cli.ensure import ensure_supervisor, supervisor_environment
from loom.models.registry import check_model, split_name
from loom.spool import agents, wake
from loom.spool.layout import Home
from loom.wire import exits
from loom.wire.agent import AgentSpec
from loom.wire.errors import Config, LoomError, Usage

SURROUNDINGS = "loom.daemons.surroundings"

# Where a provider is told to be by a variable that is no secret: a detached agent keeps it, as it keeps its model.
_ADDRESS_OF = {"openai": "OPENAI_BASE_URL", "ollama": "OLLAMA_HOST"}


def start(o: Options) -> int:
    """Make the agent, or say that it is there; see that it runs. The exit status."""
    home, loaded = open_and_load()
    base, base_prompt = existing(home, o.name)
    spec, prompt = _settled(home, spec_of(o, base, loaded["model"])), system_of(o, base_prompt)
    changed = base is not None and _difference(base, base_prompt, spec, prompt)
    if changed and not o.replace:
        raise Usage(f"agent {o.name} exists with {changed}", hint="to give it the new settings, add --replace")
    _check(home, spec)
    directory = home.agent(o.name)
    if base is None or changed:
        agents.create(home, spec, prompt, "up")
    elif agents.read_want(directory) != "demand":
        agents.write_want(directory, "up")  # also when it says so already: a person asks
    ensure_supervisor(home)
    wake.ring_agent(home.wake, o.name)
    how = "created" if base is None else "changed" if changed else "unchanged"
    if o.json:
        told = {"v": 1, "agent": o.name, "how": how, "model": spec.model, "directory": str(directory.path)}
        printing.json_line(told)
        return exits.DONE
    printing.line(o.name)
    said = {"created": "is started", "changed": "has its new settings", "unchanged": "exists with these settings"}
    printing.note(f"{o.name} {said[how]}; send to it with: loom send {o.name} TEXT --wait")
    return exits.DONE


def _settled(home: Home, spec: AgentSpec) -> AgentSpec:
    """The spec with nothing left that depends on the caller's directory or environment, keys excepted."""
    context = _context(home, spec, os.environ, os.getcwd())
    prefix, rest = split_name(spec.model, context)
    if prefix in ("exec", "script") and (prefix == "script" or "/" in rest):
        rest = os.path.abspath(rest)
    model = f"{prefix}/{rest}" if rest else prefix
    variable = _ADDRESS_OF.get(prefix, "")
    address = os.environ.get(variable, "") if variable else ""
    env = {variable: address, **spec.env} if address else spec.env
    return replace(spec, model=model, env=env)


def _context(home: Home, spec: AgentSpec, env: Mapping[str, str], cwd: str) -> Any:
    return import_module(SURROUNDINGS).model_context(home, {**env, **spec.env}, cwd, {})


def _check(home: Home, spec: AgentSpec) -> None:
    """Raise what would keep the runner from working: it has the supervisor's environment, not the caller's."""
    directory = home.agent(spec.name)
    clean = supervisor_environment(home.path, os.environ)
    cwd = str(directory.path)
    try:
        check_model(spec.model, _context(home, spec, clean, cwd))
    except Config as error:
        if not _works(home, spec, cwd):
            raise
        provider = spec.model.partition("/")[0]
        raise Config(
            f"the key of {provider} is only in this environment, which a detached agent does not get",
            hint=f"store it with: loom secret set {provider}",
            kind=error.kind,
        ) from None
    surroundings = import_module(SURROUNDINGS)
    surroundings.grant(spec.tools, surroundings.tool_dirs(home, directory), {}, "/")
    if "run-shell" in spec.tools and not spec.unsafe_no_sandbox:
        printing.note("run-shell has no sandbox in this version and refuses to run without --unsafe-no-sandbox")
    if spec.tools and WORKSPACE_ENV not in spec.env:
        printing.note(f"{spec.name} has tools and no workspace: tools for files will refuse; give it one with -w DIR")


def _works(home: Home, spec: AgentSpec, cwd: str) -> bool:
    try:
        check_model(spec.model, _context(home, spec, os.environ, cwd))
    except LoomError:
        return False
    return True


def _difference(old: AgentSpec, old_prompt: str, new: AgentSpec, new_prompt: str) -> str:
    """The first setting that differs, in words; empty when none does."""
    for name, before in asdict(old).items():
        after = asdict(new)[name]
        if before != after:
            return _words(name, before, after)
    return "another system prompt" if old_prompt != new_prompt else ""


def _words(name: str, before: Any, after: Any) -> str:
    if isinstance(before, dict) and isinstance(after, dict):
        for key in sorted({*before, *after}):
            if before.get(key) != after.get(key):
                return _words(f"{name} {key}", before.get(key), after.get(key))
    if isinstance(before, tuple):
        before, after = ",".join(before) or "none", ",".join(after) or "none"
    return f"{name} {before!r}, not {after!r}"
