"""Processes of the same user that have nothing to do with loom, and note every signal: `soak_bystanders.py LOG`.

Each line on stdin is the number of a process that has been killed. A new bystander is then born with that very number,
where the kernel lets us choose: whoever signals the dead by number hits it. At the end of stdin it prints
`{"born", "wearing", "ended": […]}`, the last being those that somebody has ended or stopped, and ends with all.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import select
import signal
import sys
from collections import deque
from pathlib import Path

MOST = 48  # alive at a time; the oldest make room
FIRST = 8
GONE_S = 0.5  # so long a number that is still in use is waited for
_LAST = Path("/proc/sys/kernel/ns_last_pid")
_ALL = signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}
_PR_SET_PDEATHSIG = 1
_prctl = ctypes.CDLL(None).prctl


def stand(log: int) -> None:
    """Wait for signals for ever, and write down each with its sender."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _ALL)
    _prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    os.setsid()
    while True:
        info = signal.sigwaitinfo(_ALL)
        os.write(log, f"{os.getpid()} got {info.si_signo} from {info.si_pid}\n".encode())


class Host:
    """`alive`: the bystanders in the order of their birth."""

    def __init__(self, log: Path) -> None:
        self._log = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        self.alive: deque[int] = deque()
        self.ended: list[str] = []
        self.born = self.wearing = 0

    def bear(self, number: int = 0) -> None:
        if number and self._is_free(number):
            try:
                _LAST.write_text(str(number - 1))
            except OSError:
                pass  # not for everybody: then it gets any number
        pid = os.fork()
        if pid == 0:
            stand(self._log)
        self.born += 1
        self.wearing += pid == number
        self.alive.append(pid)
        self.look()
        if len(self.alive) > MOST:
            self._retire(self.alive.popleft())

    def _is_free(self, number: int) -> bool:
        for _ in range(int(GONE_S / 0.01)):
            if not os.path.exists(f"/proc/{number}"):
                return True
            select.select([], [], [], 0.01)
        return False

    def look(self) -> None:
        """Who has ended or been stopped, though nobody had any business with it."""
        for pid in list(self.alive):
            found, status = os.waitpid(pid, os.WNOHANG | os.WUNTRACED)
            if found:
                self.ended.append(f"{pid}: status {status:#x}")
                if not os.WIFSTOPPED(status):
                    self.alive.remove(pid)

    @staticmethod
    def _retire(pid: int) -> None:
        os.kill(pid, signal.SIGKILL)  # our child, and not reaped: the number is its own
        os.waitpid(pid, 0)


def main(log: Path) -> None:
    host = Host(log)
    gc.freeze()
    for _ in range(FIRST):
        host.bear()
    for line in sys.stdin:
        host.bear(int(line))
    host.look()
    print(json.dumps({"born": host.born, "wearing": host.wearing, "ended": host.ended}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
