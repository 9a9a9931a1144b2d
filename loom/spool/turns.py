"""The turn record: the write-ahead log of the work on one message (docs/protocol.md section 5, ADR-0004).

`turns/<name>.<attempt>.ndjson`. Lines, in order of time:

    {"t":"open","boot":B,"epoch":E}             at each incarnation
    {"t":"request","step":k,"head":{…},"messages":[…]}   the head (model, tools, options, schema) and messages of
                                                step 0; from step 1 on only those added since the step before
    {"t":"reply","step":k,"reply":{…}}          the model's whole answer with usage
    {"t":"intent","step":k,"call":{…}}          before a tool runs
    {"t":"result","step":k,"id":ID,"result":{…}}
    {"t":"progress"}                            the work got on; what was done stands elsewhere (pipes)
    {"t":"released"}                            on a clean leave

A request is rebuilt by joining recorded messages, never by asking the code how it would build them today. A record
over 64 KiB or 64 levels lies in a blob, and its line is {"t":…,"step":k,"blob":digest}. Intent and result are synced
before anything depends on them, and the reply that led to a call with its intent. What only an answer follows from need
not survive a power cut by itself: either the answer is published, or nothing has happened that could be repeated.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from loom.spool import blobs, fs, ndjson
from loom.wire.chat import (
    ChatReply,
    ChatRequest,
    ToolCall,
    calls_from_json,
    calls_to_json,
    message_to_json,
    reply_from_json,
    reply_to_json,
    request_from_json,
    request_to_json,
)
from loom.wire.jsontext import dumps, loads_object, too_deep
from loom.wire.record import replace
from loom.wire.turn import Step

MAX_DEATHS = 3
_BLOB_DEPTH = 128


class Turn:
    """An open turn record. `steps` is what earlier incarnations recorded; the methods add to it and to the file."""

    def __init__(self, path: Path, blob_dir: Path) -> None:
        self._blobs = blob_dir
        fs.ensure_dir(path.parent)
        self._file = ndjson.Appender(path)
        self.steps: list[Step] = []
        self.deaths = 0
        self._boot = ""
        self._since_open = 0
        for record in self._file.records:
            self._replay(self._resolve(record))
        if self._file.records:
            self._file.sync()  # who wrote them may have died before: what is built on them must not outlive them
        self._file.records = []

    def open(self, boot: str, epoch: str) -> None:
        """Begin an incarnation. Afterwards `deaths` counts those of this boot that ended without any progress."""
        record = {"t": "open", "boot": boot, "epoch": epoch}
        self._replay(record)
        self._write(record)

    def request(self, request: ChatRequest) -> None:
        """Record the next step's request, whose messages begin with all messages of the step before."""
        known = len(self.steps[-1].request.messages) if self.steps else 0
        record: dict[str, Any] = {"t": "request", "step": len(self.steps)}
        if not self.steps:
            record["head"] = {k: v for k, v in request_to_json(request).items() if k != "messages"}
        record["messages"] = [message_to_json(m) for m in request.messages[known:]]
        self._write(record)
        self.steps.append(Step(request))

    def reply(self, reply: ChatReply) -> None:
        """Record the model's answer to the last request; a power cut may take it until what follows is synced."""
        self._write({"t": "reply", "step": len(self.steps) - 1, "reply": reply_to_json(reply)})
        self.steps[-1].reply = reply

    def intent(self, call: ToolCall) -> None:
        """Record that a tool is about to run; durable when this returns."""
        self._write({"t": "intent", "step": len(self.steps) - 1, "call": calls_to_json([call])[0]}, sync=True)
        self.steps[-1].intents[call.id] = call

    def result(self, call_id: str, result: Mapping[str, Any]) -> None:
        """Record what a tool gave back; durable when this returns."""
        record = {"t": "result", "step": len(self.steps) - 1, "id": call_id, "result": dict(result)}
        self._write(record, sync=True)
        self.steps[-1].results[call_id] = result

    def progress(self) -> None:
        """Note that the work got somewhere by other records than these: an incarnation that ends then is no death."""
        self._write({"t": "progress"})

    def release(self) -> None:
        """Note a clean leave in the middle of the work: it is no death."""
        self._write({"t": "released"})

    def close(self) -> None:
        self._file.close()

    def _write(self, record: dict[str, Any], *, sync: bool = False) -> None:
        line = dumps(record)
        if len(line) >= ndjson.MAX_LINE_BYTES or too_deep(line):
            if too_deep(line, _BLOB_DEPTH):
                raise ValueError(f"a turn record is nested deeper than {_BLOB_DEPTH} levels")
            digest = blobs.put(self._blobs, line)
            record = {"t": record["t"], "step": record["step"], "blob": digest}
        self._file.append(record)
        if record["t"] != "open":
            self._since_open += 1
        if sync:
            self._file.sync()

    def _resolve(self, record: Mapping[str, Any]) -> Mapping[str, Any]:
        digest = record.get("blob")
        if not isinstance(digest, str):
            return record
        try:
            return loads_object(blobs.get(self._blobs, digest), _BLOB_DEPTH)
        except FileNotFoundError:
            raise blobs.BlobDamaged(f"{self._file.path}: the blob {digest} of a record is missing") from None

    def _replay(self, record: Mapping[str, Any]) -> None:
        match record.get("t"):
            case "open":
                same_boot = self._boot == record["boot"]
                if self._boot and same_boot and self._since_open == 0:
                    self.deaths += 1
                self._boot, self._since_open = record["boot"], 0
                return
            case "request":
                self.steps.append(Step(self._joined(record)))
            case "reply":
                self.steps[-1].reply = reply_from_json(record["reply"])
            case "intent":
                (call,) = calls_from_json([record["call"]])
                self.steps[-1].intents[call.id] = call
            case "result":
                self.steps[-1].results[record["id"]] = record["result"]
        self._since_open += 1

    def _joined(self, record: Mapping[str, Any]) -> ChatRequest:
        added: Sequence[Mapping[str, Any]] = record["messages"]
        if not self.steps:
            return request_from_json({**record["head"], "messages": added})
        before = self.steps[-1].request
        more = request_from_json({"model": before.model, "messages": added}).messages
        return replace(before, messages=before.messages + more)
