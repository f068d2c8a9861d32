"""The rate of a cluster over the clock: a warm-up, then a cosine to a twentieth, or none."""

import pytest

from ml_trainer_env.events import Settings
from ml_trainer_env.server.cluster.rates import factor

COSINE = Settings(lr_schedule="cosine", warmup=0.0)
CONSTANT = Settings(lr_schedule="constant", warmup=0.2)


def test_a_cosine_falls_from_the_rate_to_a_twentieth_and_stays_there():
    assert factor(COSINE, 0.0) == 1
    assert factor(COSINE, 0.5) == pytest.approx((1 + 0.05) / 2)
    assert factor(COSINE, 1.0) == factor(COSINE, 1.3) == pytest.approx(0.05)


def test_a_warm_up_rises_evenly_to_the_rate():
    assert 0 < factor(CONSTANT, 0.0) < 0.01
    assert factor(CONSTANT, 0.1) == pytest.approx(0.5, abs=0.01)
    assert factor(CONSTANT, 0.2) == factor(CONSTANT, 0.9) == 1
