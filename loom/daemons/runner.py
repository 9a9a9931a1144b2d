"""Runners that ask a model: the plain agent and the roles of a goal, one mailbox each (docs/protocol.md section 9)."""

from __future__ import annotations

import os
from pathlib import Path

from loom.daemons import service, surroundings, turnloop
from loom.daemons.service import Agent, Done
from loom.daemons.surroundings import WORKSPACE_ENV, agent_env, grant, loom_env, model_context, read_prompt, tool_dirs
from loom.models.base import Model
from loom.models.registry import check_model, open_model
from loom.roles import chat, orders
from loom.spool import goals, threads
from loom.spool.mailbox import Claimed
from loom.spool.turns import Turn
from loom.wire.chat import usage_to_json


def serve_agent(agent_dir: Path, drain: bool = False) -> int:
    """The plain agent (runners/agent)."""
    return service.serve(agent_dir, ChatWorker, drain)


def serve_planner(agent_dir: Path, drain: bool = False) -> int:
    """A planner of the pool (runners/planner)."""
    return service.serve(agent_dir, RoleWorker, drain)


def serve_executor(agent_dir: Path, drain: bool = False) -> int:
    """An executor of the pool (runners/executor)."""
    return service.serve(agent_dir, RoleWorker, drain)


def serve_verifier(agent_dir: Path, drain: bool = False) -> int:
    """A verifier of the pool (runners/verifier)."""
    return service.serve(agent_dir, RoleWorker, drain)


class ChatWorker:
    """Prompt, history and message in; the model's text out. The model is checked before the first message."""

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        directory = agent.dir
        workspace = agent.spec.env.get(WORKSPACE_ENV, "")
        env = agent_env(agent.home, agent.spec, directory.path, workspace)
        self.context = model_context(agent.home, dict(os.environ), str(directory.path), env, agent.heartbeat.beat)
        check_model(agent.spec.model, self.context)
        surroundings.check_schema(agent.spec)
        self.model: Model = open_model(agent.spec.model, self.context)
        self.window = surroundings.window(self.context, self.model.name, agent.spec.options)
        self.patience = surroundings.patience(agent.home, agent.spec.options, self.context, agent.heartbeat)
        if agent.spec.unsafe_no_sandbox:
            agent.log.warning("unsafe_no_sandbox", hint="run-shell runs with all rights of this user")
        tool_s = surroundings.tool_s(agent.home, agent.spec.options)
        place = workspace or str(directory.path)
        self.tools = grant(agent.spec.tools, tool_dirs(agent.home, directory), env, place, tool_s)

    def work(self, claimed: Claimed, turn: Turn) -> Done:
        agent = self.agent
        asked = surroundings.asked(agent.home, agent.spec, claimed.message, self.window)
        thread_name = threads.name_of(claimed.message)
        thread = service.wait_for_thread(agent, thread_name) if thread_name else None
        try:
            history = thread.history if thread is not None else []
            begun = chat.begin(
                self.model.name,
                read_prompt(agent.dir),
                history,
                asked,
                list(self.tools.specs.values()),
                surroundings.sampling(agent.spec.options),
            )
            if begun.left_out:
                agent.log.warning("history_cut", message=claimed.stem, what=begun.left_out)
            outcome = turnloop.run(
                turn,
                begun.request,
                self.model,
                self.tools,
                agent.stopping,
                agent.log,
                patience=self.patience,
                deadline_ms=claimed.message.deadline_ms,
            )
        except BaseException:
            if thread is not None:
                thread.close()
            raise
        said = (("user", asked.text), ("assistant", outcome.text))
        return Done(outcome.text, {"usage": usage_to_json(outcome.usage)}, said, thread)


class RoleWorker:
    """An order to a role: model, tools and workspace come with it; its answer is read by the role."""

    def __init__(self, agent: Agent) -> None:
        self.agent = agent

    def work(self, claimed: Claimed, turn: Turn) -> Done:
        agent, message = self.agent, claimed.message
        order = orders.decode(message.kind, message.data or {})
        env = loom_env(agent.home, agent.dir.name, agent.dir.path, order.workspace, message.goal)
        context = model_context(agent.home, {**os.environ, **order.env}, order.cwd, env, agent.heartbeat.beat)
        model = open_model(order.model, context, role=order.role)
        tool_s, place = surroundings.tool_s(agent.home, agent.spec.options), order.workspace or str(agent.dir.path)
        tools = grant(order.tools, tool_dirs(agent.home, None), env, place, tool_s)
        first = orders.request(order, model.name, list(tools.specs.values()))
        outcome = turnloop.run(
            turn,
            first,
            model,
            tools,
            agent.stopping,
            agent.log,
            patience=surroundings.patience(agent.home, agent.spec.options, context, agent.heartbeat),
            deadline_ms=message.deadline_ms,
            abandoned=lambda: goals.is_over(agent.home, message.goal),
        )
        report = orders.read(order, outcome.text)
        report["usage"] = usage_to_json(outcome.usage)
        report["failed_calls"] = outcome.failed_calls
        if order.kind == "execute":
            report["written"] = _written(turn)
        return Done(outcome.text, report)


def _written(turn: Turn) -> list[str]:
    """Files that the executor's tool has written, or found to hold these very bytes already: from the turn's record."""
    return sorted(
        {
            str((call.input or {}).get("path", "")).removeprefix("./")
            for step in turn.steps
            if step.reply is not None
            for call in step.reply.calls
            if call.name == "write-file" and step.results.get(call.id, {}).get("status") == "ok"
        }
    )
