"""What every model is, and what it may know when it is opened.

A model is given one ChatRequest and streams its answer. It knows nothing of agents, mailboxes or goals, reads
no environment of its own accord (what it may see comes in as a ModelContext), and retries nothing: whether an
error is worth another try says loom.models.classify.is_transient, and who waits is the caller.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Protocol

from loom.wire.chat import ChatRequest, Chunk
from loom.wire.provider import Provider
from loom.wire.record import field, record


class Model(Protocol):
    """One model, ready to be asked any number of times, one request after the other.

    name    as the user wrote it, made complete: `llama3` becomes `ollama/llama3`
    stream  yields TextDelta pieces, then exactly one ChatReply, whose text is the pieces joined. A Notice may stand
            anywhere before the reply. Ending without a ChatReply never happens: it raises a
            loom.wire.errors.LoomError instead. An answer may be empty; the caller decides what that means. Closing
            the iterator early frees connection and process.
    """

    @property
    def name(self) -> str: ...

    def stream(self, request: ChatRequest) -> Iterator[Chunk]: ...


def _no_secrets(_name: str) -> str | None:
    return None


Blob = Callable[[str], bytes]


def no_blobs(digest: str) -> bytes:
    """For models that are never shown a picture."""
    raise FileNotFoundError(f"there are no blobs here to look {digest} up in")


def _no_path(_digest: str) -> str:
    return ""


def _not_enclosed() -> None:
    pass


def not_told() -> None:
    """For whoever does not ask to be told of each piece that comes."""


@record
class Timeouts:
    """How much silence is too much, in seconds. The head of the answer and its first byte each have `first_byte_s`.

    idle_s       between two pieces of an answer, and for a request that is not read
    keepalive_s  in which a server says nothing but that it is still there
    program_s    for the whole answer of a program, which may print it at its end
    kept_s       how long a connection without a request is fit for another one: longer than a step of a turn, shorter
                 than most servers and routers keep one that is silent
    """

    connect_s: float = 10.0
    first_byte_s: float = 120.0
    idle_s: float = 60.0
    kept_s: float = 30.0
    keepalive_s: float = 600.0
    program_s: float = 600.0

    @property
    def longest_s(self) -> float:
        """For how long a model may give no sign at all."""
        return max(self.connect_s, self.first_byte_s, self.idle_s, self.program_s)


@record
class ModelContext:
    """What a model may know of the world around it.

    env               the environment: PATH, HOME, OPENAI_API_KEY, OLLAMA_HOST …
    providers         what config.yml says under `providers:`, by alias
    secret            looks a stored secret up by its name; None when there is none
    default_provider  for bare names; '' leaves it to LOOM_DEFAULT_PROVIDER, then to ollama
    cwd               what relative paths in exec/ and script/ names start from
    extra_env         LOOM_* and TRACEPARENT for exec/ programs; they get no secrets
    blob              the bytes of a picture by its digest; raises BadInput when they are lost
    enclose           called in the child that becomes an exec/ program: what it starts shall not outlive it
    blob_path         where these bytes lie, for programs; '' when that is not known
    timeouts          how much silence is too much
    heard             called for each piece that comes from a model, also where it holds no text
    """

    env: Mapping[str, str]
    providers: Mapping[str, Provider] = field(default_factory=dict)
    secret: Callable[[str], str | None] = _no_secrets
    default_provider: str = ""
    cwd: str = "."
    extra_env: Mapping[str, str] = field(default_factory=dict)
    blob: Blob = no_blobs
    blob_path: Callable[[str], str] = _no_path
    enclose: Callable[[], None] = _not_enclosed
    timeouts: Timeouts = Timeouts()
    heard: Callable[[], None] = not_told
