"""Becoming another program in place: the same process goes on with code that is read anew.

The kernel keeps over an exec what belongs to the process: pid, children (ended ones too), signals that wait, the mask
of blocked ones, being the subreaper, and descriptors that are inheritable, with the flocks on them. What belongs to
the code is handed over in an anonymous file, of which nobody else knows and which ends with whoever holds it.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable, Mapping, MutableMapping, Sequence

from loom.wire.errors import Config

ENV = "LOOM_HANDOVER"  # `try FD`: could you go on from this?   `take FD`: go on from this
_ALL = signal.valid_signals()


def memory(data: bytes) -> int:
    """A descriptor of an anonymous file with these bytes; the caller's to close. Raises OSError."""
    fd = os.memfd_create("loom-handover")
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
    except OSError:
        os.close(fd)
        raise
    return fd


def contents(fd: int) -> bytes:
    """All bytes of such a file, wherever others have read it to."""
    found = bytearray()
    while piece := os.pread(fd, 1 << 20, len(found)):
        found += piece
    return bytes(found)


def given(env: MutableMapping[str, str]) -> tuple[str, bytes]:
    """(`try` or `take`, what was handed over), taken out of `env`; two empty ones at an ordinary start. Raises Config.

    It is meant for this process and no child of it.
    """
    word, _, number = env.pop(ENV, "").partition(" ")
    if not word:
        return "", b""
    try:
        fd = int(number)
        data = contents(fd)
        os.close(fd)
    except (ValueError, OSError) as error:
        raise Config(f"{ENV} names nothing that was handed over: {error}", hint=f"unset {ENV}") from None
    return word, data


def hold_signals() -> set[int]:
    """From now on signals wait, in this program and the one that it becomes. Returns what was blocked before."""
    return {int(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, _ALL)}


def let_signals(blocked: Iterable[int]) -> None:
    """Those that have waited come now, to the handlers that are set."""
    signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


def become(argv: Sequence[str], env: Mapping[str, str], state: bytes, fds: Iterable[int]) -> None:
    """Exec `argv`, handing over `state` and the descriptors `fds`. Returns only by raising OSError."""
    fd = memory(state)
    changed: list[int] = []
    try:
        for kept in (fd, *fds):
            os.set_inheritable(kept, True)
            changed.append(kept)
        os.execve(argv[0], list(argv), {**env, ENV: f"take {fd}"})
    finally:
        for kept in changed:
            os.set_inheritable(kept, False)
        os.close(fd)
