"""Records behave like frozen, slotted dataclasses: compared with those, which are the independent peer."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loom.wire.record import compile_all, field, record, replace


@record
class Point:
    """A point."""

    x: int
    y: int = 0
    tags: tuple[str, ...] = ()
    rest: Mapping[str, Any] = field(default_factory=dict)

    @property
    def sum(self) -> int:
        return self.x + self.y


@record
class Named(Point):
    name: str = ""


@record(frozen=False)
class Counter:
    n: int = 0
    seen: list[int] = field(default_factory=list)


@record
class Secret:
    where: str
    key: str = field(default="", repr=False)


@dataclasses.dataclass(frozen=True, slots=True)
class Peer:
    x: int
    y: int = 0
    tags: tuple[str, ...] = ()
    rest: Mapping[str, Any] = dataclasses.field(default_factory=dict)


VALUES = st.tuples(st.integers(), st.integers(), st.lists(st.text(max_size=3), max_size=3).map(tuple))


@given(VALUES, VALUES)
def test_equality_repr_and_replace_are_those_of_a_dataclass(one, other):
    a, b, pa, pb = Point(*one), Point(*other), Peer(*one), Peer(*other)
    assert (a == b) == (pa == pb)
    assert repr(a) == repr(pa).replace("Peer", "Point")
    assert dataclasses.asdict(a) == dataclasses.asdict(pa)
    changed = dataclasses.replace(a, y=other[1])
    assert replace(a, y=other[1]) == changed
    assert dataclasses.asdict(changed) == dataclasses.asdict(dataclasses.replace(pa, y=other[1]))
    assert [f.name for f in dataclasses.fields(a)] == [f.name for f in dataclasses.fields(pa)]


@given(st.integers(), st.text())
def test_equal_records_have_equal_hashes(x, name):
    @record
    class Pair:
        x: int
        name: str

    assert hash(Pair(x, name)) == hash(Pair(x, name))
    assert {Pair(x, name)} == {Pair(x, name)}


def test_defaults_are_made_anew_where_they_are_fresh():
    assert Point(1).rest == {} and Point(1).rest is not Point(1).rest
    assert Point(1, rest={"a": 1}).rest == {"a": 1}


def test_fields_cannot_be_changed_and_there_are_no_others():
    point = Point(1)
    with pytest.raises(AttributeError, match=r"Point\.x cannot be changed"):
        point.x = 2  # type: ignore[misc]
    with pytest.raises(AttributeError):
        del point.x
    with pytest.raises(AttributeError):
        point.z = 2  # type: ignore[attr-defined]
    assert not hasattr(point, "__dict__")


def test_a_mutable_one_can_be_changed_and_has_no_hash():
    counter = Counter()
    counter.n += 1
    counter.seen.append(1)
    assert counter == Counter(1, [1]) and Counter().seen == []
    with pytest.raises(TypeError):
        hash(counter)
    with pytest.raises(AttributeError):
        counter.other = 1  # type: ignore[attr-defined]


@pytest.mark.parametrize("args, kwargs", [((), {}), ((1, 2, (), {}, 5), {}), ((1,), {"z": 1}), ((1,), {"x": 1})])
def test_wrong_arguments_are_refused_as_a_function_refuses_them(args, kwargs):
    with pytest.raises(TypeError, match="__init__"):
        Point(*args, **kwargs)
    with pytest.raises(TypeError):
        Peer(*args, **kwargs)


def test_one_that_follows_another_begins_with_its_fields():
    named = Named(1, 2, name="n")
    assert (named.x, named.sum, named.name) == (1, 3, "n")
    assert repr(named) == "Named(x=1, y=2, tags=(), rest={}, name='n')"
    assert named != Point(1, 2)


def test_what_is_hidden_is_in_no_repr():
    assert repr(Secret("here", "sk-1")) == "Secret(where='here')"
    assert Secret("here", "a") != Secret("here", "b")
    assert dataclasses.replace(Secret("here", "a"), where="there").key == "a"


def test_records_match_by_position():
    match Point(1, 2):
        case Point(x, y):
            assert (x, y) == (1, 2)


@pytest.mark.parametrize("value", [Point(1, 2, ("a",)), Named(1, name="n"), Counter(3, [1])])
def test_copies_and_pickles_are_equal(value):
    assert copy.copy(value) == copy.deepcopy(value) == pickle.loads(pickle.dumps(value)) == value


def test_a_field_without_a_default_may_not_follow_one_with():
    with pytest.raises(TypeError, match="'b' without a default follows 'a'"):

        @record
        class Wrong:
            a: int = 0
            b: int  # type: ignore[misc]


def test_defining_one_does_not_import_dataclasses():
    import subprocess
    import sys

    code = "from loom.wire.record import record\n@record\nclass A:\n    a: int = 1\nA(2)\nimport sys\n"
    done = subprocess.run([sys.executable, "-c", code + "print('dataclasses' in sys.modules)"], capture_output=True)
    assert done.stdout.strip() == b"False"


def test_compiling_all_leaves_nothing_for_the_first_instance():
    @record
    class Later:
        a: int
        b: tuple[int, ...] = ()

    first = Later.__init__
    compile_all()
    compiled = Later.__init__
    assert compiled is not first and Later(1) == Later(1, ()) and Later.__init__ is compiled
