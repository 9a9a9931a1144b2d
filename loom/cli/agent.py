"""`loom agent …`: the table of its commands; each is a module of its own, imported when its word was given."""

from __future__ import annotations

from loom.cli.groups import LazyGroup

cli = LazyGroup(
    "agent",
    {
        "start": ("loom.cli.agent_start", "start an agent: a filter, a conversation or a detached process"),
        "ps": ("loom.cli.agent_ps", "list agents"),
        "show": ("loom.cli.agent_show", "one agent: settings, state, mail, last crash"),
        "stop": ("loom.cli.agent_stop:stop", "stop agents; they are not started again"),
        "restart": ("loom.cli.agent_stop:restart", "stop an agent and start it again"),
        "retry": ("loom.cli.agent_retry", "put failed messages back into the inbox"),
        "logs": ("loom.cli.agent_logs", "read or follow an agent's log"),
        "rm": ("loom.cli.agent_rm", "remove an agent and all that it has"),
        "send": ("loom.cli.send", "deliver a message (the same as `loom send`)"),
    },
    help="Start an agent or a filter; list, stop, retry, read logs.",
)
