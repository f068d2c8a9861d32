"""The benchmark's own arithmetic, and that what it compares with is the same network.

Nothing here measures speed: a timed test fails on a busy machine and proves nothing on an idle one.
"""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from rich.console import Console

from ml_trainer_env.benchmarks.engine import flops, report, usual
from ml_trainer_env.benchmarks.engine.epochs import AUGMENTED, PLAIN, TaskFigures
from ml_trainer_env.benchmarks.engine.load import Load, busy_seconds
from ml_trainer_env.benchmarks.timing import Spread
from ml_trainer_env.server.models_nn import (
    NETWORKS,
    Block,
    ConvNet,
    Mlp,
    Network,
    initial_statistics,
    initial_weights,
)
from ml_trainer_env.task_ids import CLASSIC_IDS

SMALL = ConvNet(
    channels=3, side=8, blocks=(Block(4, stride=2), Block(6, kernel=5, pool=2)), hidden=7
)


@pytest.fixture(params=[*NETWORKS, "small"])
def network(request: pytest.FixtureRequest) -> Network:
    return SMALL if request.param == "small" else NETWORKS[request.param]


# --- Arithmetic ---------------------------------------------------------------------------------


def test_multiply_adds_of_an_mlp_by_hand() -> None:
    assert flops.multiply_adds(Mlp(inputs=784, hidden=128)) == 784 * 128 + 128 * 10


def test_multiply_adds_of_a_convnet_by_hand() -> None:
    first = 4 * 4 * 4 * (3 * 3 * 3)  # stride 2 halves the side before the work
    second = 4 * 4 * 6 * (5 * 5 * 4)  # pooling halves it after
    assert flops.multiply_adds(SMALL) == first + second + (2 * 2 * 6) * 7 + 7 * 10


def test_an_epoch_is_three_passes_over_train_and_one_over_the_rest() -> None:
    network = Mlp(inputs=1, hidden=1)  # 11 multiply-adds
    assert flops.epoch_operations(network, trained=100, evaluated=10) == 2 * 11 * (300 + 10)


# --- The usual way ------------------------------------------------------------------------------


def test_the_usual_module_has_the_same_parameters(network: Network) -> None:
    ours = sum(p.size for p in network.parameters)
    assert sum(p.numel() for p in usual.build(network).parameters()) == ours


def test_the_usual_module_computes_the_same(network: Network) -> None:
    generator = torch.Generator().manual_seed(1)
    weights = initial_weights(network, generator)
    # Gains, biases and statistics that differ from place to place: none may be swapped unseen.
    weights += 0.05 * torch.rand(weights.shape, generator=generator)
    statistics = initial_statistics(network)
    statistics += torch.rand(statistics.shape, generator=generator)
    shape = (
        (5, network.channels, network.side, network.side)
        if isinstance(network, ConvNet)
        else (5, 1, 28, 28)
    )
    images = torch.randn(shape, generator=generator)
    module = usual.build(network).eval()
    usual.load(module, network, weights, statistics)
    with torch.no_grad():
        ours = network.replica(weights, statistics).logits(images)
        torch.testing.assert_close(module(images), ours, rtol=1e-4, atol=1e-4)


# --- What is said about the samples --------------------------------------------------------------


def test_a_spread_by_hand() -> None:
    assert Spread.of([5.0, 1.0, 2.0, 4.0, 3.0]) == Spread(5, 3.0, 2.0, 4.0, 1.0, 5.0)
    assert Spread.of([2.0]) == Spread(1, 2.0, 2.0, 2.0, 2.0, 2.0)
    with pytest.raises(ValueError, match="no samples"):
        Spread.of([])


def test_busy_seconds_leave_out_idle_and_waiting() -> None:
    assert busy_seconds("cpu  100 20 30 9000 900 5 6 39 7 0", ticks=100) == pytest.approx(2.0)


def test_the_share_of_others_is_what_is_not_our_own() -> None:
    before = Load(machine=100.0, own=10.0, clock=0.0)
    alone = Load(machine=115.0, own=25.0, clock=10.0)
    assert alone.others_since(before, cores=2) == 0.0
    assert replace(alone, own=20.0).others_since(before, cores=2) == pytest.approx(0.25)


def figures(**seconds: float) -> TaskFigures:
    names = ("two_threads", "one_thread", "augmented", *PLAIN, *AUGMENTED)
    return TaskFigures(
        parameters=1,
        multiply_adds=1,
        epoch_operations=10**9,
        seconds={name: Spread.of([seconds.get(name, 1.0)]) for name in names},
        val_accuracy={"engine": 0.5, "usual": 0.5},
        accuracy_epoch=1,
        usual_threads=2,
        collapsed=(),
    )


def results(task: TaskFigures, others: float | None = 0.0) -> report.Results:
    call = {"reset easy_mnist": Spread.of([0.02]), "get_training_status": Spread.of([0.003])}
    return report.Results(
        machine=report.Machine("a processor", 2, "2"),
        others=others,
        convolution_peak=2e10,
        engine_threads=2,
        tasks={"easy_mnist": task},
        calls={"in_process": call, "websocket": call},
        quick=False,
        wall_seconds=1.0,
    )


def test_a_collapse_of_the_default_threads_is_no_speedup() -> None:
    collapsed = figures(two_threads=0.1, usual=100.0, usual_one_thread=0.3)
    assert collapsed.times_usual(augmented=False) == pytest.approx(3.0)
    default_is_faster = figures(augmented=0.1, usual_augmented=0.2, usual_augmented_one_thread=0.4)
    assert default_is_faster.times_usual(augmented=True) == pytest.approx(2.0)


def test_a_variant_that_was_given_up_is_said_and_not_compared_with() -> None:
    task = figures(two_threads=0.1, usual_one_thread=0.3)
    seconds = {name: spread for name, spread in task.seconds.items() if name != "usual"}
    given_up = replace(task, seconds=seconds, collapsed=("usual",))
    said = report.as_json(results(given_up))["tasks"]["easy_mnist"]
    assert said["usual_over_engine"] == pytest.approx(3.0)
    assert list(said["usual_collapsed"]) == ["usual"]
    with (console := Console(width=140)).capture() as shown:
        report.show(results(given_up), console)
    assert "collapsed" in shown.get()


def test_figures_stand_beside_their_targets() -> None:
    said = report.as_json(results(figures(two_threads=0.1, augmented=0.12)))
    task = said["tasks"]["easy_mnist"]
    assert task["epoch"] == {"value": 0.1, "target": 0.02, "met": False}
    assert task["augmentation_ratio"] == {"value": 1.2, "target": 1.3, "met": True}
    assert task["gflops"] == 10.0
    assert task["share_of_peak"] == 0.5
    assert not said["calls"]["in_process"]["get_training_status"]["met"]
    assert said["calls"]["websocket"]["get_training_status"]["met"]
    assert not said["calls"]["websocket"]["reset easy_mnist"]["met"]
    json.dumps(said, allow_nan=False)


def test_other_work_on_the_machine_is_said() -> None:
    assert report.as_json(results(figures(), others=0.3))["disturbed"]
    assert not report.as_json(results(figures(), others=0.01))["disturbed"]
    assert not report.as_json(results(figures(), others=None))["disturbed"]


def test_every_task_has_a_target() -> None:
    assert set(report.EPOCH_TARGETS) == set(CLASSIC_IDS)
