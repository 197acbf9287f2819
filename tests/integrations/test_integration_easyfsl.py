"""Episodes and classifiers of easyfsl with the relation term; without its plots, torchvision and pandas."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import contracts
import peer_sources
import pytest
import torch
from contracts import close
from integration import TOLERANCES, equal, example_runs, memory_is_flat, names
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from trlearner.integrations import easyfsl as integration
from trlearner.integrations.easyfsl import adapted, samples

import trlearner as tr
from regularizer.test_collect import regularizer

WAYS = contracts.OUTPUTS


@pytest.fixture
def peer() -> Iterator[Any]:
    with peer_sources.easyfsl() as found:
        yield found


class Distance(tr.ProtoNet):
    """easyfsl's: the logits are distances, ours are squared ones."""

    def predict(self, state, fast, features):  # type: ignore[no-untyped-def]
        return -torch.cdist(features, fast["prototypes"])


def episodes(batch: tr.TaskBatch) -> list[tuple]:
    return [(x, y, xq, yq, list(range(WAYS))) for (x, y), (xq, yq) in contracts.tasks_of(batch)]


def class_regularizer(model: nn.Module, **options: object) -> tr.TRLearner:
    return regularizer(model, loss_fn=cross_entropy, align="sinkhorn", **options)


def loop_on(peer: Any):  # type: ignore[no-untyped-def]
    def loop(model: nn.Module, batch: tr.TaskBatch, reg: tr.TRLearner | None) -> Tensor:
        classifier = peer.methods.PrototypicalNetworks(model)
        tasks, losses = reg and reg.collect(ways=WAYS), []
        for episode in episodes(batch):
            classifier.process_support_set(*episode[:2])
            if tasks is not None:
                tasks.add(adapted(classifier), **samples(episode))
            losses.append(cross_entropy(classifier(episode[2]), episode[3]))
        loss = torch.stack(losses).mean()
        return loss if tasks is None else loss + tasks.penalty()

    return loop


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_the_gradient_is_the_engines(peer, dtype: torch.dtype) -> None:  # type: ignore[no-untyped-def]
    batch, model, twin = (
        contracts.class_batch().to(dtype),
        *(contracts.net().to(dtype) for _ in "ab"),
    )
    reg, other = class_regularizer(model).to(dtype), class_regularizer(twin).to(dtype)
    loss = loop_on(peer)(model, batch, reg)
    expected = other(Distance(twin, engine="loop"), batch).loss
    close(loss, expected, TOLERANCES[dtype])
    found, wanted = (
        contracts.gradients(loss, model, reg),
        contracts.gradients(expected, twin, other),
    )
    equal(found, wanted, TOLERANCES[dtype])


def test_nothing_changes_without_the_term(peer) -> None:  # type: ignore[no-untyped-def]
    batch, results = contracts.class_batch(), []
    for plugged in (True, False):
        model = contracts.net()
        reg = class_regularizer(model, lam=0.0) if plugged else None
        loss = loop_on(peer)(model, batch, reg)
        results.append([loss, *torch.autograd.grad(loss, list(model.parameters()))])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_the_next_episode_does_not_reach_the_last_one(peer) -> None:  # type: ignore[no-untyped-def]
    classifier = peer.methods.PrototypicalNetworks(contracts.net())
    (x, y, xq, *_), (x2, y2, *_), *_ = episodes(contracts.class_batch())
    classifier.process_support_set(x, y)
    ours, theirs = adapted(classifier), classifier(xq)
    classifier.process_support_set(x2, y2)
    close(ours(xq), theirs, 1e-12)
    assert (classifier(xq) - theirs).abs().max() > 1e-3


def test_episodes_are_what_its_sampler_makes(peer) -> None:  # type: ignore[no-untyped-def]
    sampler = object.__new__(
        peer.samplers.TaskSampler
    )  # torch's Sampler takes no arguments any more
    sampler.n_way, sampler.n_shot, sampler.n_query = WAYS, 2, 3
    picked = [(torch.full((2,), 10.0 * c), c) for c in (5, 1, 3) for _ in range(5)]
    found = samples(sampler.episodic_collate_fn(picked))
    assert set(found) == {"support", "query", "id"}
    for (x, y), count in ((found["support"], 2), (found["query"], 3)):
        assert len(x) == len(y) == WAYS * count
        assert torch.equal(x[:, 0], 10.0 * torch.tensor(found["id"])[y])


def test_the_documented_loops_run(peer) -> None:  # type: ignore[no-untyped-def]
    """They differ at λ = 0: a step an episode, and a step every four."""
    assert integration.__doc__ is not None
    for part in integration.__doc__.split("::\n\n")[1:]:
        lines = [line for line in part.splitlines() if not line or line.startswith("    ")]
        model, start = contracts.net(), contracts.net()
        reg, batch = class_regularizer(model), contracts.class_batch()
        space = names(model, reg, adapted=adapted, samples=samples, loader=episodes(batch))
        space["classifier"] = peer.methods.PrototypicalNetworks(model)
        code = "\n".join(line[4:] for line in lines).replace("ways=5", f"ways={WAYS}")
        exec(code, space | {"loss_fn": cross_entropy})
        assert not torch.equal(model.body.weight, start.body.weight)
    assert reg.relation.weight.grad is not None


def test_the_example_runs(peer, capsys: pytest.CaptureFixture[str]) -> None:  # type: ignore[no-untyped-def]
    example_runs("easyfsl", capsys)


@pytest.mark.slow
def test_memory_is_flat(peer) -> None:  # type: ignore[no-untyped-def]
    batch, on = contracts.class_batch(), loop_on(peer)

    def loop(model: nn.Module, _: tr.TaskBatch, reg: tr.TRLearner) -> Tensor:
        reg.loss_fn, reg.options = cross_entropy, replace(reg.options, align="sinkhorn")
        return on(model, batch, reg)

    memory_is_flat(loop)


def test_other_tuples_are_refused() -> None:
    with pytest.raises(ValueError, match="episode must be .support_images, .*got 4 parts"):
        samples((1, 2, 3, 4))
