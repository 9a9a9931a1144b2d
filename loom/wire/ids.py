"""Names: every rule about what an agent, thread, goal, subtask or message may be called, in one place.

A name that passed here may be joined to a path. Message names and derived reply names: ADR-0002,
docs/protocol.md section 2; test vectors in docs/vectors.json.
"""

from __future__ import annotations

import re

from loom.wire.errors import Usage

CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
MESSAGE_SUFFIX = ".msg"

_AGENT = re.compile(r"[a-z][a-z0-9-]{0,63}")
_THREAD = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_SUBTASK = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")
_GOAL = re.compile(r"[0-9]{8}-[a-z0-9]+(?:-[a-z0-9]+)*")
_STEM = re.compile(r"[0-9]{13}-[0-7][0-9A-HJKMNP-TV-Z]{25}")
_INSTANCE = re.compile(rf"(?:{_AGENT.pattern})~(?:{_AGENT.pattern})→(?:{_AGENT.pattern})")
_RESERVED = re.compile(r"(?:planner|executor|verifier|keeper).*|router|supervisor|user")

POOL_ROLES = ("planner", "executor", "verifier", "keeper")


def check_agent(name: str, *, reserved_ok: bool = False) -> str:
    """`name` when it is a legal agent name. Raises Usage; names of the harness itself are refused to users."""
    if not _AGENT.fullmatch(name):
        raise Usage(
            f"agent name {name!a} is not valid: a lower-case letter, then letters, digits and '-', at most 64",
            hint="for example: my-agent",
        )
    if not reserved_ok and _RESERVED.fullmatch(name):
        raise Usage(f"agent name {name!r} is reserved for loom's own processes", hint="choose another name")
    return name


def is_agent(name: str) -> bool:
    """Whether `name` could be an agent's, reserved ones included."""
    return _AGENT.fullmatch(name) is not None


def is_reserved(name: str) -> bool:
    """Whether this is a name of loom's own processes."""
    return _RESERVED.fullmatch(name) is not None


def instance(pipe: str, source: str, to: str) -> str:
    """The name of a pipe's own instance between two agents."""
    return f"{pipe}~{source}→{to}"


def parts_of_instance(name: str) -> tuple[str, str, str]:
    """The inverse of instance(): pipe, source and target of a name that is one."""
    pipe, _, ends = name.partition("~")
    source, _, to = ends.partition("→")
    return pipe, source, to


def is_instance(name: str) -> bool:
    """Whether this is the name of a pipe's instance."""
    return _INSTANCE.fullmatch(name) is not None


def is_mailbox(name: str) -> bool:
    """Whether an agent or an instance of a pipe could have this name."""
    return is_agent(name) or is_instance(name)


def check_thread(name: str) -> str:
    """`name` when it is a legal thread. Raises Usage."""
    if not _THREAD.fullmatch(name):
        raise Usage(f"thread {name!a} is not valid: a lower-case letter or digit, then those and '._-', at most 64")
    return name


def is_thread(name: str) -> bool:
    return _THREAD.fullmatch(name) is not None


def is_subtask(name: str) -> bool:
    return _SUBTASK.fullmatch(name) is not None


def is_goal(name: str) -> bool:
    return len(name) <= 80 and _GOAL.fullmatch(name) is not None


def check_goal(name: str) -> str:
    """`name` when it is a legal goal id. Raises Usage."""
    if not is_goal(name):
        raise Usage(f"goal id {name!a} is not valid", hint="list them with: loom goal ps -a")
    return name


def goal_id(text: str, day: str, draw: bytes) -> str:
    """`<yyyymmdd>-<short words>-<4 chars>`. `day` is yyyymmdd; `draw` gives the last four characters."""
    words = re.findall(r"[a-z0-9]+", text.lower())[:4]
    tail = "".join(CROCKFORD[b % 32] for b in draw[:4]).lower()
    return "-".join([day, *[w[:12] for w in words], tail])


def encode_ulid(ts_ms: int, random80: bytes) -> str:
    """26 Crockford characters: 48 bits of time, then the 80 bits given."""
    if not 0 <= ts_ms < 1 << 48 or len(random80) != 10:
        raise ValueError("a ULID takes 48 bits of time and 10 bytes")
    value = ts_ms << 80 | int.from_bytes(random80, "big")
    return "".join(CROCKFORD[value >> shift & 31] for shift in range(125, -1, -5))


def message_stem(ts_ms: int, random80: bytes) -> str:
    """A new message's name without its suffix; `ts_ms` must fit 13 digits, which it does until 2286."""
    if ts_ms >= 10**13:
        raise ValueError(f"{ts_ms} has more than 13 digits")
    return f"{ts_ms:013d}-{encode_ulid(ts_ms, random80)}"


def is_stem(stem: str) -> bool:
    """Whether this is a message's name without `.msg`."""
    return _STEM.fullmatch(stem) is not None


def stem_of(filename: str) -> str | None:
    """The name without `.msg`, or None when a file of this name is no message."""
    if not filename.endswith(MESSAGE_SUFFIX):
        return None
    stem = filename[: -len(MESSAGE_SUFFIX)]
    return stem if is_stem(stem) else None


def ulid_of(stem: str) -> str:
    return stem[14:]


def time_of(stem: str) -> int:
    """Unix milliseconds as the name says them: for sharding by day, never for ordering."""
    return int(stem[:13])


def reply_stem(agent: str, request: str, attempt: int = 0, part: int = 0) -> str:
    """The derived name of the answer of `agent` to the message `request` (both without `.msg`; ADR-0002).

    The reply itself is part 0, its parts are 1…n. Anyone can compute it, so an answer that is already
    there is found by name, and a second one cannot be published beside it.
    """
    draw = _derived(f"loom1\0reply\0{agent}\0{request}\0{attempt}\0{part}")
    return f"{request[:13]}-{encode_ulid(time_of(request), draw)}"


def slot_stem(job: str, slot: int, part: int = 0) -> str:
    """The name of the message that a slot of a job leads to; those of a driver's events are parts 1…n (ADR-0024).

    It follows from job and slot, so whoever serves the slot a second time finds the message there. Each part counts as
    a millisecond, so that events are worked on in their order.
    """
    return message_stem(slot * 1000 + part, _slot_draw(job, slot, part))


def slot_goal(job: str, slot: int, day: str) -> str:
    """The id of the goal that a slot leads to; `day` is that of the slot, yyyymmdd."""
    words = re.findall(r"[a-z0-9]+", job)
    draw = encode_ulid(0, _slot_draw(job, slot, 0))[-8:].lower()
    return "-".join([day, *words])[:70].rstrip("-") + f"-{draw}"


def _slot_draw(job: str, slot: int, part: int) -> bytes:
    return _derived(f"loom1\0slot\0{job}\0{slot}\0{part}")


def _derived(seed: str) -> bytes:
    """The eighty bits of a derived name in place of random ones."""
    from hashlib import sha256  # here, because a filter derives no name

    return sha256(seed.encode()).digest()[:10]
