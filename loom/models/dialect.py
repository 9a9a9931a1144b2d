"""What the dialects have in common: one request to a server, its refusal as an error, a stream of events as text.

A dialect states what differs: where it asks, how it writes a request, and what the events of an answer mean.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import Any, Protocol

from loom.models import classify
from loom.models.base import Blob, Timeouts, no_blobs, not_told
from loom.models.classify import Endpoint
from loom.models.proxies import Proxy
from loom.models.sse import SseEvent, SseParser
from loom.models.transport import DEFAULT, Client, Response
from loom.wire import errors, jsontext
from loom.wire.chat import TextDelta, ToolSpec

_ERROR_BODY_BYTES = 1 << 16
_PING = "ping"  # the event by which a server says that it is still there; others send comments


class ServerModel:
    """One model at one server. A connection is kept for the next request."""

    def __init__(
        self,
        endpoint: Endpoint,
        timeouts: Timeouts = DEFAULT,
        blob: Blob = no_blobs,
        proxy: Proxy | None = None,
        heard: Callable[[], None] = not_told,
    ) -> None:
        self.name = endpoint.name
        self._endpoint = endpoint
        self._blob = blob
        self._keepalive_s = timeouts.keepalive_s
        self._client = Client(timeouts, proxy, heard)
        self._set_up(endpoint)

    def _set_up(self, endpoint: Endpoint) -> None:
        """What a dialect knows of its server before it is asked."""

    def _post(
        self,
        url: str,
        headers: Mapping[str, str],
        body: Mapping[str, Any],
        read: Callable[[Response], Iterator[TextDelta]],
        hint: str = "",
    ) -> Generator[TextDelta, None, None]:
        """Ask, and yield what `read` makes of the answer. Raises what the server's refusal means, and BadInput for a
        body that is no JSON."""
        try:
            data = jsontext.dumps(dict(body))
        except (ValueError, TypeError) as error:
            raise errors.BadInput(f"the request for {self.name} cannot be written as JSON: {error}") from None
        headers = {"Content-Type": "application/json", "User-Agent": "loom", **headers}
        with self._client.request("POST", url, headers, data, hint=hint) as response:
            if 200 <= response.status < 300:
                yield from read(response)
                return
            said = response.start_of_body(_ERROR_BODY_BYTES)
            refused = classify.http_error(self._endpoint, response.status, response.headers, said, time.time())
        raise refused  # here, so that the connection is kept

    def _events(self, response: Response, answer: Answer) -> Iterator[TextDelta]:
        return read_events(response, answer, self._keepalive_s)

    def _bearer(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self._endpoint.key}"} if self._endpoint.key else {}


class Answer(Protocol):
    """The events of one answer, put together.

    done      the server has said that nothing follows
    complete  the answer is whole, whatever may still be missing of the stream
    add_…     take an event, or an answer that was not streamed; yields the text in it
    """

    done: bool

    @property
    def complete(self) -> bool: ...

    def add_event(self, event: SseEvent) -> Iterator[str]: ...

    def add_whole(self, body: bytes) -> Iterator[str]: ...


def read_events(response: Response, answer: Answer, keepalive_s: float) -> Iterator[TextDelta]:
    """The answer's text as it comes. Raises BrokenStream when it breaks off before its end.

    keepalive_s   so long a server may say nothing but that it is still there
    """
    try:
        for text in _texts(response, answer, keepalive_s):
            yield TextDelta(text)
    except errors.BrokenStream:
        if not answer.complete:
            raise
        # All that was said is here; only the end of the stream, or the token counts, were still to come.


def _texts(response: Response, answer: Answer, keepalive_s: float) -> Iterator[str]:
    if response.headers.get("content-type", "").startswith("application/json"):
        yield from answer.add_whole(b"".join(response.chunks).strip())
        return
    parser, said = SseParser(), time.monotonic()
    for piece in response.chunks:
        before = said
        for event in parser.feed(piece):
            if event.event != _PING:
                said = time.monotonic()
            yield from answer.add_event(event)
        if answer.done:
            return
        if said == before and time.monotonic() - said > keepalive_s:
            what = f"the server only said that it is still there, for {keepalive_s:g} s"
            raise errors.BrokenStream(what, hint="try again, or another model", kind="keepalive_only")
    for event in parser.finish():
        yield from answer.add_event(event)


def functions(tools: Sequence[ToolSpec]) -> list[dict[str, Any]]:
    """Tools as all but one dialect write them."""
    return [
        {
            "type": "function",
            "function": {"name": t.name, "description": t.description, "parameters": dict(t.input_schema)},
        }
        for t in tools
    ]
