"""Which nodes train for us, and whose core is next; what is kept of states that lie elsewhere."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from executors import ENGINE, PLAN, after, begin

from ml_trainer_env.server.runtime.ray import nodes as nodes_module
from ml_trainer_env.server.runtime.ray.kept import KeptElsewhere
from ml_trainer_env.server.runtime.ray.nodes import PREFIX, Nodes, label

OURS, THEIRS = label(ENGINE), label(replace(ENGINE, fingerprint="another"))


def node(id: str, named: str | None = OURS, cores: float = 1, alive: bool = True) -> dict[str, Any]:
    """As `ray.nodes()` has it."""
    resources = {"CPU": 4.0, "memory": 1e9} | ({named: cores} if named else {})
    return {"NodeID": id, "Alive": alive, "Resources": resources}


def test_a_label_is_of_the_whole_engine() -> None:
    assert OURS.startswith(PREFIX)
    assert label(replace(ENGINE, state_bytes={"mlp": 1})) == OURS  # nothing that changes a bit
    assert len({OURS, THEIRS, label(replace(ENGINE, cluster="another"))}) == 3


def test_the_engine_with_the_most_cores_is_used_and_stays() -> None:
    async def seen() -> None:
        nodes = Nodes()
        await nodes.see([node("a", THEIRS), node("b", cores=2), node("c", None), node("d", THEIRS)])
        assert nodes.label in (OURS, THEIRS)  # two cores each
        nodes = Nodes()
        await nodes.see([node("a", THEIRS), node("b", cores=2), node("c", None)])
        assert (nodes.label, nodes.cores, nodes.narrowest, nodes.others) == (OURS, 2, 2, 2)
        assert nodes.foreign == (THEIRS,)
        gone = await nodes.see([node("a", THEIRS, cores=9), node("b", alive=False), node("e")])
        assert gone == {"b"}
        assert (nodes.label, nodes.cores, nodes.others) == (OURS, 1, 1)

    asyncio.run(seen())


def test_the_node_with_the_most_to_spare_is_next_and_none_is_overbooked() -> None:
    async def taken() -> None:
        nodes = Nodes()
        await nodes.see([node("a", cores=1), node("b", cores=3)])
        ids = [(await nodes.take()).id for _ in range(4)]
        assert sorted(ids) == ["a", "b", "b", "b"]
        assert ids[0] == "b"
        waiting = asyncio.create_task(nodes.take())
        await asyncio.sleep(0)
        assert not waiting.done()
        await nodes.see([node("a", cores=1), node("b", cores=3), node("c")])
        assert (await waiting).id == "c"

    asyncio.run(taken())


def test_most_cores_in_all() -> None:
    async def seen() -> None:
        nodes = Nodes(most=2)
        await nodes.see([node("a", cores=4)])
        assert nodes.cores == 2

    asyncio.run(seen())


def test_a_node_that_lost_an_actor_is_left_alone_for_a_while(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def lost() -> None:
        nodes = Nodes()
        await nodes.see([node("a", cores=9), node("b")])
        first = await nodes.take()
        assert first.id == "a"
        await nodes.give_back(first, lost=True)
        assert (await nodes.take()).id == "b"
        waiting = asyncio.create_task(nodes.take())
        await asyncio.sleep(0)
        assert not waiting.done()
        first.until = 0.0  # it has passed
        await nodes.see([node("a", cores=9), node("b")])
        assert (await waiting).id == "a"

    asyncio.run(lost())


def test_a_closed_node_never_comes_back() -> None:
    async def closed() -> None:
        nodes = Nodes()
        await nodes.see([node("a"), node("b")])
        taken = await nodes.take()
        nodes.close(taken)
        await nodes.give_back(taken, lost=True)
        await nodes.see([node("a"), node("b")])
        assert taken.id not in nodes.here
        assert (nodes.cores, nodes.others) == (1, 1)

    asyncio.run(closed())


def test_a_claim_leaves_room_for_other_servers() -> None:
    assert 1 / nodes_module.CLAIM == 16


# What is kept ------------------------------------------------------------------------------------


def test_the_nearest_state_is_the_latest_that_is_kept() -> None:
    told: list[str] = []
    kept, run = KeptElsewhere(100, told.extend), after(begin(), [PLAN] * 4)
    keys = run.keys()
    assert kept.nearest(run).key is None
    kept.put(keys[1], 10, None)
    kept.put(keys[3], 10, None)
    assert (kept.nearest(run).epoch, kept.nearest(run).key) == (3, keys[3])
    kept.remove(keys[3])
    assert (kept.nearest(run).epoch, kept.nearest(run).key) == (1, keys[1])
    assert told == [keys[3]]
    assert kept.nearest(after(begin(1), [PLAN])).key is None


def test_the_budget_is_kept_and_what_was_left_behind_goes_first() -> None:
    told: list[str] = []
    kept = KeptElsewhere(30, told.extend)
    for key in "abc":
        kept.put(key, 10, None)
    kept.put("d", 10, None, left="c")
    assert told == ["c"]
    kept.put("d", 10, None)  # the same again
    assert (kept.used, len(kept)) == (30, 3)
    kept.put("e", 31, None)
    assert kept.used <= 30
    kept.close()
    assert (kept.used, len(kept)) == (0, 0)
