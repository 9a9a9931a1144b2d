"""A model server for tests; what it says is made with the helpers of model_far_side."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from model_far_side import HOLD, KEY, Server, chat, collect

from loom.models.classify import Endpoint
from loom.models.openai import OpenAIModel
from loom.models.transport import DEFAULT, Timeouts
from loom.wire.chat import ChatReply


@pytest.fixture
def server() -> Iterator[Server]:
    state = Server()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            state.requests.append(json.loads(body))
            state.paths.append(self.path)
            state.headers.append({k.lower(): v for k, v in self.headers.items()})
            self.close_connection = True
            try:
                for piece in state.answers[len(state.requests) - 1]:
                    if piece is HOLD:
                        state.over.wait(60)
                    else:
                        self.wfile.write(piece)
                        self.wfile.flush()
            except OSError:
                pass  # the client had enough

        def log_message(self, format: str, *args: object) -> None:
            pass

    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    httpd.daemon_threads = True
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    state.url = f"http://127.0.0.1:{httpd.server_address[1]}/v1"
    yield state
    state.over.set()
    httpd.shutdown()
    thread.join()
    httpd.server_close()


@pytest.fixture
def ask(server: Server) -> Callable[..., tuple[str, ChatReply]]:
    """Ask a model at the server; gives the streamed text and the reply, having checked that they agree."""

    def asked(*answer: bytes, alias: str = "lab", timeouts: Timeouts = DEFAULT, **request: Any) -> Any:
        if answer:
            server.answers.append(answer)
        model = OpenAIModel(Endpoint(alias, "m1", server.url, "LAB_API_KEY", KEY), timeouts)
        return collect(model, chat(**request))

    return asked
