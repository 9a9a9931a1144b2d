"""config.yml: what people write in it, the mistakes they make, and where each value comes from."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from loom.spool.config import load
from loom.spool.layout import Home
from loom.wire.errors import Config
from loom.wire.settings import defaults


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


def write(home: Home, text: str | bytes) -> None:
    home.config.write_bytes(text if isinstance(text, bytes) else text.encode())


def test_without_a_file_everything_is_as_the_table_says(home: Home):
    assert dict(load(home, {}).values) == defaults()
    for text in ("", "# nothing\n", "---\n", "pools:\n#  executor: 9\n", "goal: {}\nproviders: ~\n"):
        write(home, text)
        assert dict(load(home, {}).values) == defaults()


def test_values_know_where_they_come_from(home: Home):
    write(home, "model: a\n\npools:\n  executor: 9\n  idle: 5\ngoal.max_replans: 0\n")
    found = load(home, {"LOOM_MODEL": "b", "LOOM_DEFAULT_PROVIDER": ""})
    assert (found["model"], found.origin["model"]) == ("b", "LOOM_MODEL")
    assert (found["pools.executor"], found.origin["pools.executor"]) == (9, f"{home.config}:4")
    assert (found["goal.max_replans"], found["pools.idle"]) == (0, 5)
    assert "gates" not in found.origin and found.get("providers.x.key") is None


def test_aliases_and_anchors_are_allowed(home: Home):
    write(home, "providers:\n  a: &x {base_url: u, key_command: [c, d]}\n  b: *x\n")
    found = load(home, {})
    assert found["providers.b.base_url"] == "u" and found["providers.b.key_command"] == ("c", "d")


@pytest.mark.parametrize("text, words", [
    ("model: [", ":1: not valid YAML"), ("a\n b: c\n", ":2: not valid YAML"), ("- a\n", ":1: expected `key: value`"),
    ("text", ":1: expected `key: value`"), ("\xff", "special characters|not UTF-8|expected"),
    ('model: "\\UFFFFFFFF"', "not valid YAML"), ("model: *ghost", ":1: not valid YAML: found undefined alias"),
    ("a: 1\n---\nb: 2\n", ":2: not valid YAML"),
    ("\nmodel: 7\n", ":2: model is 7, expected a str"), ("model: 2024-01-01", ":1: model is datetime"),
    ("model: 2024-99-99", ":1: model cannot be read"), ("model: !!int x", ":1: model cannot be read"),
    ("model: !!int ''", ":1: model cannot be read"), ("model: !!bool x", ":1: model cannot be read"),
    ('model: "a\\ud800"', ":1: model cannot be read: .* half a surrogate pair"),
    (f"pools: {{executor: 0x{'f' * 5000}}}", ":1: pools.executor cannot be read: a number has more than 256 bits"),
    ("model: !!timestamp x", ":1: model cannot be read"), ("model: !!python/object:os.system x", ":1: model cannot be"),
    ("pools:\n  executor: many\n", ":2: pools.executor is 'many', expected a int of at least 1"),
    ("pools:\n  executor: 0\n", ":2: pools.executor is 0"),
    ("goal:\n  order_timeout: .inf\n", ":2: goal.order_timeout"),
    ("pool:\n  executor: 1\n", ":1: there is no setting 'pool'"), ("modle: x\n", ":1: there is no setting 'modle'"),
    ("model:\n  planner: x\n", ":1: model is a mapping, expected one value"),
    ("models: x\n", ":1: there is no setting 'models'"),
    ("model: a\nmodel: b\n", ":2: model is set twice, first in .*:1"),
    ("pools:\n  executor: 1\npools.executor: 2\n", ":3: pools.executor is set twice, first in .*:2"),
    ("1: x\n", ":1: there is no setting '1'"), ("? [a, b]\n: x\n", ":1: a key must be a word"),
    ("true: x\n", ":1: there is no setting 'true'"), ("<<: {model: x}\n", ":1: there is no setting '<<'"),
    ("gates: human\n", ":1: gates is 'human'"), ("providers:\n  a:\n    b:\n      c: 1\n", ":3: there is no setting"),
])  # fmt: skip
def test_a_mistake_is_told_with_file_and_line(home: Home, text: str, words: str):
    write(home, text)
    with pytest.raises(Config, match=words) as told:
        load(home, {})
    assert str(home.config) in str(told.value) and len(str(told.value)) < 600


def test_bytes_that_are_no_text_and_files_that_are_no_files_are_told(home: Home):
    write(home, b"model: \xff")
    with pytest.raises(Config, match="not UTF-8 at byte 7"):
        load(home, {})
    write(home, b"#" * (1 << 20) + b"#")
    with pytest.raises(Config, match="cannot be read: more than"):
        load(home, {})
    home.config.unlink()
    home.config.mkdir()
    with pytest.raises(Config, match="not a regular file but a directory"):
        load(home, {})


LAUGHS = "a0: &a0 {x: y}\n" + "".join(
    f"a{n}: &a{n} {{{', '.join(f'k{m}: *a{n - 1}' for m in range(9))}}}\n" for n in range(1, 12)
)


@pytest.mark.parametrize("text", [
    f"providers: {{{LAUGHS.splitlines()[0][4:]}}}\n{LAUGHS}",
    LAUGHS,
    "models: &m\n  tiers: *m\n",
    "providers: &p {a: *p}\n",
    "&x\nproviders: *x\n",
    "model: &a [x, *a]\n",
    "model: [" + "[" * 5000,
    "model: " + "\n" + "".join(" " * n + "a:\n" for n in range(1, 1000)),
    "x: &a [1,1,1,1,1,1,1,1]\ny: &b [*a,*a,*a,*a,*a,*a,*a,*a]\nz: &c [*b,*b,*b,*b,*b,*b,*b,*b]\n"
    "model: [[*c,*c,*c,*c,*c,*c,*c,*c],[*c,*c,*c,*c,*c,*c,*c,*c]]\n",
])  # fmt: skip
def test_a_file_that_holds_itself_or_laughs_is_refused_at_once(home: Home, text: str):
    write(home, text)
    began = time.process_time()
    with pytest.raises(Config) as told:
        load(home, {})
    assert time.process_time() - began < 5 and len(str(told.value)) < 1000


@given(st.text(alphabet="model:pos{}[]&*!|>\"'\n -#%?~1.é<", max_size=40) | st.text(max_size=30))
@settings(
    max_examples=200, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_text_is_a_configuration_or_refused(home: Home, text: str):
    try:
        data = text.encode()
    except UnicodeEncodeError:
        return
    write(home, data)
    try:
        found = load(home, {})
    except Config as error:
        assert str(home.config) in str(error)
    else:
        assert set(found.origin) <= set(found.values)


def test_other_bytes_are_read_anew_and_the_same_are_not_parsed_again(home: Home, monkeypatch: pytest.MonkeyPatch):
    write(home, "model: one")
    assert load(home, {})["model"] == "one"
    write(home, "model: two")
    assert load(home, {})["model"] == "two"
    monkeypatch.setitem(sys.modules, "yaml", None)  # importing it fails from here on
    assert load(home, {})["model"] == "two"
    write(home, "model: one")
    with pytest.raises(ImportError):
        load(home, {})
