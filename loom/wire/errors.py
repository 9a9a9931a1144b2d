"""One small tree of errors, each with the exit status it ends a command with.

A message is one line: what was tried, what was found, what to do next. `kind` is the stable word for
programs (`error_type` in crash records and failure replies); `retry_after_s` is set where the far side said
when to come back. Bugs are not in this tree: they keep their traceback and end with exits.BUG.
"""

from __future__ import annotations

import errno

from loom.wire import exits

# What a machine lacks for a while, whatever the work is: descriptors, memory, processes, space, a healthy disk.
LACKS = frozenset(
    (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN, errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ENOBUFS)
)


class LoomError(Exception):
    """Base of everything a person can act on. `hint` is the next step, when it does not fit the message.

    about  what it happened to, by name, for programs: the members that stand beside `error` with --json
    """

    exit_status = exits.FAILED
    kind = "error"

    def __init__(self, message: str, *, hint: str = "", kind: str = "", retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.hint = hint
        self.retry_after_s = retry_after_s
        self.about: dict[str, str] = {}
        if kind:
            self.kind = kind

    def line(self) -> str:
        """The error as one line for a terminal or a log."""
        text = f"{self}; {self.hint}" if self.hint else str(self)
        return " ".join(text.split())


class WorkFailed(LoomError):
    """The work was done and its result is a failure."""

    kind = "work_failed"


class Usage(LoomError):
    """The command line or a name is wrong."""

    exit_status = exits.USAGE
    kind = "usage"


class BadInput(LoomError):
    """The input itself is at fault; the same input will fail again."""

    exit_status = exits.BAD_INPUT
    kind = "bad_input"


class ContextOverflow(BadInput):
    """The request does not fit the model's window."""

    kind = "context_overflow"


class NotFound(LoomError):
    """No such agent, goal, file or workspace."""

    exit_status = exits.NOT_FOUND
    kind = "not_found"


class Unavailable(LoomError):
    """The far side cannot be reached or broke off: worth another try."""

    exit_status = exits.UNAVAILABLE
    kind = "unavailable"


class BrokenStream(Unavailable):
    """An answer began and did not end properly; what came is not an answer."""

    kind = "broken_stream"


class Disk(LoomError):
    """The file system refused: no space, no descriptors, read-only, I/O error. Everything was left in place."""

    exit_status = exits.DISK
    kind = "disk"


def raise_lack(error: Exception, tried: str) -> None:
    """Raises Disk when `error` is a lack of the machine and no fault of what was tried; returns otherwise."""
    if isinstance(error, OSError) and error.errno in LACKS:
        hint = "free what is used up, or raise the limits (ulimit -a), then try again"
        raise Disk(f"{tried}: {error.strerror or error}", hint=hint) from error


class TryLater(LoomError):
    """Busy for now: rate limit, overload, a lock or a thread held by another process."""

    exit_status = exits.TRY_LATER
    kind = "try_later"


class Denied(LoomError):
    """Refused by policy, gate or sandbox."""

    exit_status = exits.DENIED
    kind = "denied"


class Config(LoomError):
    """Nothing will work until a person changes something: key, billing, model name, loom.yml, home version."""

    exit_status = exits.CONFIG
    kind = "config"


class ModelNotFound(Config):
    """The provider does not have this model."""

    kind = "model_not_found"


class Budget(LoomError):
    """A budget is used up."""

    exit_status = exits.BUDGET
    kind = "budget"


class Deadline(LoomError):
    """A deadline passed."""

    exit_status = exits.DEADLINE
    kind = "deadline"
