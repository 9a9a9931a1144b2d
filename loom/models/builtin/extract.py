"""builtin/extract: the three to five sentences of the last message that say most, in its own words and order."""

from __future__ import annotations

from collections.abc import Sequence

from loom.models.builtin import markup
from loom.models.builtin.conversation import Builtin, Step, last_user_text
from loom.models.builtin.rank import distinct, summarise
from loom.models.builtin.text import Sentence
from loom.wire.chat import ChatRequest

FEWEST = 3


def open(name: str) -> Builtin:
    """The model, under the name it was asked for."""
    return Builtin(name, _answer)


def _answer(request: ChatRequest) -> Step:
    return Step(extract(last_user_text(request)))


def extract(text: str) -> str:
    """A summary of the text, or the text itself when it has no more sentences than a summary would.

    A text without prose, such as a table or a program, is summarised by its lines.
    """
    sentences = markup.read(text).sentences or markup.read_lines(text)
    count = distinct(sentences)
    wanted = FEWEST + (count > 20) + (count > 60)
    if count <= wanted:
        return text
    return _joined(summarise(sentences, wanted))


def _joined(chosen: Sequence[Sentence]) -> str:
    """One paragraph of full sentences; a list as soon as one of them is a mere line."""
    if all(s.ended for s in chosen):
        return " ".join(s.text for s in chosen)
    return "\n".join(f"- {s.text}" for s in chosen)
