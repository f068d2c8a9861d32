"""Clusters in the runtime: runs, orders, files, records, workers, as any training."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace

import pytest
from clusters import EVERYTHING, WINDOW, play, same, world
from executors import PLAN
from pools import over, trained
from real import inline

from ml_trainer_env.events import ConfigureRanks, Diagnose, Event, Restore
from ml_trainer_env.models import EpochRecord
from ml_trainer_env.server import runs, trainer, trainings
from ml_trainer_env.server.cluster.trained import ClusterTraining
from ml_trainer_env.server.instances import task_of
from ml_trainer_env.server.runs import Run, Scale, Workload
from ml_trainer_env.server.runtime import state_files
from ml_trainer_env.server.runtime.orders import Order, outcome_of
from ml_trainer_env.server.runtime.pool import Pool
from ml_trainer_env.server.runtime.records import Records
from ml_trainer_env.server.runtime.runner import Runner
from ml_trainer_env.server.runtime.sharing import SharingRunner
from ml_trainer_env.server.session import process

WORLD = world(*EVERYTHING, deadline=240.0)
WORKLOAD = Workload("cluster_cnn", "fashion_mnist", 16, 1, Scale(0.0, 1.0), world=WORLD)
EVENTS: list[Event] = [
    WINDOW,
    Diagnose(what="replay"),
    WINDOW,
    Restore(step=10, skip_batches=2),
    ConfigureRanks(exclude=(3,)),
    WINDOW,
]


def begun() -> Run:
    return runs.begin(WORKLOAD, 0, trainer.engine())


def trained_by(runner: Runner, events: list[Event] = EVENTS) -> Run:
    run = begun()
    with closing(runner.train(run, events)) as epochs:
        for each in epochs:
            run = run.after(each.record)
    return run


def test_a_run_of_events_gives_what_the_events_give():
    _, reports = play(WORLD, *EVENTS)
    run = trained_by(inline())
    assert [each.val_loss for each in run.history] == [each.val_loss for each in reports]
    assert [each.window.losses for each in run.history if each.window] == [
        each.losses for each in reports
    ]
    assert run.best is None


def test_without_room_for_states_every_event_is_trained_again_to_the_same_bits():
    roomy, narrow = inline(), inline(budget=1)
    run = trained_by(roomy)
    assert trained_by(narrow) == run
    assert narrow.test_accuracy(run) == roomy.test_accuracy(run)


def test_a_state_in_a_file_goes_on_as_it_did(tmp_path):
    state = trainings.start(WORKLOAD, 0)
    for event in EVENTS:
        state = trainings.advance(state, event)
        _, descriptor = state_files.write(state, None)
        assert descriptor is not None
        again = state_files.read(descriptor, state.key)
        assert isinstance(state, ClusterTraining)
        assert isinstance(again, ClusterTraining)
        assert same(state.state, again.state)
        one, other = (trainings.advance(each, WINDOW) for each in (state, again))
        assert one.run == other.run


def test_what_one_session_has_trained_the_next_one_is_told():
    records = Records()
    runner = SharingRunner(inline(), records)
    run = trained_by(runner)
    with closing(runner.train(begun(), EVENTS)) as epochs:
        again = list(epochs)
    assert [each.record for each in again] == list(run.history)
    assert all(each.shared for each in again)
    known = records.get(run.key)
    assert known is not None
    assert known.outcome == outcome_of(run.history[-1])


def test_a_world_has_the_same_key_after_it_was_written_and_read():
    order = Order(workload=WORKLOAD, seed=0, precision="fp32", state=None, plans=())
    arrived = Order.model_validate_json(order.model_dump_json())
    assert runs.begin(arrived.workload, 0, trainer.engine()).key == begun().key


def test_only_clusters_depend_on_what_clusters_compute():
    engine = trainer.engine()
    other = replace(engine, cluster="another one")
    assert begun().key != runs.begin(WORKLOAD, 0, other).key
    assert runs.begin(_mnist(), 0, engine).key == runs.begin(_mnist(), 0, other).key


def test_keys_tell_worlds_and_events_apart():
    other = Workload("cluster_cnn", "fashion_mnist", 16, 1, Scale(0.0, 1.0), world=world())
    assert begun().key != runs.begin(other, 0, trainer.engine()).key
    keys = {begun().then(event) for event in (WINDOW, Restore(step=0), Restore(step=1))}
    assert len(keys) == 3


def test_an_order_and_a_record_keep_every_bit():
    order = Order(workload=WORKLOAD, seed=0, precision="fp32", state=None, plans=tuple(EVENTS))
    assert Order.model_validate_json(order.model_dump_json()) == order
    for record in trained_by(inline()).history:
        assert EpochRecord.model_validate_json(record.model_dump_json()) == record


def test_a_plan_of_the_other_kind_is_our_mistake():
    cluster, network = trainings.start(WORKLOAD, 0), trainer.start(_mnist(), 0)
    for state, plan in ((cluster, PLAN), (network, WINDOW)):
        with pytest.raises(TypeError, match="has no"):
            trainings.advance(state, plan)


def _mnist() -> Workload:
    return Workload("mnist_mlp", "mnist", 1, 1, Scale(0.0, 1.0))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("network", "dataset"), [("cluster_cnn", "fashion_mnist"), ("cluster_lm", "kjv")]
)
def test_workers_train_clusters_to_the_same_bits(network, dataset):
    of = world(*EVERYTHING, network=network, deadline=240.0)
    workload = Workload(network, dataset, 16, 1, Scale(0.0, 1.0), world=of)
    run = runs.begin(workload, 0, trainer.engine())
    _, reports = play(of, *EVENTS)
    with closing(Pool(1)) as pool:
        runner = over(pool)
        for event in EVENTS:  # one by one: a worker goes on from the state that it has left
            run = trained(runner, run, [event])
        with runner.states.nearest(run) as nearest:
            assert nearest.key == run.key
    assert [each.val_loss for each in run.history] == [each.val_loss for each in reports]


@pytest.mark.parametrize("share", [False, True])
def test_more_windows_than_the_clock_has_are_trained_up_to_the_deadline(share: bool) -> None:
    of = replace(WORKLOAD, world=world(deadline=60.0))
    run = runs.begin(of, 0, trainer.engine())
    runner = SharingRunner(inline(), Records()) if share else inline()
    for _ in range(2):  # the second time the records know it
        with closing(runner.train(run, [WINDOW] * 20)) as epochs:
            found = [each.record for each in epochs]
        assert [each.window.step for each in found if each.window] == [25, 50, 58]


@pytest.mark.parametrize("seed", [1, 3_653_403_231])
def test_a_cluster_is_one_run_whatever_the_seed(seed):
    """Its grade compares with what was measured of that one; adapters draw seeds."""
    assert runs.begin(WORKLOAD, seed, trainer.engine()) == begun()
    task = task_of("cluster/eval/0")
    assert process.begin(trainer.engine(), task, seed) == process.begin(trainer.engine(), task, 0)
