"""The bar: with every rank a real process, every observation and every weight is the same."""

import os
import signal

import pytest
import torch
from clusters import EVERYTHING, WINDOW, play, same, world

from ml_trainer_env.events import (
    ConfigureData,
    ConfigureRanks,
    Diagnose,
    Restore,
)
from ml_trainer_env.server.cluster.networks import NETWORKS
from ml_trainer_env.server.cluster.processes import Processes
from ml_trainer_env.server.worlds import BitFlip, Crash, Desync, SlowHost

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("network", NETWORKS)
def test_every_observation_and_every_weight_equals_that_of_one_process(network, tmp_path):
    of = world(*EVERYTHING, network=network, deadline=240.0)
    events = [
        WINDOW,
        WINDOW,
        Diagnose(what="replay"),
        WINDOW,
        Diagnose(what="weight_checksum"),
        WINDOW,
        WINDOW,
        WINDOW,
        Diagnose(what="flight_recorder"),
        ConfigureRanks(use_spare=(0,), shares=(1, 5, 5, 5)),
        ConfigureData(quarantine=(3,), reshuffle=True),
        WINDOW,
        Restore(step=30, load_optimizer=False),
        WINDOW,
    ]
    one, reports = play(of, *events)
    with Processes(network, tmp_path) as ranks:
        other, others = play(of, *events, ranks=ranks)
    for report, found in zip(reports, others, strict=True):
        assert found == report
    assert same(one, other)
    incidents = [incident for report in reports for incident in report.incidents]
    assert any("timed out" in incident for incident in incidents)
    assert any("was lost" in incident for incident in incidents)
    sizes = {file.stat().st_size for file in tmp_path.glob("step-*.weights")}
    assert len(sizes) > 1, "no file was truncated"


def test_with_every_host_out_of_step_or_dead_many_processes_go_on_as_one_does(tmp_path):
    of = world(
        *(Desync(at=4 + host, host=host) for host in (2, 0, 3, 1)),
        BitFlip(at=15, bit=26, share=0.3),
        *(Crash(at=70, host=host, dead=True) for host in range(4)),
        deadline=400.0,
    )
    everyone = ConfigureRanks(use_spare=(0, 1, 2, 3))
    replay, sums = Diagnose(what="replay"), Diagnose(what="weight_checksum")
    events = [WINDOW, replay, sums, WINDOW, replay, WINDOW, WINDOW, WINDOW, replay]
    events += [WINDOW, everyone, WINDOW]
    one, reports = play(of, *events)
    with Processes(of.network, tmp_path) as ranks:
        other, others = play(of, *events, ranks=ranks)
    for report, found in zip(reports, others, strict=True):
        assert found == report
    assert same(one, other)
    assert not any(each.alive for each in reports[-3].ranks), "somebody was left"
    assert len(reports[-1].losses) == 25


def test_a_lost_host_is_really_killed_and_another_process_takes_its_place(tmp_path):
    of = world(Crash(at=5, host=2), SlowHost(host=1, since=0, times=3))
    with Processes(of.network, tmp_path) as ranks:
        first, _ = play(of, ConfigureRanks())
        ranks.begin(first.fleet.alive, first.model, {})
        before = ranks.pids()
        state, (shown,) = play(of, WINDOW, ranks=ranks)
        after = ranks.pids()
        assert shown.incidents[0] == "rank 2 was lost"
        assert {host for host in before if before[host] != after[host]} == {2}
        with pytest.raises(ProcessLookupError):
            os.kill(before[2], 0)
        assert same(state, play(of, WINDOW)[0])


def test_a_host_that_is_killed_from_outside_is_noticed(tmp_path):
    of = world()
    state, _ = play(of, WINDOW)
    with Processes(of.network, tmp_path) as ranks:
        ranks.begin(state.fleet.alive, state.model, {})
        os.kill(ranks.pids()[1], signal.SIGKILL)
        with pytest.raises((EOFError, ConnectionError)):
            play(of, WINDOW, state=state, ranks=ranks)
    assert torch.isfinite(state.model.weights).all()
