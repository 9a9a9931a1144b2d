"""builtin/echo: says again what was said last, so that everything around a model can be tried without one."""

from __future__ import annotations

from loom.models.builtin.conversation import Builtin, Step, last_user_text
from loom.wire.chat import ChatRequest


def open(name: str) -> Builtin:
    """The model, under the name it was asked for."""
    return Builtin(name, _answer)


def _answer(request: ChatRequest) -> Step:
    return Step(last_user_text(request))
