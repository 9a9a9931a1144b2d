"""The shell runner asks many small programs. Each of them killed, at each of its uses, costs one start and no more."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from loom.spool import agents, mailbox
from loom.spool.home import open_home
from loom.wire import ids, message
from loom.wire.agent import AgentSpec

RUNNER = Path(__file__).parents[2] / "runners" / "sh-agent"
HELPERS = ("awk", "cat", "cp", "cut", "date", "grep", "iconv", "jq", "ln", "mkdir", "mv", "rm", "sed", "sha256sum",
           "sync", "wc")  # fmt: skip
NAME = "1790000000000-00000000000000000000000001"
USES = 30  # more than any of them has
needs = pytest.mark.skipif(any(shutil.which(name) is None for name in HELPERS), reason="programs are missing")
# The N-th use of a program ends by SIGKILL, before it has done anything.
_WRAPPER = """#!/bin/sh
echo use >>"$LOOM_TEST_USES"
[ "$({wc} -l <"$LOOM_TEST_USES")" -ne "$LOOM_TEST_AT" ] || kill -9 $$
exec {program} "$@"
"""


@needs
@pytest.mark.slow
@pytest.mark.parametrize("helper", HELPERS)
def test_a_helper_that_is_killed_makes_no_wrong_answer(tmp_path: Path, helper: str):
    bin_ = tmp_path / "bin"
    bin_.mkdir()
    wrapper = bin_ / helper
    wrapper.write_text(_WRAPPER.format(wc=shutil.which("wc"), program=shutil.which(helper)))
    wrapper.chmod(0o755)
    for at in range(1, USES):
        home = open_home(tmp_path / f"home{at}")
        box = agents.create(home, AgentSpec("a", "builtin/echo", runner="sh-agent"), "", "up")
        text = message.Message(ids.ulid_of(NAME), "user", 1, "hello")
        mailbox.deliver(box, NAME, message.encode(text))
        env = {**os.environ, "PATH": f"{bin_}:{os.environ['PATH']}", "LOOM_HOME": str(home.path)}
        uses = tmp_path / f"uses{at}"
        env |= {"LOOM_TEST_USES": str(uses), "LOOM_TEST_AT": str(at)}
        first = subprocess.run([RUNNER, box.path, "--drain"], env=env, capture_output=True, text=True, timeout=60)
        reached = uses.exists() and uses.read_text().count("\n") >= at
        again = subprocess.run([RUNNER, box.path, "--drain"], capture_output=True, text=True, timeout=60)
        assert again.returncode == 0, again.stderr
        assert os.listdir(box.outbox / ".sent") == []
        replies = [name for name in os.listdir(box.outbox) if name.endswith(".msg")]
        where = f"use {at} of {helper}: the first ended with {first.returncode} {first.stderr}"
        assert replies == [f"{ids.reply_stem('a', NAME, 0)}.msg"], where
        reply = message.decode((box.outbox / replies[0]).read_bytes(), replies[0].removesuffix(".msg"))
        assert (reply.body, reply.error) == ("hello", False), where
        assert box.processed(NAME).exists(), where
        assert not list(box.unreadable.glob("*.msg")), where
        if not reached:
            return
    raise AssertionError(f"{helper} is used more than {USES} times")
