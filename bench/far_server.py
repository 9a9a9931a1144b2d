"""A model server that answers at once, or after `--latency` seconds: the far side of every benchmark.

    python far_server.py [--latency S]      prints its port, then serves until stdin is closed

It speaks chat/completions, messages and responses, streamed in eight pieces. A model named `steps-N` calls the tool
`note` in each answer until N results stand in the request, then says that it is done. One process, one thread, an
event loop: its own time is part of every figure and the same for all.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

TEXT = "All eight pieces of this are one."
_PIECES = [TEXT[i : i + 5] for i in range(0, len(TEXT), 5)]
_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
_USAGE = {"prompt_tokens": 10, "completion_tokens": 8, "total_tokens": 18}


def _sse(*events: tuple[str, dict[str, Any]] | dict[str, Any]) -> bytes:
    out = []
    for event in events:
        name, data = event if isinstance(event, tuple) else ("", event)
        out.append((f"event: {name}\n" if name else "") + f"data: {json.dumps(data)}\n\n")
    return "".join(out).encode()


def _chunk(finish: str | None = None, **delta: Any) -> dict[str, Any]:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}


def chat(request: dict[str, Any]) -> bytes:
    """chat/completions."""
    name = str(request.get("model", ""))
    results = sum(1 for m in request.get("messages", ()) if m.get("role") == "tool")
    if name.startswith("steps-") and results < int(name.rpartition("-")[2]):
        function = {"name": "note", "arguments": json.dumps({"n": results})}
        call = {"index": 0, "id": f"call_{results}", "type": "function", "function": function}
        events = [_chunk(role="assistant", tool_calls=[call]), _chunk("tool_calls")]
    else:
        events = [_chunk(role="assistant", content=""), *(_chunk(content=p) for p in _PIECES), _chunk("stop")]
    if not request.get("stream"):
        message = {"role": "assistant", "content": TEXT}
        if "tool_calls" in events[0]["choices"][0]["delta"]:
            call = {k: v for k, v in events[0]["choices"][0]["delta"]["tool_calls"][0].items() if k != "index"}
            message = {"role": "assistant", "content": None, "tool_calls": [call]}
        finish = events[-1]["choices"][0]["finish_reason"]
        choice = {"index": 0, "message": message, "finish_reason": finish}
        body = {"id": "c", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]}
        data = json.dumps({**body, "usage": _USAGE}).encode()
        head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n"
        return head.encode() + b"Connection: close\r\n\r\n" + data
    return _HEAD + _sse(*events, {**_chunk(), "choices": [], "usage": _USAGE}) + b"data: [DONE]\n\n"


def messages(request: dict[str, Any]) -> bytes:
    """messages."""
    start = {"id": "m", "type": "message", "role": "assistant", "model": "m", "content": [], "stop_reason": None}
    begin = {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
    deltas = [{"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": p}} for p in _PIECES]
    end = {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 8}}
    events = [
        {"type": "message_start", "message": {**start, "usage": {"input_tokens": 10, "output_tokens": 1}}},
        begin,
        *deltas,
        {"type": "content_block_stop", "index": 0},
        end,
        {"type": "message_stop"},
    ]
    return _HEAD + _sse(*((e["type"], e) for e in events))


def responses(request: dict[str, Any]) -> bytes:
    """responses, as much of it as a client needs that only wants the text."""
    item = {"id": "i", "type": "message", "role": "assistant", "status": "completed"}
    whole = {**item, "content": [{"type": "output_text", "text": TEXT, "annotations": []}]}
    usage = {"input_tokens": 10, "output_tokens": 8, "total_tokens": 18}
    body = {"id": "r", "object": "response", "status": "in_progress", "output": []}
    events = [
        {"type": "response.created", "response": body},
        {"type": "response.output_item.added", "output_index": 0, "item": {**item, "content": []}},
        *(
            {"type": "response.output_text.delta", "item_id": "i", "output_index": 0, "content_index": 0, "delta": p}
            for p in _PIECES
        ),
        {"type": "response.output_item.done", "output_index": 0, "item": whole},
        {
            "type": "response.completed",
            "response": {**body, "status": "completed", "output": [whole], "usage": usage},
        },
    ]
    return _HEAD + _sse(*((e["type"], e) for e in events))


async def serve(latency_s: float) -> None:
    async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
            path = head.split(" ", 2)[1].partition("?")[0]
            length = int(head.partition("content-length:")[2].split("\r\n", 1)[0] or 0)
            request = json.loads(await reader.readexactly(length) or b"{}") if length else {}
            if latency_s:
                await asyncio.sleep(latency_s)
            answers = {"completions": chat, "messages": messages, "responses": responses}
            answer = answers.get(path.rpartition("/")[2])
            data = b'{"object": "list", "data": [{"id": "m", "object": "model"}]}'
            plain = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n".encode()
            writer.write(answer(request) if answer else plain + data)
            await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError, ValueError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(one, "127.0.0.1", 0, backlog=1024, limit=64 << 20)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(serve(float(sys.argv[sys.argv.index("--latency") + 1]) if "--latency" in sys.argv else 0.0))
