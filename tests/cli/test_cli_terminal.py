"""On a terminal: a conversation, Ctrl-C and Ctrl-D, and no control characters from anybody but us."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_user import COMMAND, DEADLINE_S, Loom

from loom.spool import agents
from loom.spool.layout import Home
from loom.wire.agent import AgentSpec

CTRL_C, CTRL_D = b"\x03", b"\x04"
COLUMNS = 80


class Terminal:
    """A command on a pseudo-terminal: type into it, expect what it shows."""

    def __init__(self, loom: Loom, *words: str) -> None:
        self.fd, slave = pty.openpty()
        termios.tcsetwinsize(slave, (24, COLUMNS))
        self.process = subprocess.Popen(
            [*COMMAND, *words],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env={**loom.env, "TERM": "dumb"},
            cwd=loom.place,
            start_new_session=True,
            preexec_fn=_take_terminal,
        )
        os.close(slave)
        self.shown = b""

    def type(self, text: str | bytes) -> None:
        os.write(self.fd, text.encode() if isinstance(text, str) else text)

    def expect(self, text: str) -> str:
        """Read until `text` is shown; all that was shown up to it since the last time."""
        end = time.monotonic() + DEADLINE_S
        while text.encode() not in self.shown:
            assert select.select([self.fd], [], [], max(0, end - time.monotonic()))[0], self.shown
            try:
                data = os.read(self.fd, 4096)
            except OSError:
                data = b""
            assert data, f"it ended with {self.shown!r}"
            self.shown += data
        before, _, self.shown = self.shown.partition(text.encode())
        return before.decode()

    def press_until(self, key: str, text: str) -> None:
        """Press a key until `text` is shown: a signal that comes just before readline waits is seen with the next."""
        for _ in range(int(DEADLINE_S)):
            self.type(key)
            if text.encode() in self.shown or select.select([self.fd], [], [], 1)[0]:
                break
        self.expect(text)

    def wait(self) -> int:
        return self.process.wait(DEADLINE_S)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self.fd)


def _take_terminal() -> None:
    import fcntl

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


@pytest.fixture
def terminal(loom: Loom) -> Iterator[type[Terminal]]:
    opened: list[Terminal] = []

    class Opened(Terminal):
        def __init__(self, *words: str) -> None:
            super().__init__(loom, *words)
            opened.append(self)

    yield Opened  # type: ignore[misc]
    for one in opened:
        one.close()


HISTORY = (
    "import json, sys; print('SAID', *[m['text'] for m in json.load(sys.stdin)['messages'] if m['role'] == 'user'])"
)


def test_a_conversation_remembers_and_ends_with_ctrl_d(loom: Loom, terminal: type[Terminal]) -> None:
    program = loom.program("history.py", HISTORY)
    talk = terminal("agent", "start", "x", "--model", f"exec/{program}")  # type: ignore[arg-type]
    talk.expect("> ")
    talk.type("one\n")
    talk.expect("SAID one\r\n")
    talk.expect("> ")
    talk.type("two\n")
    talk.expect("SAID one two\r\n")
    talk.expect("> ")
    talk.type(CTRL_D)
    assert talk.wait() == 0
    assert (loom.home / "agents/x/conversations/main.ndjson").read_text().count("\n") == 4
    assert loom.left() == []


@pytest.mark.parametrize("words", [
    ("agent", "start", "x", "--model", "builtin/echo", "--stdin"),
    ("send", "x", "--stdin", "--wait"),
])  # fmt: skip
def test_stdin_that_is_asked_for_is_read_from_a_terminal_until_one_ctrl_d(
    loom: Loom, terminal: type[Terminal], words: tuple[str, ...]
) -> None:
    loom("agent", "start", "x", "--model", "builtin/echo", "--detach")
    talk = terminal(*words)  # type: ignore[arg-type]
    talk.type("one\n")
    talk.expect("one\r\n")  # the terminal's own echo
    talk.type(CTRL_D)
    talk.expect("one\r\n")
    assert talk.wait() == 0


def test_ctrl_c_stops_an_answer_and_not_the_conversation(loom: Loom, terminal: type[Terminal]) -> None:
    fifo = loom.place / "gate"
    os.mkfifo(fifo)
    source = f"""
import json, sys
text = json.load(sys.stdin)['messages'][-1]['text']
if text == 'wait':
    open({str(fifo)!r}, 'w').write('begun')
    open({str(fifo)!r}).read()
print('SAID', text)
"""
    talk = terminal("agent", "start", "x", "--model", f"exec/{loom.program('waits.py', source)}")  # type: ignore[arg-type]
    talk.expect("> ")
    talk.type("wait\n")
    assert Path(fifo).read_text() == "begun"
    talk.type(CTRL_C)
    talk.expect("> ")
    talk.type("go on\n")
    talk.expect("SAID go on\r\n")
    talk.expect("> ")
    talk.type(CTRL_D)
    assert talk.wait() == 0
    assert loom.left() == []


def test_ctrl_c_at_the_prompt_only_begins_a_new_line(terminal: type[Terminal]) -> None:
    talk = terminal("agent", "start", "x", "--model", "builtin/echo")  # type: ignore[arg-type]
    talk.expect("> ")
    talk.type("forget th")
    talk.expect("forget th")  # the line editor has begun to read
    talk.press_until(CTRL_C, "> ")
    talk.type("hello\n")
    talk.expect("hello\r\nhello\r\n")
    talk.expect("> ")
    talk.type(CTRL_D)
    assert talk.wait() == 0


def test_an_error_ends_a_turn_and_not_the_conversation(loom: Loom, terminal: type[Terminal]) -> None:
    model = loom.script({"match": "bad", "error": "context_overflow", "message": "too long"}, {"text": "fine"})
    talk = terminal("agent", "start", "x", "--model", model, "--thread", "t")  # type: ignore[arg-type]
    talk.expect("> ")
    talk.type("bad\n")
    talk.expect("loom: too long")
    talk.expect("> ")
    talk.type("good\n")
    talk.expect("fine\r\n")
    talk.expect("> ")
    talk.type(CTRL_D)
    assert talk.wait() == 0


def test_what_cannot_work_is_said_before_anybody_types(terminal: type[Terminal]) -> None:
    talk = terminal("agent", "start", "x", "--model", "openai/m")  # type: ignore[arg-type]
    talk.expect("loom secret set openai")
    assert talk.wait() == 78


EVIL = "a\x1b]0;title\x07b\x1b[31mc\x9bd\u202ee\u2066f\U000e0041g\rh\tok"


def test_a_terminal_gets_no_control_characters_of_a_model(loom: Loom, terminal: type[Terminal]) -> None:
    talk = terminal("agent", "start", "x", "--model", loom.script({"text": EVIL}), "--prompt", "hi")  # type: ignore[arg-type]
    assert talk.expect("\r\n").endswith("a]0;titleb[31mcdefgh\tok")
    assert talk.wait() == 0


def test_a_secret_is_typed_unseen(loom: Loom, terminal: type[Terminal]) -> None:
    typed = terminal("secret", "set", "openai")  # type: ignore[arg-type]
    typed.expect("(not shown): ")
    typed.type("sk-very-secret\n")
    assert "sk-very" not in typed.expect("is stored")
    assert typed.wait() == 0
    assert (loom.home / "secrets/openai").read_text() == "sk-very-secret\n"


def test_nothing_to_send_from_a_terminal_is_a_usage_error(loom: Loom, terminal: type[Terminal]) -> None:
    loom("agent", "start", "x", "--model", "builtin/echo", "--prompt", "hi")
    sends = terminal("send", "x")  # type: ignore[arg-type]
    sends.expect("nothing to send")
    assert sends.wait() == 2


def test_a_table_fits_a_terminal_and_a_pipe_gets_all_of_it(loom: Loom, terminal: type[Terminal]) -> None:
    long = "ollama/" + "m" * 300
    loom.make_home()
    agents.create(Home(loom.home), AgentSpec(name="worker", model=long), "", "down")
    shown = terminal("agent", "ps", "-a")  # type: ignore[arg-type]
    lines = shown.expect("mm…")
    assert max(map(len, lines.split("\r\n"))) <= COLUMNS and "worker" in lines
    shown.expect("\r\n")
    assert shown.wait() == 0
    assert long in loom("agent", "ps", "-a").out
