"""A chain of models, `a|b|c`: the next one is asked where one cannot answer.

Asking another model helps against a server that is down, overloaded or refuses the key; it does not help against a
request that is bad or too long, and a refusal is an answer. Nobody is asked a second time for an answer of which
something was shown already: that stream ends with its error, and the next one begins with another member.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

from loom.models.base import Model
from loom.models.classify import is_transient
from loom.wire import errors
from loom.wire.chat import ChatReply, ChatRequest, Chunk, Notice, TextDelta
from loom.wire.record import replace

REST_S = 60.0


class ChainModel:
    """Members in the order in which they are asked. One that has failed is asked last for the next minute.

    Names are those of the members: the reply's `model` is the name of the one that answered. What a model thought is
    given back only to that one.
    """

    def __init__(self, members: Sequence[Model], clock: Callable[[], float] = time.monotonic) -> None:
        self.name = "|".join(member.name for member in members)
        self._members = tuple(members)
        self._clock = clock
        self._rests_until = [0.0] * len(self._members)

    def stream(self, request: ChatRequest) -> Iterator[Chunk]:
        """Yield the answer of the first member that gives one, a Notice before each change of member.

        Raises what a member raises where another cannot help, else one error for all of them.
        """
        failed: list[tuple[str, errors.LoomError]] = []
        order = self._order()
        for place, index in enumerate(order):
            member = self._members[index]
            shown = False
            try:
                for chunk in member.stream(_for(member, request)):
                    shown = shown or isinstance(chunk, TextDelta)
                    yield _signed(member, chunk) if isinstance(chunk, ChatReply) else chunk
                return
            except (errors.Unavailable, errors.TryLater, errors.Config) as error:
                self._rests_until[index] = self._clock() + max(REST_S, error.retry_after_s or 0.0)
                if shown:
                    raise
                failed.append((member.name, error))
            if place + 1 < len(order):
                yield _switched(failed[-1][1], self._members[order[place + 1]])
        raise _of_all(failed)

    def _order(self) -> list[int]:
        """Who is asked in turn: those that rest come last, the one that has rested longest first."""
        now = self._clock()
        return sorted(range(len(self._members)), key=lambda i: until if (until := self._rests_until[i]) > now else 0.0)


def _for(member: Model, request: ChatRequest) -> ChatRequest:
    """The request as this member may see it: without the thoughts of others, whose servers would refuse them."""
    messages = tuple(
        replace(m, thoughts=tuple(t for t in m.thoughts if t.get("model") == member.name)) if m.thoughts else m
        for m in request.messages
    )
    return replace(request, model=member.name, messages=messages)


def _signed(member: Model, reply: ChatReply) -> ChatReply:
    thoughts = tuple({**thought, "model": member.name} for thought in reply.thoughts)
    return replace(reply, model=member.name, thoughts=thoughts)


def _switched(error: errors.LoomError, to: Model) -> Notice:
    """What is told of it. What to do is said where a person must mend something; else asking the next one is it."""
    why = " ".join(str(error).split()) if is_transient(error) else error.line()
    return Notice("switched", f"{why}; {to.name} is asked instead")


def _of_all(failed: Sequence[tuple[str, errors.LoomError]]) -> errors.LoomError:
    """One error for a chain none of whose members answered.

    It is the last that says most: one that may pass before one that a person must mend, being busy before being
    away. It is worth another try as soon as the first of them is.
    """
    told = max(enumerate(failed), key=lambda at: (_weight(at[1][1]), at[0]))[1][1]
    others = ", ".join(f"{name} ({error.kind})" for name, error in failed)
    waits = [error.retry_after_s for _, error in failed if is_transient(error)]
    known = [wait for wait in waits if wait is not None]
    return type(told)(
        f"no model of the chain answered, tried {others}: {told}",
        hint=told.hint,
        kind=told.kind,
        retry_after_s=min(known) if known and len(known) == len(waits) else None,
    )


def _weight(error: errors.LoomError) -> int:
    return 2 if isinstance(error, errors.TryLater) else 1 if is_transient(error) else 0
