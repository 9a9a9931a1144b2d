"""The model of the protocol, explored: no rule is broken, and each known mistake is found.

`make test` goes through small worlds with one kill, `make crash` through larger ones with two. What the properties
are: model_worlds.py; what the model leaves out: model_programs.py.
"""

from __future__ import annotations

import model_worlds as worlds
import pytest
import results
from model_checker import Found, World, explore

BOUNDED = [
    worlds.pipeline(1),
    worlds.clients(0, "one", "other"),
    worlds.failing(1, "retry"),
    worlds.failing(0, "mv", "retry"),
    worlds.two_workers(1),
    worlds.poison(3),
    worlds.collected(1),
    worlds.collected(0, "fails once", "mv"),
    worlds.collected_downstream(1),
    worlds.goals(1, "c"),
]
WHOLE = [
    worlds.pipeline(1),
    worlds.clients(1, "one", "other"),
    worlds.failing(1, "retry"),
    worlds.failing(1, "mv", "retry"),
    worlds.two_workers(2),
    worlds.poison(3),
    worlds.collected(2),
    worlds.collected(1, "fails once", "mv"),
    worlds.collected_downstream(1),
    worlds.goals(2, "c"),
]


@pytest.mark.parametrize("world", BOUNDED, ids=lambda world: world.name)
def test_no_interleaving_and_no_kill_breaks_a_rule(world: World):
    found = explore(world)
    assert not found.wrong, found.text()


@pytest.mark.parametrize("fault", worlds.FAULTS)
def test_a_known_mistake_is_found(fault: str):
    make, broken = worlds.FAULTS[fault]
    found = explore(worlds.with_fault(make(), fault))
    assert broken in found.wrong, f"nobody noticed: {found.text()}"
    assert found.trace


@pytest.mark.parametrize(
    "world",
    [worlds.failing(0, "mv", "retry"), worlds.two_workers(0), worlds.goals(1, "c"), worlds.collected(0)],
    ids=lambda world: world.name,
)
def test_the_reduction_loses_no_ending(world: World):
    reduced, whole = explore(world), explore(world, reduced=False)
    assert not whole.wrong, whole.text()
    assert reduced.endings == whole.endings
    assert reduced.states < whole.states


@pytest.mark.full
@pytest.mark.timeout(1200)
def test_the_whole_model():
    found: list[Found] = []
    for world in WHOLE:
        found.append(explore(world))
        print(found[-1].text())
        assert not found[-1].wrong, found[-1].text()
    faults = [explore(worlds.with_fault(make(), fault)) for fault, (make, _) in worlds.FAULTS.items()]
    for each in faults:
        print(each.text().splitlines()[0], "·", each.wrong[:80], f"· after {len(each.trace)} steps")
        assert each.wrong
    results.note(
        "protocol model",
        "exhaustive",
        worlds=len(found),
        states=sum(f.states for f in found),
        transitions=sum(f.steps for f in found),
        mistakes_found=f"{len(faults)} of {len(worlds.FAULTS)}",
        longest_trace=max(len(f.trace) for f in faults),
        seconds=sum(f.seconds for f in (*found, *faults)),
    )
