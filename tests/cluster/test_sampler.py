"""The sampler: every row once a pass, in an order that is drawn by name."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ml_trainer_env.server.cluster.sampler import rows_of
from ml_trainer_env.server.worlds import Sampler

ROWS = 48


def pass_over(name, order, shard, per_batch=8, number=0):
    batches = ROWS // per_batch
    samplers = [Sampler(number * batches + n, orders=(0,) * order) for n in range(batches)]
    return np.concatenate(
        [rows_of(name, each, f"shard {shard}", per_batch, ROWS) for each in samplers]
    )


@given(st.integers(0, 15), st.integers(0, 3), st.integers(0, 5))
def test_a_pass_takes_every_row_once(shard, order, number):
    assert sorted(pass_over("a", order, shard, number=number)) == list(range(ROWS))


def test_passes_shards_orders_and_runs_have_orders_of_their_own():
    drawn = [
        pass_over("a", 0, 0),
        pass_over("a", 0, 0, number=1),
        pass_over("a", 0, 1),
        pass_over("a", 1, 0),
        pass_over("b", 0, 0),
    ]
    assert len({tuple(each) for each in drawn}) == len(drawn)
    assert np.array_equal(drawn[0], pass_over("a", 0, 0))


def test_a_batch_may_lie_in_two_passes():
    both = rows_of("a", Sampler(ROWS // 7), "shard 0", 7, ROWS)
    first, second = pass_over("a", 0, 0, 1), pass_over("a", 0, 0, 1, number=1)
    assert list(both) == [*first[42:], second[0]]


def test_a_reshuffled_sampler_begins_anew_and_its_stream_goes_on():
    there = Sampler().skipping(7)
    assert there == Sampler(7, 7)
    assert there.reshuffled() == Sampler(0, 7, (7,))
    assert there.reshuffled().order == 1
    assert there.reshuffled().skipping(3) == Sampler(3, 10, (7,))


def test_a_checkpoint_of_this_order_goes_on_where_it_was_and_one_of_another_at_its_beginning():
    written = Sampler().skipping(7)
    assert written.skipping(5).resumed(written) == written
    present = written.skipping(5).reshuffled().skipping(2)
    assert present.resumed(written) == Sampler(0, 7, (12,))
    assert present.resumed(present.skipping(-1)) == Sampler(1, 13, (12,))
