"""`loom agent start --detach`: an agent's directory, its `want`, and a supervisor that obeys it."""

from __future__ import annotations

from dataclasses import asdict, replace
from importlib import import_module
from typing import Any

from loom.cli import model_names, printing
from loom.cli.agent_start import (
    OWN,
    WORKSPACE_ENV,
    Options,
    existing,
    open_and_load,
    spec_of,
    system_of,
    warn_of_no_sandbox,
)
from loom.cli.ensure import ensure_supervisor
from loom.spool import agents, locks, wake
from loom.spool.config import Loaded
from loom.spool.layout import AgentDir, Home
from loom.wire import exits
from loom.wire.agent import AgentSpec
from loom.wire.errors import Usage

SURROUNDINGS = "loom.daemons.surroundings"


def start(o: Options) -> int:
    """Make the agent, or say that it is there; see that it runs. The exit status."""
    home, loaded = open_and_load()
    base, base_prompt = existing(home, o.name, anew=o.replace)
    spec, prompt = settled(home, loaded, spec_of(o, base, loaded["model"])), system_of(o, base_prompt)
    directory = home.agent(o.name)
    is_new, was_dead = not directory.spec.exists(), agents.read_want(directory) == "dead"
    changed = base is not None and _difference(base, base_prompt, spec, prompt)
    if changed and not o.replace:
        raise Usage(f"agent {o.name} exists with {changed}", hint="to give it the new settings, add --replace")
    check(home, loaded, spec)
    if base is None or changed:
        agents.create(home, spec, prompt, "up")
    elif agents.read_want(directory) != "demand" and not _runs(directory):
        agents.write_want(directory, "up")  # also when it says so already: a person asks
    ensure_supervisor(home)
    wake.ring_agent(home.wake, o.name)
    how = "created" if is_new else "changed" if base is None or changed else "unchanged"
    if o.json:
        told = {"v": 1, "agent": o.name, "how": how, "model": spec.model, "directory": str(directory.path)}
        printing.json_line(told)
        return exits.DONE
    printing.line(o.name)
    said = {"created": "is started", "changed": "has its new settings", "unchanged": "exists with these settings"}
    dead = ", was dead and is started again" if was_dead else ""
    printing.note(f"{o.name} {said[how]}{dead}; send to it with: loom send {o.name} TEXT --wait")
    return exits.DONE


def _runs(agent: AgentDir) -> bool:
    """Whether it is wanted and at work: asking for it anew would only make its next crash look like a restart."""
    return agents.read_want(agent) == "up" and locks.holder(agent.lock) is not None


def settled(home: Home, loaded: Loaded, spec: AgentSpec) -> AgentSpec:
    """The spec with nothing left that depends on the caller's directory or environment, keys excepted."""
    if spec.runner != OWN:
        return spec
    model, env = model_names.settle(home, loaded, spec.model, spec.env)
    return replace(spec, model=model, env={**env, **spec.env})


def check(home: Home, loaded: Loaded, spec: AgentSpec) -> None:
    """Raise what would keep the runner from working: it has the supervisor's environment, not the caller's."""
    if spec.runner != OWN:
        return  # what it needs only it can say
    directory = home.agent(spec.name)
    model_names.check(home, loaded, spec.model, spec.env, str(directory.path))
    surroundings = import_module(SURROUNDINGS)
    tool_s = surroundings.tool_s(home, spec.options)
    surroundings.grant(spec.tools, surroundings.tool_dirs(home, directory), {}, "/", tool_s)
    warn_of_no_sandbox(spec)
    if spec.tools and WORKSPACE_ENV not in spec.env:
        printing.note(f"{spec.name} has tools and no workspace: tools for files will refuse; give it one with -w DIR")


def _difference(old: AgentSpec, old_prompt: str, new: AgentSpec, new_prompt: str) -> str:
    """The first setting that differs, in words; empty when none does."""
    for name, before in asdict(old).items():
        after = asdict(new)[name]
        if before != after:
            return _words(name, before, after)
    return "another system prompt" if old_prompt != new_prompt else ""


def _words(name: str, before: Any, after: Any) -> str:
    if name == "schema":
        return "no schema" if before is None else "another schema" if after is not None else "a schema, not none"
    if isinstance(before, dict) and isinstance(after, dict):
        for key in sorted({*before, *after}):
            if before.get(key) != after.get(key):
                return _words(f"{name} {key}", before.get(key), after.get(key))
    if isinstance(before, tuple):
        before, after = ",".join(before) or "none", ",".join(after) or "none"
    return f"{name} {before!r}, not {after!r}"
