"""Sweeps over a Ray cluster of two (pretended) machines; skipped where Ray is not installed."""

import threading
import time
from functools import partial
from pathlib import Path

import fake_run
import pytest
from trlearner.experiments.presets.config import Config
from trlearner.experiments.runs import grid, sweep, worker

ray = pytest.importorskip("ray")
pytestmark = [
    pytest.mark.unchecked,
    pytest.mark.filterwarnings("ignore"),  # of Ray itself
]


@pytest.fixture(scope="module")
def cluster():
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(fake_run.__file__).parent))  # every machine's
        yield from started(Cluster)


def started(Cluster):
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    made.add_node(num_cpus=1)
    ray.init(address=made.address, log_to_driver=False)
    yield made
    ray.shutdown()
    made.shutdown()


def configs(seeds):
    return grid.expand(Config("fake/chain"), {"seed": range(seeds)})


def test_a_sweep_over_two_machines_finds_what_one_process_does(cluster, tmp_path):
    alone, journal = tmp_path / "alone", tmp_path / "journal"
    for config in configs(4):
        worker.attempt(config, alone / config.problem / config.hash(), fake_run.run)
    doing = partial(fake_run.run, journal=str(journal))
    assert sweep.ablate(configs(4), doing, tmp_path / "ray", sweep.How(on="ray")) == 0
    assert fake_run.results(tmp_path / "ray") == fake_run.results(alone)
    starts = [line.split() for line in journal.read_text().splitlines() if "start" in line]
    assert len({key for _, key, _ in starts}) == len(starts) == 4
    assert len({pid for *_, pid in starts}) == 4  # a process for each


def test_failures_are_told(cluster, tmp_path, capsys):
    doing = partial(fake_run.run, fails=(1,))
    assert sweep.ablate(configs(2), doing, tmp_path, sweep.How(on="ray")) == 1
    assert "RuntimeError: seed 1 is bad luck" in capsys.readouterr().out


def test_stopping_saves_checkpoints(cluster, tmp_path):
    from trlearner.experiments.runs.on_ray import Cluster

    [config] = configs(1)
    pool = Cluster(partial(fake_run.run, journal=str(tmp_path / "journal"), pause=1.0))
    pool.start("only", config, tmp_path / "run")
    while not (tmp_path / "journal").exists():
        time.sleep(0.05)
    time.sleep(1.5)
    pool.stop()
    assert (tmp_path / "run" / "checkpoint.pt").exists()
    assert not worker.finished(tmp_path / "run")
    assert (
        worker.attempt(config, tmp_path / "run", fake_run.run) == "done"
    )  # its claim was released


def test_a_machine_that_dies_costs_no_run(cluster, tmp_path):
    weak = cluster.add_node(num_cpus=1)
    journal = tmp_path / "journal"
    doing = partial(fake_run.run, journal=str(journal), pause=0.2)

    def pull_the_plug():
        while not journal.exists():
            time.sleep(0.05)
        time.sleep(1.0)
        cluster.remove_node(weak, allow_graceful=False)

    thread = threading.Thread(target=pull_the_plug)
    thread.start()
    assert sweep.ablate(configs(6), doing, tmp_path / "ray", sweep.How(on="ray", workers=3)) == 0
    thread.join()
    assert len(list((tmp_path / "ray").rglob("result.json"))) == 6
