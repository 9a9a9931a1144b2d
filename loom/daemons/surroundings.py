"""What a model and its tools are given of the world: settings, keys, the LOOM_* variables, the tools granted.

Shared by runners and filters. What starts processes (loom/proc/) is imported when a tool is granted, because most
filters have none; the supervisor has it in memory before it forks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from loom.core import turn
from loom.daemons.turnloop import Patience, Tools
from loom.models.base import ModelContext, Timeouts, not_told
from loom.roles.chat import Asked
from loom.spool import blobs, bodies, config, fs, secrets
from loom.spool.heartbeat import NOBODY, Heartbeat
from loom.spool.layout import AgentDir, Home, programs_dir
from loom.wire import settings
from loom.wire.agent import AgentSpec
from loom.wire.chat import ToolCall
from loom.wire.errors import BadInput, Config
from loom.wire.message import Message

UNSAFE_ENV = "LOOM_UNSAFE_NO_SANDBOX"
WORKSPACE_ENV = "LOOM_WORKSPACE"
CONTEXT_TOKENS = "context_tokens"
MAX_STEPS = "max_steps"
TOOL_S = "tool_s"
ARTIFACT_STEPS = "artifact_steps"
_OURS = (CONTEXT_TOKENS, MAX_STEPS, TOOL_S, ARTIFACT_STEPS, "respond_s", "claim_s")  # the last two: core/liveness.py


def model_context(
    home: Home,
    env: Mapping[str, str],
    cwd: str,
    extra_env: Mapping[str, str],
    heard: Callable[[], None] = not_told,
) -> ModelContext:
    """What models may know, from config.yml, the stored secrets and this environment. Raises Config.

    heard   called for each piece that comes from a model
    """
    loaded = config.load(home, env)
    return ModelContext(
        env=env,
        providers=settings.providers(loaded.values),
        secret=lambda name: secrets.get(home, name),
        default_provider=loaded["default_provider"],
        cwd=cwd,
        extra_env=dict(extra_env),
        blob=lambda digest: _blob(home, digest),
        blob_path=lambda digest: str(blobs.path_of(home.blobs, digest)),
        enclose=_enclose,
        timeouts=Timeouts(
            first_byte_s=loaded["liveness.first_byte"],
            idle_s=loaded["liveness.silence"],
            keepalive_s=loaded["liveness.keepalive"],
            program_s=loaded["liveness.program"],
        ),
        heard=heard,
    )


def _enclose() -> None:
    from loom.proc import enclosure  # here, because most models are no programs

    enclosure.enter()


def _blob(home: Home, digest: str) -> bytes:
    """The bytes of a message's picture. Raises BadInput when they are lost, for it is that message's fault."""
    try:
        return blobs.get(home.blobs, digest)
    except (FileNotFoundError, fs.NotRegular, blobs.BlobDamaged, ValueError) as error:
        raise BadInput(f"an image is blob {digest[:64]!a}, which is lost: {error}") from None


def window(context: ModelContext, model: str, options: Mapping[str, Any]) -> int | None:
    """How many tokens the model of this name can hold: what the agent's options say, else its provider's setting."""
    tokens = _count(options, CONTEXT_TOKENS, "tokens")
    if tokens is not None:
        return tokens
    provider = context.providers.get(model.partition("/")[0])
    return None if provider is None else provider.context


def _count(options: Mapping[str, Any], name: str, what: str) -> int | None:
    count = options.get(name)
    if count is not None and (isinstance(count, bool) or not isinstance(count, int) or count < 1):
        raise Config(f"option {name} is {count!r:.40}, expected a number of {what}")
    return count


def sampling(options: Mapping[str, Any]) -> dict[str, Any]:
    """An agent's options without those that are meant for us."""
    return {name: value for name, value in options.items() if name not in _OURS}


def tool_s(home: Home, options: Mapping[str, Any]) -> float:
    """How long a tool call may take: what the agent's options say, else the setting. Raises Config."""
    given = options.get(TOOL_S)
    if given is None:
        return float(config.load(home, {})["liveness.tool"])
    if isinstance(given, bool) or not isinstance(given, int | float) or not 0 < given <= settings.MOST_S:
        raise Config(f"option {TOOL_S} is {given!r:.40}, expected a number of seconds")
    return float(given)


def patience(home: Home, options: Mapping[str, Any], context: ModelContext, heartbeat: Heartbeat = NOBODY) -> Patience:
    """What a turn bears: what the agent's options say, else the settings. Raises Config."""
    steps = 0 if options.get(ARTIFACT_STEPS) == 0 else _count(options, ARTIFACT_STEPS, "steps")
    if steps is None:
        steps = int(config.load(home, {})["liveness.artifact_steps"])
    most = _count(options, MAX_STEPS, "steps") or turn.MAX_STEPS
    return Patience(most, steps, context.timeouts.longest_s, heartbeat)


def check_schema(spec: AgentSpec) -> None:
    """Raise Config when no answer can be held against the agent's schema."""
    if spec.schema is None:
        return
    from loom.core import schema_rules  # here, because most agents have none

    if fault := schema_rules.fault(spec.schema):
        raise Config(f"the schema of agent {spec.name} cannot be used: {fault}", hint="give it another with --schema")


def asked(home: Home, spec: AgentSpec, message: Message, tokens: int | None) -> Asked:
    """What an agent is asked by a message. Raises BadInput when what the message refers to is lost."""
    return Asked(bodies.text(home.blobs, message), bodies.images(home.blobs, message), tokens, spec.schema)


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


def grant(names: tuple[str, ...], dirs: list[Path], env: Mapping[str, str], cwd: str, timeout_s: float) -> Tools:
    """The tools of these names, ready to be called. Raises NotFound, Config or Usage naming an unusable one.

    timeout_s   how long one call may take
    """
    if not names:
        return Tools()
    from loom.core import schema
    from loom.proc import toolbox, toolcall, toolchild

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
            return {"status": "ok", "result": result.result, **({"warning": result.warning} if result.warning else {})}
        later = {} if result.retry_after_s is None else {"retry_after": result.retry_after_s}
        return {"status": "error", "error": result.error, **later}

    # One that somebody else kills is started again, each time with all its time.
    return Tools({name: tool.spec for name, tool in found.items()}, run, toolchild.MAX_STARTS * timeout_s)


def _sync(workspace: Path) -> None:
    """What a tool wrote is on the disk before its result is recorded: a finished call is not made again."""
    try:
        fs.sync_tree(workspace)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        pass  # the tool took the workspace away: there is nothing left to keep
