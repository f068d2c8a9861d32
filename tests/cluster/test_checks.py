"""Which events can be: told in a line before anything is done, from a state or from its report."""

import re
import subprocess
import sys
from dataclasses import replace

import pytest
from clusters import EVERYTHING, SETTINGS, WINDOW, play, world
from hypothesis import given, settings
from hypothesis import strategies as st

from ml_trainer_env.events import ConfigureData, ConfigureRanks, Diagnose, Restore, Train
from ml_trainer_env.server.cluster.checks import Facts, check, facts_of
from ml_trainer_env.server.cluster.training import Report, advance, start
from ml_trainer_env.server.episode.tools import (
    ConfigureDataArguments,
    ConfigureRanksArguments,
    RestoreCheckpoint,
)

ARGUMENTS = {
    Restore: RestoreCheckpoint,
    ConfigureRanks: ConfigureRanksArguments,
    ConfigureData: ConfigureDataArguments,
}  # as an agent gives them
FACTS = Facts(50.0, frozenset({1}), (10, 20))
LINES = [
    (ConfigureRanks(exclude=(4,)), "exclude: there is no rank 4; ranks are 0 to 3"),
    (ConfigureRanks(use_spare=(0, 9)), "use_spare: there is no rank 9; ranks are 0 to 3"),
    (
        ConfigureRanks(exclude=(0, 1)),
        "exclude: more than half of the 4 ranks must work, so 1 can be out at most; got 2",
    ),
    (
        ConfigureRanks(exclude=(1,), shares=(4, 4, 4, 2)),
        "shares: a number is needed for each of 3 ranks that work; got 4",
    ),
    (ConfigureRanks(shares=()), "shares: a number is needed for each of 4 ranks that work; got 0"),
    (
        ConfigureRanks(shares=(0, 4, 5, 5)),
        "shares: every rank works on one micro-shard at least; got 0",
    ),
    (
        ConfigureRanks(shares=(4, 4, 4, 3)),
        "shares: they add up to the 16 micro-shards; got 15",
    ),
    (
        ConfigureData(quarantine=(0, 1, 2, 3, 4)),
        "quarantine_shards: 4 of the 16 data shards can be out at most; got 5",
    ),
    (
        Restore(step=9),
        "step: no checkpoint up to step 9 is kept; those kept are of steps 10, 20",
    ),
]
EVENTS_THAT_CAN_BE = [
    WINDOW,
    Diagnose(what="replay"),
    ConfigureRanks(exclude=(2, 2), use_spare=(0, 1, 2, 3)),
    ConfigureRanks(exclude=(2,), shares=(1, 1, 14)),
    ConfigureData(quarantine=(0, 0, 1, 2, 15), reshuffle=True),
    Restore(step=10, skip_batches=10_000),
]


@pytest.mark.parametrize(("event", "line"), LINES)
def test_what_cannot_be_is_told_with_its_field_and_what_is_allowed(event, line):
    assert check(world(), FACTS, event) == line
    assert line.isascii()
    field = line.split(":")[0]
    assert field in ARGUMENTS[type(event)].model_fields


@pytest.mark.parametrize("event", EVENTS_THAT_CAN_BE)
def test_what_can_be_is_not_refused(event):
    assert check(world(), FACTS, event) is None


@pytest.mark.parametrize("event", [*EVENTS_THAT_CAN_BE, *(event for event, _ in LINES)])
def test_nothing_can_be_done_after_the_deadline(event):
    late = "the deadline of 120 s has passed: submit_model is what is left"
    for seconds in (120.0, 500.0):
        assert check(world(), replace(FACTS, seconds=seconds), event) == late


@pytest.mark.parametrize(("ranks", "most"), [(1, 0), (2, 0), (3, 1), (5, 2), (8, 3)])
def test_fewer_than_half_of_the_ranks_can_be_out(ranks, most):
    of = world(ranks=ranks)
    assert check(of, Facts(), ConfigureRanks(exclude=tuple(range(most)))) is None
    refused = check(of, Facts(), ConfigureRanks(exclude=tuple(range(most + 1))))
    assert refused is not None
    assert refused.startswith("exclude: ")


def test_whoever_checks_needs_no_torch():
    module = "ml_trainer_env.server.cluster.checks"
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


RANKS = st.lists(st.integers(0, 4), max_size=2).map(tuple)
EVENTS = st.one_of(
    st.just(WINDOW),
    st.builds(
        Train,
        settings=st.builds(
            SETTINGS.model_copy,
            update=st.fixed_dictionaries({"augmentation": st.sampled_from([0.0, 0.5, 1.0])}),
        ),
    ),
    st.builds(
        Restore,
        step=st.integers(0, 60),
        skip_batches=st.integers(0, 30) | st.just(10_000),
        load_optimizer=st.booleans(),
    ),
    st.builds(ConfigureRanks, exclude=RANKS, use_spare=RANKS),
    st.builds(
        ConfigureRanks,
        exclude=RANKS,
        shares=st.lists(st.integers(0, 9), min_size=3, max_size=4).map(tuple)
        | st.sampled_from([(4, 4, 4, 4), (1, 5, 5, 5), (6, 5, 5)]),
    ),
    st.builds(
        ConfigureData,
        quarantine=st.lists(st.integers(0, 15), max_size=5).map(tuple),
        reshuffle=st.booleans(),
    ),
    st.builds(
        Diagnose,
        what=st.sampled_from(
            ["replay", "weight_checksum", "shard_loss", "flight_recorder", "verify_checkpoint"]
        ),
    ),
)


@settings(max_examples=15, deadline=None)
@given(st.lists(EVENTS, max_size=8))
def test_whatever_is_done_reports_are_whole_and_what_is_refused_was_told_from_the_reports(events):
    of = world(*EVERYTHING)
    state, last = start(of, 0), None
    for event in events:
        assert facts_of(last) == state.facts
        if why := check(of, facts_of(last), event):
            with pytest.raises(ValueError, match=f"^{re.escape(why)}$"):
                advance(of, 0, state, event)
            continue
        before = state.seconds
        state, last = advance(of, 0, state, event)
        assert last.seconds >= before
        assert Report.model_validate_json(last.model_dump_json()) == last
        assert len(last.ranks) == 4
        assert 1 <= len(state.checkpoints) <= 5


def test_time_passes_whatever_is_done_but_looked_at():
    for event in (WINDOW, Restore(step=0), ConfigureRanks(), ConfigureData()):
        _, (report,) = play(world(), event)
        assert report.seconds > 0
