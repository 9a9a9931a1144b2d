"""What a command and a supervisor say to each other about a warm filter (docs/protocol.md section 7, ADR-0032).

    fork → command         `H`: here it is. A supervisor that hangs must not hold what only then is sent
    command → fork         a request, with the descriptors of its directory and its streams (PLACES)
    fork → command         `R`: it is ready to begin, with a pidfd of itself
    command → fork         `G`: go. From here on the filter is the fork's alone; before it, the command's
    fork → command         `E` and a byte: it ends with this status
    supervisor → command   `E` and a byte, when the fork could not say it; `S` and a byte: this signal has killed it

The command loads this module in place of all the others: it imports nothing that costs.
"""

from __future__ import annotations

from loom.wire.release import VERSION

PROTOCOL = 1
SOCKET = "run/filters.sock"  # in the home
PLACES = 4  # descriptors that come with a request: the current directory, stdin, stdout, stderr
HERE, READY, GO, ENDED, KILLED = b"H", b"R", b"G", b"E", b"S"
MOST_BYTES = 16 << 20  # of a request: more than a kernel gives to a program
LENGTH = 8  # bytes before a request that say how long it is
_HARMLESS = frozenset((b"PYTHONDONTWRITEBYTECODE", b"PYTHONUNBUFFERED", b"PYTHONHASHSEED", b"PYTHONPATH"))
_DECIDING = (b"PYTHON", b"LD_", b"OPENSSL_")


def kind(place: str, path: str, *interpreter: object) -> bytes:
    """Which program this is: loom's package in `place`, the modules that `path` ($PYTHONPATH) adds, its interpreter."""
    others = [each for each in path.split(":") if each and each != place]
    return "\n".join((f"{PROTOCOL} {VERSION} {place}", *others, repr(interpreter))).encode("utf-8", "surrogateescape")


def decides(name: bytes) -> bool:
    """Whether an environment variable is heeded when a program starts, before it runs: too late for a warm one."""
    return name.startswith(_DECIDING) and name not in _HARMLESS


def encode(kind: bytes, streams: str, argv: list[bytes], env: dict[bytes, bytes]) -> bytes:
    """A request. `streams` is how text is written on stdin and stdout. Nothing of it holds a NUL byte."""
    words = [kind, streams.encode(), b"%d" % len(argv), *argv, *(b"%b=%b" % pair for pair in env.items())]
    data = b"\0".join(words)
    return len(data).to_bytes(LENGTH, "big") + data


def decode(data: bytes) -> tuple[bytes, list[str], list[bytes], dict[bytes, bytes]]:
    """(kind, streams, argv, environment) of a request without its length. Raises ValueError."""
    kind, streams, count, *words = data.split(b"\0")
    argv, env = words[: int(count)], {}
    for entry in words[int(count) :]:
        name, equals, value = entry.partition(b"=")
        if not name or not equals:
            raise ValueError(f"no environment entry: {entry[:40]!a}")
        env[name] = value
    return kind, streams.decode().split(), argv, env
