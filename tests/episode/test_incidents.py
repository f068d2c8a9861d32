"""The instances of the cluster: drawn by their ids, held out, recoverable; and their grades."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ml_trainer_env import frozen
from ml_trainer_env.cluster_status import ClusterConfig
from ml_trainer_env.events import Restore
from ml_trainer_env.server import counterfactuals, incidents
from ml_trainer_env.server.cluster.checks import Facts, check
from ml_trainer_env.server.counterfactuals import Counterfactuals, healthy_steps
from ml_trainer_env.server.episode.seen import config
from ml_trainer_env.server.incidents import BLOCK, FAULTS, QUIET, TROUBLES, incident
from ml_trainer_env.server.instances import task_of
from ml_trainer_env.server.validation import InvalidArguments
from ml_trainer_env.server.worlds import BadBatches
from ml_trainer_env.task_ids import CLUSTER, SPLITS, InstanceId, Split, instances

FEWEST_FAULTS = 10
LOSSES = st.floats(1.2, 20)
STEPS = st.floats(0, 900)


def drawn(split: Split) -> list[incidents.Incident]:
    return [incident(of) for of in instances(CLUSTER, split)]


def test_every_twenty_instances_have_the_same_shares_in_an_order_of_their_own() -> None:
    for split in SPLITS:
        kinds = [each.kind for each in drawn(split)]
        blocks = [kinds[n : n + len(BLOCK)] for n in range(0, len(kinds), len(BLOCK))]
        assert all(sorted(block) == sorted(BLOCK) for block in blocks)
        assert len({tuple(block) for block in blocks}) == len(blocks)


def test_there_are_ten_faults_at_least_and_all_of_them_are_met() -> None:
    assert len(FAULTS) >= FEWEST_FAULTS
    found = (each for split in SPLITS for each in drawn(split))
    assert {name for each in found for name in each.names} == {*FAULTS, *QUIET}


def test_what_is_held_out_is_in_half_of_eval_and_nowhere_else() -> None:
    ordinary = [*drawn("train"), *drawn("validation"), *drawn("eval")[:40]]
    apart = drawn("eval")[40:]
    assert {each.world.ranks for each in ordinary} == {4}
    assert [each.world.ranks for each in apart] == [8] * 20 + [4] * 20
    pairs = {each.names for each in (*drawn("train"), *drawn("validation")) if each.kind == "pair"}
    others = {each.names for each in drawn("eval") if each.kind == "pair"}
    assert pairs
    assert others
    assert not pairs & others


def test_no_two_instances_are_the_same_world_and_another_candidate_is_another() -> None:
    found = [each.world for split in SPLITS for each in drawn(split)]
    assert len({world.name for world in found}) == len(found)
    of = InstanceId(CLUSTER, "train", 7)
    assert incident(of) == incident(of)
    assert incident(of, 1).world != incident(of).world


@pytest.mark.parametrize("name", TROUBLES)
@pytest.mark.parametrize("beyond", [False, True])
@pytest.mark.parametrize("ranks", [4, 8])
def test_a_remedy_is_possible_and_comes_after_the_onset(
    name: str, beyond: bool, ranks: int
) -> None:
    of = incidents.made(f"tests {name}", "fault", (name,), ranks, beyond)
    assert 0.35 * of.world.deadline < of.onsets[0] < 0.65 * of.world.deadline
    facts = Facts(of.onsets[0], checkpoints=tuple(range(0, 600, 50)))
    assert bool(of.remedies) == (name in FAULTS)
    for remedy in of.remedies:
        for scheduled in remedy:
            assert of.onsets[0] < scheduled.since < of.world.deadline
            for event in scheduled.does:
                if not isinstance(event, incidents.Settings):
                    assert check(of.world, facts, event) is None


def test_who_goes_back_before_bad_batches_skips_all_of_them_and_no_more() -> None:
    for number in range(20):
        of = incidents.made(f"tests {number}", "fault", ("bad batches",), beyond=number % 2 == 1)
        (bad,), ((scheduled,),) = of.world.faults, of.remedies
        (back,) = scheduled.does
        assert isinstance(bad, BadBatches)
        assert isinstance(back, Restore)
        assert back.step <= bad.position
        assert back.step + back.skip_batches == bad.position + bad.count


# The grade ----------------------------------------------------------------------------------------


def test_the_healthy_runs_were_the_better_the_later_their_deadline() -> None:
    assert counterfactuals.rising(frozen.healthy())
    curve = frozen.healthy()
    for steps, loss in zip(curve.steps, curve.losses, strict=True):
        assert healthy_steps(loss) == pytest.approx(steps)


@given(LOSSES, LOSSES)
def test_a_lower_loss_is_worth_more_steps(one: float, other: float) -> None:
    lower, higher = sorted((one, other))
    assert healthy_steps(lower) >= healthy_steps(higher) >= 0


@given(STEPS, st.lists(STEPS, max_size=3), STEPS, STEPS)
def test_a_score_is_in_bounds_and_never_falls_with_what_a_model_is_worth(
    nothing: float, remedies: list[float], one: float, other: float
) -> None:
    found = Counterfactuals(nothing, tuple(remedies))
    worse, better = sorted((one, other))
    assert 0 <= found.score(worse) <= found.score(better) <= 1


def test_doing_nothing_recovers_nothing_the_best_everything_and_restraint_is_whole() -> None:
    found = Counterfactuals(400.0, (550.0, 300.0))
    assert found.worth == "actionable"
    assert (found.score(400), found.score(550), found.score(475)) == (0, 1, 0.5)
    quiet = Counterfactuals(590.0, ())
    assert quiet.worth == "quiet"
    assert quiet.score(590) == quiet.score(700) == 1
    assert quiet.score(590 - 200) == 0
    spread = frozen.healthy().spread
    for lost, score in ((spread, 1), (spread + 15, 0.75), (spread + 30, 0.5), (spread + 60, 0)):
        assert quiet.score(590 - lost) == pytest.approx(score)
    between = Counterfactuals(500.0, (510.0,))
    assert between.worth is None


def test_what_a_cluster_is_configured_with_is_what_its_tool_says() -> None:
    assert ClusterConfig() == config(incidents.BASE)


# The tables ---------------------------------------------------------------------------------------


def test_every_released_instance_keeps_what_its_kind_promises() -> None:
    assert frozen.forks()
    for (split, index), line in frozen.forks().items():
        of = InstanceId(CLUSTER, split, index)
        found, known = incident(of, line.candidate), counterfactuals.known(line)
        assert known.worth == ("quiet" if found.kind in ("healthy", "quiet") else "actionable")
        assert len(line.remedies) == len(found.remedies)
        assert bool(line.best) == (known.gain > 0)
        task = task_of(str(of))
        assert task.cluster
        assert task.cluster.counterfactuals == known
        assert not any(name in task.goal for name in found.names)


def test_what_is_not_released_is_refused() -> None:
    missing = [
        of
        for split in SPLITS
        for of in instances(CLUSTER, split)
        if (of.split, of.index) not in frozen.forks()
    ]
    for of in missing[:1]:
        with pytest.raises(InvalidArguments, match="is not released"):
            task_of(str(of))


def test_the_curves_go_on_to_the_deadline() -> None:
    for (split, index), line in frozen.forks().items():
        deadline = incident(InstanceId(CLUSTER, split, index), line.candidate).world.deadline
        for curve in (line.curve, line.best_curve):
            assert all(a.seconds <= b.seconds for a, b in pairwise(curve))
            assert not curve or curve[-1].seconds >= int(deadline)
