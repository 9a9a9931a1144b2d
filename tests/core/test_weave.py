"""loom.yml: what it means, and that whatever is wrong is said with its line and the nearest right word."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from loom.core import schema, weave_schema
from loom.core.routing import circle, end_of
from loom.core.weave import Change, Foreign, Standing, changes, foreign, parse, parse_operators
from loom.core.weave_settings import joined
from loom.wire.agent import AgentLimits, Restart
from loom.wire.errors import Config
from loom.wire.settings import Override
from loom.wire.weave import PARAMETERS, Operator, Route, Weave

ENV = {"HOME": "/home/me", "EMPTY": "", "BYTES": "\udcff"}
HEAD = "version: 1\nagents:\n"


def read(text: str, **env: str) -> Weave:
    return parse(text, "loom.yml", "project", {**ENV, **env})


def agents(*lines: str, head: str = HEAD) -> Weave:
    return read(head + "".join(f"  - {line}\n" for line in lines))


# -- what it means -----------------------------------------------------------------------------------------------

WHOLE = """\
version: 1
name: triage
home: .loom
settings:
  model: builtin/echo
  pools: {executor: 2}
  providers: {lab: {base_url: "http://lab/v1", key_command: [cat, key], price: {input: 1.5}}}
  goal:
gc: {retention: {messages: 36h, logs: 365d, dedupe_keys: 500}}
pipes:
  items: [{operator: command, cmd: 'jq -c .items[]'}, {operator: window, size: 5, timeout: 30s}]
agents:
  - name: splitter
    model: builtin/echo
    system: Split it.
    env: {PLACE: "${HOME}/x", OTHER: "${NOT_THERE:-none}", EMPTY: "a${EMPTY}b", N: 3}
    tools: [read-file]
    memory: {style: Be short.}
    limits: {memory: 512M, cpu: 1h, files: 64, processes: 8, disk: 1G}
    restart: {policy: on-failure, base: 500ms, max: 5m, limit: 3, window: 1h}
  - {name: worker, model: builtin/echo, replicas: 2, scale: to-zero, restart: never,
     from: [{agent: splitter, pipe: items}]}
  - {name: sink, model: builtin/echo, from: [{agent: worker}, {agent: splitter}]}
"""


def test_a_variable_is_what_the_file_says_whatever_yaml_makes_of_it() -> None:
    words = {"ZIP": "01234", "V": "1.10", "MODE": "0644", "T": "12:30:00", "HEX": "0x1F", "QUOTED": "7"}
    env = ", ".join(f"{name}: {word!r}" if name == "QUOTED" else f"{name}: {word}" for name, word in words.items())
    assert read(HEAD + f"  - {{name: a, model: m, env: {{{env}}}}}\n").agents[0].env == words


def test_a_whole_file():
    weave = read(WHOLE)
    assert (weave.name, weave.home) == ("triage", ".loom")
    assert [a.name for a in weave.agents] == ["splitter", "worker-1", "worker-2", "sink"]
    splitter, worker = weave.agents[0], weave.agents[1]
    assert splitter.env == {"PLACE": "/home/me/x", "OTHER": "none", "EMPTY": "ab", "N": "3"}
    assert splitter.memory == {"style.md": "Be short."}
    assert splitter.limits == AgentLimits(512 << 20, 3600.0, 64, 8, 1 << 30)
    assert splitter.restart == Restart("on-failure", 0.5, 300.0, 3, 3600.0)
    assert (worker.block, worker.scale, worker.restart.policy) == ("worker", "to-zero", "never")
    command, window = weave.pipes["items"]
    assert command == Operator("command", {"cmd": "jq -c .items[]", "timeout_s": 30.0})
    assert window == Operator("window", {"size": 5, "timeout_s": 30.0})


def test_settings_are_those_of_the_table_and_know_their_line():
    assert [(one.key, one.value, one.line) for one in read(WHOLE).overrides] == [
        ("model", "builtin/echo", 5),
        ("pools.executor", 2, 6),
        ("providers.lab.base_url", "http://lab/v1", 7),
        ("providers.lab.key_command", ("cat", "key"), 7),
        ("providers.lab.price.input", 1.5, 7),
        ("retention.messages", 1.5, 9),
        ("retention.logs", 365.0, 9),
        ("retention.dedupe_keys", 500, 9),
    ]


def test_routes_are_declared_by_the_receiver_and_replicas_counted_out():
    routes = read(WHOLE).routes
    assert [(r.source, r.pipe, r.to, r.of, r.share) for r in routes] == [
        ("splitter", "items", "worker-1", "", "worker"),
        ("splitter", "items", "worker-2", "", "worker"),
        ("worker-1", "", "sink", "worker", ""),
        ("worker-2", "", "sink", "worker", ""),
        ("splitter", "", "sink", "", ""),
    ]
    assert {end_of(r) for r in routes[:2]} == {"items~splitter→worker"}


def test_one_replica_can_be_named_and_agents_may_come_in_any_order():
    weave = agents("{name: a, model: m, from: [{agent: w-2}]}", "{name: w, model: m, replicas: 2}")
    assert weave.routes == (Route("w-2", "a", weave="project"),)


# -- what is refused -----------------------------------------------------------------------------------------------

A = "{name: a, model: m}"
TOP = "version: 1\nagents: []\n"


@pytest.mark.parametrize("text, line, words", [
    ("", 1, "expected `key: value`"),
    ("- a\n", 1, "expected `key: value`"),
    ("a: [\n", 2, "not valid YAML"),
    ("a: *b\n", 1, "not valid YAML: found undefined alias"),
    ("agents: []\n", 1, "no 'version'"),
    ("version: 2\nagents: []\n", 1, "version is 2, expected 1"),
    ("version: !!timestamp x\nagents: []\n", 1, "'x' cannot be read as timestamp"),
    ("version: 1\nagents: !!timestamp x\n", 2, "'x' cannot be read as timestamp"),
    (f"version: 0x{'f' * 5000}\nagents: []\n", 1, "a number has more than 256 bits"),
    ('version: 1\nsettings: {model: "a\\ud800"}\nagents: []\n', 2, "'a\\ud800' holds half a surrogate pair"),
    (HEAD + '  - {name: a, model: "\\udc00"}\n', 3, "'\\udc00' holds half a surrogate pair"),
    (HEAD + '  - name: a\n    model: m\n    system: "\\ud83d\\ude00"\n', 5, "holds half a surrogate pair"),
    (HEAD + '  - {name: a, model: m, workspace: "\\ud800"}\n', 3, "holds half a surrogate pair"),
    (HEAD + '  - {name: a, model: m, env: {A: "\\ud800"}}\n', 3, "holds half a surrogate pair"),
    (HEAD + '  - {name: a, model: m, env: {"\\ud800": x}}\n', 3, "the key '\\ud800' holds half a surrogate pair"),
    (HEAD + '  - {name: a, model: m, env: {A: "${BYTES}"}}\n', 3, "env: A is not UTF-8"),
    (HEAD + '  - {name: a, model: m, memory: {style: "\\ud800"}}\n', 3, "holds half a surrogate pair"),
    ("version: '1'\nagents: []\n", 1, "version is '1'"),
    ("version: 1\n", 1, "no 'agents'"),
    ("version: 1\nagent: []\n", 2, "has no key 'agent'; did you mean 'agents'?"),
    ("version: 1\nversion: 1\n", 2, "'version' is set twice, first in line 1"),
    ("version: 1\nname: Nope\nagents: []\n", 2, "'Nope' is not valid"),
    ("version: 1\nagents: {}\n", 2, "agents is a mapping, expected a list"),
    (HEAD + "  - a\n", 3, "an agent is 'a', expected a mapping"),
    (HEAD + "  - {name: a, model: m, from: [b]}\n", 3, "from: an entry is 'b', expected a mapping"),
    (HEAD + "  - {model: m}\n", 3, "no 'name'"),
    (HEAD + "  - {name: a}\n", 3, "agent 'a' has no 'model'"),
    (HEAD + "  - {name: a, model: ''}\n", 3, "model is empty"),
    (HEAD + "  - name: a\n    modle: m\n", 4, "no key 'modle'; did you mean 'model'?"),
    (HEAD + "  - {name: A, model: m}\n", 3, "'A' is not valid"),
    (HEAD + "  - {name: router, model: m}\n", 3, "reserved"),
    (HEAD + "  - {name: a~b, model: m}\n", 3, "not valid"),
    (HEAD + f"  - {A}\n  - {A}\n", 4, "two agents 'a', the first in line 3"),
    (HEAD + "  - {name: a-1, model: m}\n  - {name: a, model: m, replicas: 2}\n", 4, "two agents 'a-1'"),
    (HEAD + "  - {name: a, model: m, replicas: 0}\n", 3, "replicas is 0, expected a whole number of at least 1"),
    (HEAD + "  - {name: a, model: m, replicas: yes}\n", 3, "replicas is true"),
    (HEAD + "  - {name: " + "a" * 64 + ", model: m, replicas: 2}\n", 3, "more than 64 characters"),
    (HEAD + "  - {name: a, model: m, scale: to-zeros}\n", 3, "did you mean 'to-zero'?"),
    (HEAD + "  - {name: a, model: m, restart: allways}\n", 3, "did you mean 'always'?"),
    (HEAD + "  - {name: a, model: m, restart: {bases: 1s}}\n", 3, "no key 'bases'; did you mean 'base'?"),
    (HEAD + "  - {name: a, model: m, restart: {base: 1}}\n", 3, "base is 1, expected a duration such as 30s, 5m or 1h;"
     " write 1s for seconds"),
    (HEAD + "  - {name: a, model: m, restart: {max: 0s}}\n", 3, "expected more than 0s"),
    (HEAD + "  - {name: a, model: m, restart: {max: 1y}}\n", 3, "expected a duration"),
    (HEAD + "  - {name: a, model: m, restart: {limit: 1.5}}\n", 3, "whole number"),
    (HEAD + "  - {name: a, model: m, limits: {memory: 512}}\n", 3, "expected a size such as 512M"),
    (HEAD + "  - {name: a, model: m, limits: {memory: 31M}}\n", 3, "limits.memory is too little: at least 32768K"),
    (HEAD + "  - {name: a, model: m, limits: {cpu: 10ms}}\n", 3, "limits.cpu is too little: at least 100ms"),
    (HEAD + "  - {name: a, model: m, limits: {files: 3}}\n", 3, "files is 3, expected a whole number of at least 32"),
    (HEAD + "  - {name: a, model: m, limits: {memroy: 1G}}\n", 3, "did you mean 'memory'?"),
    (HEAD + "  - {name: a, model: m, env: {K: [1]}}\n", 3, "K is no text"),
    (HEAD + "  - {name: a, model: m, env: {K: '${NOT_THERE}'}}\n", 3, "the variable NOT_THERE is not set"),
    (HEAD + "  - {name: a, model: m, env: {K: '${}'}}\n", 3, "is no variable"),
    (HEAD + "  - {name: a, model: m, env: {LOOM_HOME: x}}\n", 3, "no variable that can be set"),
    (HEAD + "  - {name: a, model: m, memory: {../x: y}}\n", 3, "no name for a memory"),
    (HEAD + "  - {name: a, model: m, from: a}\n", 3, "from is 'a', expected a list"),
    (HEAD + "  - {name: a, model: m, from: [{pipe: p}]}\n", 3, "has no 'agent'"),
    (HEAD + "  - {name: a, model: m, from: [{agent: b, via: p}]}\n", 3, "no key 'via'"),
    (HEAD + f"  - {A}\n  - name: b\n    model: m\n    from:\n      - agent: aa\n", 7,
     "hears 'aa', which is no agent of this file; did you mean 'a'?"),
    (HEAD + f"  - {A}\n  - {{name: b, model: m, from: [{{agent: a, pipe: p}}]}}\n", 4, "'p', which is no pipe"),
    (HEAD + f"  - {A}\n  - {{name: b, model: m, from: [{{agent: a}}, {{agent: a}}]}}\n", 4, "hears 'a' twice"),
    (HEAD + "  - {name: a, model: m, from: [{agent: a}]}\n", 3, "circular route detected: a → a"),
    (HEAD + "  - {name: a, model: m, from: [{agent: c}]}\n  - {name: b, model: m, from: [{agent: a}]}\n"
     "  - {name: c, model: m, from: [{agent: b}]}\n", 5, "circular route detected: c → a → b → c"),
    ("version: 1\npipes: {a: [{operator: tap, label: x}]}\n" + HEAD[11:] + f"  - {A}\n", 4,
     "'a' is a pipe and an agent"),
    ("version: 1\npipes: {p: [{operator: tap, label: x}]}\n" + HEAD[11:] + f"  - {A}\n"
     "  - {name: b, model: m, from: [{agent: p}]}\n", 5, "'p' is a pipe; a route begins at an agent"),
    ("version: 1\npipes: {p: []}\nagents: []\n", 2, "has no operators"),
    ("version: 1\npipes: {p: [{op: tap}]}\nagents: []\n", 2, "has no 'operator'"),
    ("version: 1\npipes:\n  p:\n    - operator: windw\nagents: []\n", 4, "no operator 'windw'; did you mean 'window'?"),
    ("version: 1\npipes: {p: [{operator: window, sise: 5}]}\nagents: []\n", 2, "no key 'sise'; did you mean 'size'?"),
    ("version: 1\npipes: {p: [{operator: window}]}\nagents: []\n", 2, "operator window has no 'size'"),
    ("version: 1\npipes: {p: [{operator: window, size: 5, timeout: 30}]}\nagents: []\n", 2, "write 30s for seconds"),
    ("version: 1\npipes: {p: [{operator: tap, label: ../x}]}\nagents: []\n", 2, "expected a name of letters"),
    (TOP + "settings: [a]\n", 3, "settings is a list, expected a mapping"),
    (TOP + "settings:\n  modle: x\n", 4, "there is no setting 'modle'; did you mean 'model'?"),
    (TOP + "settings: {pools: {executor: many}}\n", 3, "pools.executor is 'many', expected a int of at least 1"),
    (TOP + "settings: {pools: 3}\n", 3, "there is no setting 'pools'"),
    (TOP + "settings: {model: {planner: x}}\n", 3, "model is a mapping, expected one value"),
    (TOP + "settings: {model: [x, {y: z}]}\n", 3, "model is ['x', {"),
    (TOP + "settings: {pools: {executor: {a: 1}}}\n", 3, "pools.executor is a mapping"),
    (TOP + "settings: {pools.executor: 1}\n", 3, "a dot is a level of indentation here"),
    (TOP + "settings: {gates: human}\n", 3, "gates is 'human'; this version knows: free"),
    (TOP + "settings: {liveness: {tool: .nan}}\n", 3, "liveness.tool is nan"),
    (TOP + "gc: 7d\n", 3, "gc is '7d', expected a mapping"),
    (TOP + "gc: {retentoin: {}}\n", 3, "gc has no key 'retentoin'; did you mean 'retention'?"),
    (TOP + "gc:\n  retention:\n    mesages: 7d\n", 5, "gc.retention has no key 'mesages'; did you mean 'messages'?"),
    (TOP + "gc: {retention: {messages: 7}}\n", 3, "gc.retention.messages is 7, expected a duration"),
    (TOP + "gc: {retention: {logs: 12h}}\n", 3, "gc.retention.logs is 12h, expected at least 1d"),
    (TOP + "gc: {retention: {dedupe_keys: 7d}}\n", 3, "gc.retention.dedupe_keys is '7d', expected a whole number"),
    (TOP + "settings: {retention: {logs: 3}}\ngc: {retention: {logs: 4d}}\n", 4,
     "retention.logs is set twice, first in line 3"),
    ("version: 1\npipes: {p: &x [*x]}\nagents: []\n", 2, "an alias makes a value hold itself"),
])  # fmt: skip
def test_what_is_wrong_is_said_with_its_line(text: str, line: int, words: str):
    with pytest.raises(Config) as told:
        read(text)
    assert words in told.value.line()
    assert told.value.line().startswith(f"loom.yml:{line}: ")


def test_a_home_directory_whose_name_cannot_name_a_weave_is_told_apart():
    with pytest.raises(Config, match="'My Files' is no name for a weave"):
        parse(HEAD + f"  - {A}\n", "loom.yml", "My Files", {})


_WORDS = ("version", "agents", "pipes", "name", "model", "from", "agent", "pipe", "operator", "size", "env", "restart")
_TREE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.sampled_from(["a", "b", "1s", "m", "window"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(_WORDS), inner, max_size=4),
    max_leaves=12,
)


@given(_TREE)
def test_whatever_stands_in_the_file_it_is_read_or_refused_with_a_line(tree: Any):
    try:
        read(yaml.safe_dump(tree))
    except Config as error:
        assert error.line().startswith("loom.yml:")


@given(st.text(max_size=60))
def test_whatever_the_text_it_is_read_or_refused(text: str):
    with pytest.raises(Config, match=r"^loom\.yml:\d+: "):
        read("\0" + text)
    try:
        read(text)
    except Config as error:
        assert error.line().startswith("loom.yml:")


_EDGES = st.lists(st.tuples(st.sampled_from("abcdef"), st.sampled_from("abcdef")), max_size=14)


@given(_EDGES)
def test_a_circle_is_found_when_there_is_one_and_is_one(edges: list[tuple[str, str]]):
    way = circle(edges)
    if way:
        assert way[0] == way[-1]
        assert set(pairwise(way)) <= set(edges)
        return
    left = set(edges)
    while ends := {edge for edge in left if edge[1] not in {source for source, _ in left}}:
        left -= ends  # what leads to an end is in no circle
    assert left == set()


# -- hashes and changes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("before, after, same", [
    (A, A, True),
    (A, "{model: m, name: a}", True),
    (A, "{name: a, model: n}", False),
    (A, "{name: a, model: m, env: {K: v}}", False),
    (A, "{name: a, model: m, system: s}", False),
    (A, "{name: a, model: m, restart: always}", True),
    (A, "{name: a, model: m, restart: never}", False),
    (A, "{name: a, model: m, limits: {files: 33}}", False),
    (A, "{name: a, model: m, scale: to-zero}", False),
])  # fmt: skip
def test_an_agent_is_another_when_anything_of_it_is(before: str, after: str, same: bool):
    assert (agents(before).agents[0].digest == agents(after).agents[0].digest) is same


@pytest.mark.parametrize("said, same", [
    ("gc: {retention: {messages: 1d}}", True), ("settings: {retention: {logs: 3}}", True), ("settings:", True),
    ("settings: {liveness: {tool: 5}}", False),
])  # fmt: skip
def test_an_agent_is_another_when_settings_are_that_it_reads(said: str, same: bool):
    before, after = agents(A), agents(A, head=f"version: 1\n{said}\nagents:\n")
    assert (before.agents[0].digest == after.agents[0].digest) is same


def test_two_weaves_may_say_the_same_of_a_setting_and_nothing_else():
    mine = (Override("model", "a", 3), Override("gates", "free", 4))
    standing = (Override("model", "a", 7, "/b.yml", "b"), Override("model", "z", 9, "/old.yml", "me"))
    assert joined(standing, mine, "me", "/me.yml", "me.yml") == (
        standing[0],
        Override("model", "a", 3, "/me.yml", "me"),
        Override("gates", "free", 4, "/me.yml", "me"),
    )
    with pytest.raises(Config) as told:
        joined(standing, (Override("model", "c", 3),), "me", "/me.yml", "me.yml")
    assert told.value.line() == (
        "me.yml:3: model is 'c' here, and the weave 'b' says 'a'; see /b.yml:7; say the same, or take the other down:"
        " loom down --name b"
    )


def test_a_route_does_not_make_an_agent_another():
    alone, heard = agents(A), agents(A, "{name: b, model: m, from: [{agent: a}]}")
    assert alone.agents[0].digest == heard.agents[0].digest


def test_only_what_changed_is_changed():
    weave = agents(A, "{name: b, model: m}", "{name: c, model: m}", "{name: d, model: m}")
    digests = {agent.name: agent.digest for agent in weave.agents}
    standing = {
        "a": Standing("project", digests["a"], True),
        "b": Standing("project", "other", True),
        "c": Standing("project", digests["c"], False),
        "old": Standing("project", "x", True),
        "older": Standing("project", "x", False),
        "foreign": Standing("other", "x", True),
    }
    assert changes(weave, standing) == [
        Change("a", "unchanged"),
        Change("b", "changed"),
        Change("c", "started"),
        Change("d", "created"),
        Change("old", "removed"),
    ]


A_EXISTS = "agent 'a' exists and"
REMOVE = "rename it here, or remove it: loom agent rm a"
DOWN = "rename it here, or take the other down"


@pytest.mark.parametrize("standing, found", [
    ({}, None),
    ({"a": Standing("project", "x", True, "/here")}, None),
    ({"a": Standing("", "", True)}, Foreign(3, f"{A_EXISTS} was not made by a weave", REMOVE)),
    ({"a": Standing("other", "x", False, "/here")}, Foreign(3, f"{A_EXISTS} belongs to the weave 'other'", REMOVE)),
    ({"z": Standing("project", "x", True, "/there")}, Foreign(1, "another weave 'project' is up, from /there", DOWN)),
    ({"z": Standing("project", "x", False, "/there")}, None),
])  # fmt: skip
def test_what_belongs_to_others_is_left_to_them(standing: dict[str, Standing], found: Foreign | None):
    assert foreign(agents(A), standing, "/here") == found


# -- operators by themselves, and the schema for editors -----------------------------------------------------------


@pytest.mark.parametrize("text", ["[{operator: tap, label: x}]", "- operator: tap\n  label: x\n"])
def test_a_chain_by_itself(text: str):
    assert parse_operators(text, "here") == [(Operator("tap", {"label": "x"}), "here:1")]


@pytest.mark.parametrize("text, line", [
    ("- operator: tap\n  labl: x\n", 2), ("[{operator: tap,\n labl: x}]", 2), ("- operator: tap\n  label: [\n", 3),
    ("-", 1),
])  # fmt: skip
def test_a_chain_by_itself_names_its_own_lines(text: str, line: int):
    with pytest.raises(Config, match=rf"^here:{line}: "):
        parse_operators(text, "here")


@pytest.mark.parametrize("text", ["", "[]", "a", "{operator: tap, label: x}"])
def test_what_is_no_chain(text: str):
    with pytest.raises(Config, match=r"^here:"):
        parse_operators(text, "here")


def test_the_schema_for_editors_is_that_of_the_tables():
    page = (Path(__file__).parents[2] / "docs" / "weave.schema.json").read_text()
    assert page == weave_schema.page()
    assert schema.faults(json.loads(page), yaml.safe_load(WHOLE)) == []
    assert set(PARAMETERS) == {"command", "tap", "window", "buffer", "dedupe", "throttle", "accumulate"}


@pytest.mark.parametrize("change", [
    {"settings": {"modle": "x"}}, {"settings": {"pools": {"executor": 0}}}, {"gc": {"retention": {"logs": 3}}},
    {"agent": []}, {"version": 2}, {"agents": [{"name": "a"}]}, {"agents": [{"name": "a", "model": "m", "x": 1}]},
    {"pipes": {"p": [{"operator": "windw"}]}}, {"agents": [{"name": "a", "model": "m", "restart": {"base": 1}}]},
])  # fmt: skip
def test_the_schema_refuses_too(change: dict[str, Any]):
    assert schema.faults(weave_schema.schema(), {"version": 1, "agents": [], **change})


def test_the_same_agent_under_another_name_has_the_same_digest():
    one = agents("{name: w, model: m, replicas: 2}").agents
    assert one[0].digest == one[1].digest
    assert replace(one[0], name="") == replace(one[1], name="")
