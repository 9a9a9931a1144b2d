"""`python -m loom`: the same as the command `loom`."""

import sys

from loom.cli.main import command

if __name__ == "__main__":
    sys.exit(command())
