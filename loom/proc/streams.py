"""The descriptors 0 to 2, which whoever starts a program may have closed (`2>&-`)."""

from __future__ import annotations

import os


def fill() -> None:
    """Each of them that is closed leads to /dev/null, for us and for programs that we start.

    Left closed, it would become the next file that is opened, a lock or a journal, and what is said on stderr would be
    written into that.
    """
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest that is free: this one
