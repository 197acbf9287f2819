"""A run: what it leaves behind, and that stopping it changes nothing."""

import json
import os
import signal
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from trlearner.experiments.data.problem import Finite
from trlearner.experiments.data.regression import Curves
from trlearner.experiments.presets.config import Config
from trlearner.experiments.presets.preset import config_of
from trlearner.experiments.runs import train
from trlearner.experiments.runs.build import make_learner, make_problem
from trlearner.experiments.runs.evaluate import TEST_SEED, evaluate

import trlearner as tr
from trlearner.samplers.network import Trainer

SMALL = Config(
    "regression/families",
    steps=12,
    tasks=4,
    shots=3,
    queries=4,
    inner_steps=1,
    validate_every=4,
    validation_tasks=6,
    test_tasks=7,
    relation_queries=0.5,
    average=0.5,
)


class Killed(Exception):
    """As SIGKILL would: nothing is saved."""


def stopping(at: int, error: type[BaseException]) -> train.Watch:
    def watch(step: int, note: str) -> None:
        if step == at:
            raise error

    return watch


def files(folder: Path) -> dict[str, bytes]:
    """What must not depend on how a run went."""
    return {n: (folder / n).read_bytes() for n in ("config.json", "metrics.jsonl", "result.json")}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    train.run(SMALL, folder)
    return folder


@pytest.mark.full
def test_a_finished_run_is_a_folder(undisturbed: Path) -> None:
    assert sorted(p.name for p in undisturbed.iterdir()) == [
        "config.json", "events", "metrics.jsonl", "result.json", "timing.json", "weights.pt"
    ]  # fmt: skip
    result = json.loads((undisturbed / "result.json").read_text())
    assert Config.read(result["config"]) == SMALL and result["hash"] == SMALL.hash()
    assert (result["metric"], result["better"], result["steps"]) == ("mse", "lower", 12)
    for split in ("test", "shifted"):
        found = result[split]["1"]["mse"]
        assert len(found["tasks"]) == 7
        assert found["summaries"]["mean"] == pytest.approx(sum(found["tasks"]) / 7)
    lines = (undisturbed / "metrics.jsonl").read_text().splitlines()
    scores = {m["step"]: m["validation"]["mse"]["mean"] for m in map(json.loads, lines)}
    assert list(scores) == [4, 8, 12]
    assert result["best_step"] == min(scores, key=scores.get)
    assert json.loads((undisturbed / "timing.json").read_text())["engine"] == "batched"
    assert result["skipped"] == 0


@pytest.mark.full
def test_the_weights_of_a_finished_run_are_those_that_were_tested(undisturbed: Path) -> None:
    problem = make_problem(SMALL, None, "cpu")
    learner = make_learner(SMALL, problem, "batched").eval()
    learner.load_state_dict(torch.load(undisturbed / "weights.pt", weights_only=True))
    found = evaluate(learner, problem, "test", SMALL.test_tasks, TEST_SEED)
    result = json.loads((undisturbed / "result.json").read_text())
    assert found == result["test"]["1"]


@pytest.mark.full
def test_a_batch_whose_gradient_is_no_number_is_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sample = Curves.sample

    def exploding(self: Curves, split: str, n: int, g: torch.Generator) -> tr.TaskBatch:
        batch = sample(self, split, n, g)
        if split == "train" and n == SMALL.tasks:
            seen.append(n)
            if len(seen) == 5:
                broken = tr.Samples(batch.support.x, 1e30 * batch.support.y)
                batch = batch.replace(broken, batch.query)
        return batch

    seen: list[int] = []
    monkeypatch.setattr(Curves, "sample", exploding)
    result = train.run(SMALL, tmp_path)
    assert (result["skipped"], result["steps"]) == (1, 12)
    weights = torch.load(tmp_path / "weights.pt", weights_only=True)
    assert all(w.isfinite().all() for w in weights.values())


@pytest.mark.full
@pytest.mark.parametrize(
    "stops",
    [[(1, KeyboardInterrupt)], [(4, Killed)], [(7, Killed), (7, KeyboardInterrupt), (11, Killed)]],
)
def test_a_run_that_was_stopped_ends_as_if_it_had_not_been(
    tmp_path: Path, undisturbed: Path, stops: list
) -> None:
    for at, error in stops:
        with pytest.raises(error):
            train.run(SMALL, tmp_path, watch=stopping(at, error))
    train.run(SMALL, tmp_path)
    assert files(tmp_path) == files(undisturbed)


@pytest.mark.full
@pytest.mark.parametrize(
    ("problem", "kind"),
    [
        ("regression/families", "adaptive"),
        ("regression/families", "hard"),
        ("images/glyphs", "adaptive"),  # an endless stream: it chooses among candidates
    ],
)
def test_a_run_with_a_sampler_goes_on_alike(
    tmp_path: Path, problem: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for room, name in ((tr, "AdaptiveTaskSampler"), (tr.samplers, "HardTaskSampler")):
        # soon, and as if sure of themselves
        monkeypatch.setattr(room, name, partial(getattr(room, name), warmup=3, every=1))
    monkeypatch.setattr(Trainer, "trust", 1.0)
    images = {"learner": "anil", "ways": 2, "shots": 1, "tasks": 3, "validation_tasks": 3}
    more = images if problem.startswith("images") else {}
    config = replace(SMALL, problem=problem, sampler=kind, steps=12, test_tasks=4, **more)
    train.run(config, tmp_path / "whole")
    plain = train.run(replace(config, sampler="none"), tmp_path / "plain")
    found = json.loads((tmp_path / "whole" / "result.json").read_text())
    assert found["test"] != plain["test"]
    for at, error in ((5, KeyboardInterrupt), (7, Killed), (11, KeyboardInterrupt)):
        with pytest.raises(error):
            train.run(config, tmp_path / "stopped", watch=stopping(at, error))
    train.run(config, tmp_path / "stopped")
    assert files(tmp_path / "whole") == files(tmp_path / "stopped")


def test_a_sampler_is_told_of_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(SMALL, sampler="adaptive")
    run = train.Run(config, train.make_problem(config, None, "cpu"), "cpu", "batched")
    seen = []
    pick = Curves.pick
    monkeypatch.setattr(
        Curves, "pick", lambda self, names, g: seen.append(names) or pick(self, names, g)
    )
    for _ in range(3):
        run.take_step()
    assert run.sampler is not None
    assert run.sampler.updates == 3
    assert run.sampler.summary()["draws"].sum() == 3 * config.tasks
    assert all(len(set(names)) == config.tasks for names in seen)


@pytest.mark.parametrize(
    ("problem", "options"),
    [
        ("regression/families", {}),
        ("regression/sinusoid", {}),
        ("drugs/synthetic", {}),
        # With the usual pictures it takes a minute.
        pytest.param("pose/procedural", {"size": 8, "views": 10}, marks=pytest.mark.full),
    ],
)
@pytest.mark.parametrize("pool", [None, 10])
def test_training_tasks_can_be_picked_by_name(
    problem: str, options: dict[str, int], pool: int | None
) -> None:
    config = replace(config_of(problem), shots=3, queries=4, pool=pool, train_tasks=9)
    config = replace(config, options=options)
    source = train.make_problem(config, None, "cpu").source
    assert isinstance(source, Finite) and source.names is not None
    assert len(set(source.names)) == 9
    names = [source.names[i] for i in (4, 0, 8)]
    one, other = (source.pick(names, torch.Generator().manual_seed(3)) for _ in range(2))
    assert list(one.ids or ()) == names
    assert torch.equal(one.support.x, other.support.x) and torch.equal(one.query.y, other.query.y)
    drawn = source.sample("train", 3, torch.Generator().manual_seed(3))
    assert one.support.x.shape == drawn.support.x.shape


@pytest.mark.full
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_in_the_middle_of_a_step_waits_for_its_end(
    tmp_path: Path, undisturbed: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    with monkeypatch.context() as patched:
        sample = Curves.sample

        def interrupted(self: Curves, split: str, n_tasks: int, generator: torch.Generator):  # type: ignore[no-untyped-def]
            batch = sample(self, split, n_tasks, generator)  # type: ignore[arg-type]
            held = signal.getsignal(number) not in (signal.SIG_DFL, signal.default_int_handler)
            if held and (split, n_tasks) == ("train", SMALL.tasks):  # not the batch drawn for trial
                os.kill(os.getpid(), number)
            return batch

        patched.setattr(Curves, "sample", interrupted)
        for _ in range(3):
            with pytest.raises(KeyboardInterrupt):
                train.run(SMALL, tmp_path)
    train.run(SMALL, tmp_path)
    assert files(tmp_path) == files(undisturbed)


@pytest.mark.full
def test_random_layers_go_on_where_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trlearner.experiments.data.models import mlp

    def noisy() -> torch.nn.Module:
        network = mlp.mlp()
        network.features = torch.nn.Sequential(network.features, torch.nn.Dropout(0.5))
        return network

    problem = train.make_problem(SMALL, None, "cpu")
    monkeypatch.setattr(train, "make_problem", lambda *_: replace(problem, network=noisy))
    train.run(SMALL, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train.run(SMALL, tmp_path / "stopped", watch=stopping(6, KeyboardInterrupt))
    torch.rand(5)
    train.run(SMALL, tmp_path / "stopped")
    assert files(tmp_path / "whole") == files(tmp_path / "stopped")


@pytest.mark.full
def test_a_finished_run_is_not_repeated_and_leaves_the_random_state(
    undisturbed: Path, tmp_path: Path
) -> None:
    before = torch.get_rng_state()
    train.run(SMALL, undisturbed, watch=stopping(1, Killed))
    train.run(replace(SMALL, steps=2, validate_every=2), tmp_path)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.full
def test_without_the_relation_term_it_is_the_learner_alone(tmp_path: Path) -> None:
    """Settings of a relation layer that is not used change nothing but the name."""
    results = []
    for heads in (1, 8):
        config = replace(SMALL, lam=0.0, heads=heads)
        result = train.run(config, tmp_path / str(heads))
        results.append((result["test"], result["shifted"], result["best_step"]))
    assert results[0] == results[1]


@pytest.mark.full
def test_patience_stops_a_run_that_gets_no_better(tmp_path: Path) -> None:
    config = replace(SMALL, outer_lr=0.0, steps=100, patience=2, average=0.0)
    result = train.run(config, tmp_path)
    assert (result["steps"], result["best_step"]) == (12, 4)


@pytest.mark.full
def test_several_numbers_of_steps_are_tested(tmp_path: Path) -> None:
    result = train.run(replace(SMALL, test_steps=(0, 1, 3)), tmp_path)
    means = [result["test"][s]["mse"]["summaries"]["mean"] for s in ("0", "1", "3")]
    assert len(set(means)) == 3


@pytest.mark.full
@pytest.mark.filterwarnings("ignore:dim must be at least 2")  # inputs of curves are single numbers
@pytest.mark.parametrize("learner", ["fomaml", "metasgd", "anil", "tnet"])
@pytest.mark.parametrize("encoder", ["auto", "input", "update"])
def test_every_learner_and_encoder_trains(tmp_path: Path, learner: str, encoder: str) -> None:
    config = replace(SMALL, learner=learner, encoder=encoder, steps=2, validate_every=2)  # type: ignore[arg-type]
    assert train.run(config, tmp_path)["steps"] == 2


@pytest.mark.full
def test_the_command_of_a_worker(tmp_path: Path, undisturbed: Path) -> None:
    threads = torch.get_num_threads()
    try:
        assert train.main([str(undisturbed / "config.json"), str(tmp_path)]) == 0
    finally:
        torch.set_num_threads(threads)
    assert files(tmp_path) == files(undisturbed)
