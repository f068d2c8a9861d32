"""A folder of the test's own, in which MNIST is tiny."""

import pytest
from tiny_data import in_the_place_of_mnist

from ml_trainer_env.server import datasets
from ml_trainer_env.server.data import canon as dataset_canon


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache folder of the test's own, and the tiny data set in MNIST's place."""
    monkeypatch.setenv("ML_TRAINER_DATA_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("ML_TRAINER_RAW_DIR", raising=False)
    canons = dict(dataset_canon.CANON)
    in_the_place_of_mnist(canons)
    monkeypatch.setattr(dataset_canon, "CANON", canons)
    monkeypatch.setattr(datasets, "CANON", canons)
    datasets.load.cache_clear()
    yield tmp_path / "cache"
    datasets.load.cache_clear()
