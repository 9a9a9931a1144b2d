"""What a model and its tools are given of the world: settings, keys, the LOOM_* variables, the tools granted.

Shared by runners and filters. What starts processes (loom/proc/) is imported when a tool is granted, because most
filters have none; the supervisor has it in memory before it forks.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from loom.daemons.turnloop import Tools
from loom.models.base import ModelContext
from loom.spool import blobs, config, fs, secrets
from loom.spool.layout import AgentDir, Home, programs_dir
from loom.wire import settings
from loom.wire.agent import AgentSpec
from loom.wire.chat import ToolCall
from loom.wire.errors import Config

UNSAFE_ENV = "LOOM_UNSAFE_NO_SANDBOX"
WORKSPACE_ENV = "LOOM_WORKSPACE"
TOOL_TIMEOUT_S = 300.0


def model_context(home: Home, env: Mapping[str, str], cwd: str, extra_env: Mapping[str, str]) -> ModelContext:
    """What models may know, from config.yml, the stored secrets and this environment. Raises Config."""
    loaded = config.load(home, env)
    return ModelContext(
        env=env,
        providers=settings.providers(loaded.values),
        secret=lambda name: secrets.get(home, name),
        default_provider=loaded["default_provider"],
        cwd=cwd,
        extra_env=dict(extra_env),
        blob=lambda digest: blobs.get(home.blobs, digest),
    )


def loom_env(home: Home, name: str, directory: Path, workspace: str = "", goal: str = "") -> dict[str, str]:
    """The LOOM_* variables every program of ours gets (docs/protocol.md section 9); no secrets."""
    env = {"LOOM_HOME": str(home.path), "LOOM_AGENT": name, "LOOM_AGENT_DIR": str(directory)}
    if workspace:
        env[WORKSPACE_ENV] = workspace
    if goal:
        env["LOOM_GOAL"] = goal
    return env


def agent_env(home: Home, spec: AgentSpec, directory: Path, workspace: str) -> dict[str, str]:
    """What the programs of a plain agent get: what its spec adds, and LOOM_*, which no spec can change."""
    own = {key: value for key, value in spec.env.items() if not key.startswith("LOOM_")}
    env = own | loom_env(home, spec.name, directory, workspace)
    if spec.unsafe_no_sandbox:
        env[UNSAFE_ENV] = "1"
    return env


def read_prompt(directory: AgentDir) -> str:
    """The system prompt, empty when there is none. Raises Config when it is not text."""
    try:
        return fs.read(directory.prompt, 1 << 20).decode("utf-8")
    except FileNotFoundError:
        return ""
    except (fs.NotRegular, fs.TooLarge, UnicodeDecodeError) as error:
        raise Config(f"{directory.prompt} cannot be read: {error}") from None


def tool_dirs(home: Home, agent: AgentDir | None) -> list[Path]:
    """Where tools are looked for: the agent's own, the user's, the shipped ones."""
    own = [agent.tools] if agent is not None else []
    return [*own, home.tools, programs_dir("tools")]


def grant(
    names: tuple[str, ...], dirs: list[Path], env: Mapping[str, str], cwd: str, timeout_s: float = TOOL_TIMEOUT_S
) -> Tools:
    """The tools of these names, ready to be called. Raises NotFound, Config or Usage naming an unusable one."""
    if not names:
        return Tools()
    from loom.proc import schema, toolbox, toolcall

    found = toolbox.find_tools(names, dirs)

    def run(call: ToolCall) -> Mapping[str, Any]:
        tool = found[call.name]
        assert call.input is not None
        faults = schema.check_input(tool.spec.input_schema, call.input)
        if faults:
            return {"status": "error", "error": f"input of {call.name}: {'; '.join(faults[:5])}"}
        result = toolcall.call_tool(tool, call.input, env=env, cwd=cwd, timeout_s=timeout_s)
        if tool.spec.writes:
            _sync(Path(cwd))
        if result.status == "ok":
            return {"status": "ok", "result": result.result}
        later = {} if result.retry_after_s is None else {"retry_after": result.retry_after_s}
        return {"status": "error", "error": result.error, **later}

    return Tools({name: tool.spec for name, tool in found.items()}, run)


def _sync(workspace: Path) -> None:
    """What a tool wrote is on the disk before its result is recorded: a finished call is not made again."""
    try:
        fs.sync_tree(workspace)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        pass  # the tool took the workspace away: there is nothing left to keep
