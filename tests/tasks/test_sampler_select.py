"""Which samples of a task reach the encoder."""

import contracts
import pytest
import reference_scores as truth
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy

import trlearner as tr
from trlearner.tasks.select import select_samples, telling


def samples(seed: int, kind: str, masked: bool, count: int = 7) -> tr.Samples:
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(3, count, 2, generator=g, dtype=torch.float64)
    labels = torch.randint(0, 3, (3, count), generator=g)
    mask = None
    if masked:
        mask = torch.rand(3, count, generator=g) < 0.7
        mask[:, 0] = True
    if kind == "labels":
        return tr.Samples(x, labels, mask, ways=3)
    return tr.Samples(x, x.sum(-1, keepdim=True), mask)


def by_loop(s: tr.Samples, task: int) -> list[int]:
    """Positions by how much the coding rate depends on them, class by class in turns."""
    real = range(s.x.shape[1]) if s.mask is None else s.mask[task].nonzero().flatten().tolist()
    worth = truth.leverage(truth.kept(s.x[task], None if s.mask is None else s.mask[task]), 0.5)
    best = sorted(zip(worth, real, strict=True), key=lambda pair: -round(2**16 * pair[0]))
    if s.ways is None:
        return [i for _, i in best]
    rounds: dict[int, list[int]] = {}
    seen = dict.fromkeys(range(s.ways), 0)
    for _, i in best:
        label = int(s.y[task, i])
        rounds.setdefault(seen[label], []).append(i)
        seen[label] += 1
    return [i for turn in sorted(rounds) for i in rounds[turn]]


@given(
    seed=st.integers(0, 1000),
    kind=st.sampled_from(["labels", "numbers"]),
    masked=st.booleans(),
)
def test_the_order_is_what_the_loop_says(seed: int, kind: str, masked: bool) -> None:
    s = samples(seed, kind, masked)
    found = telling(s.x, s)
    for task in range(3):
        wanted = by_loop(s, task)
        assert found[task, : len(wanted)].tolist() == wanted


@pytest.mark.parametrize(("select", "left"), [(0.5, 4), (3, 3), (100, 7), (1.0, 7)])
def test_a_share_or_a_number_is_left(select: float, left: int) -> None:
    s = samples(0, "numbers", False)
    assert select_samples(select, s.x, s).x.shape == (3, left, 2)


def test_a_share_is_one_of_the_real_samples() -> None:
    s = samples(0, "numbers", True)
    found = select_samples(0.5, s.x, s)
    assert found.mask is not None and s.mask is not None
    assert torch.equal(found.mask.sum(1), (0.5 * s.mask.sum(1)).ceil().long())
    padded = s.padded(9)
    again = select_samples(0.5, padded.x, padded)
    assert again.mask is not None
    assert torch.equal(again.mask.sum(1), found.mask.sum(1))


@pytest.mark.full
@pytest.mark.parametrize("engine", ["higher", "loop", "batched", "traced"])
@pytest.mark.parametrize("masked", [False, True])
def test_the_encoder_sees_the_chosen_and_the_learner_all(engine: str, masked: bool) -> None:
    batch = contracts.class_batch()
    if masked:
        mask = torch.ones(batch.support.x.shape[:2], dtype=torch.bool)
        mask[0, 5:] = False
        support = tr.Samples(batch.support.x, batch.support.y, mask, batch.ways)
        batch = tr.TaskBatch(support, batch.query)
    learner = contracts.learner("maml", contracts.net(), engine)
    torch.manual_seed(0)
    encoder = tr.InputEncoder(learner.model.body, dim=contracts.HIDDEN, select=0.5)
    reg = tr.TRLearner(encoder, loss_fn=cross_entropy).double()
    out = reg(learner, batch)
    out.loss.backward()
    features = learner.model.body(batch.support.x).detach()
    chosen = select_samples(0.5, features, batch.support)
    wanted = learner.model.body(chosen.x)
    weight = torch.ones(chosen.x.shape[:2]) if chosen.mask is None else chosen.mask
    wanted = (wanted * weight[..., None]).sum(1) / weight.sum(1, keepdim=True)
    contracts.close(out.embeddings, wanted.detach(), 1e-12)
    contracts.close(reg.relate(learner, batch), out.relations, 1e-12)
    every = tr.InputEncoder(learner.model.body, dim=contracts.HIDDEN)
    plain = tr.TRLearner(every, loss_fn=cross_entropy).double()
    contracts.close(plain(learner, batch).task_loss, out.task_loss, 1e-12)


def test_a_function_chooses() -> None:
    batch, learner = (
        contracts.regression_batch(),
        contracts.learner("maml", contracts.net(), "batched"),
    )
    encoder = tr.InputEncoder(
        None,
        dim=2,
        select=lambda features, support: torch.zeros(len(support), 1, dtype=torch.int64),
    )
    reg = tr.TRLearner(encoder).double()
    contracts.close(reg(learner, batch).embeddings, batch.support.x[:, 0], 1e-12)


@pytest.mark.parametrize("masked", [False, True])
def test_a_labelled_encoder_sees_the_chosen_with_their_targets(masked: bool) -> None:
    batch = contracts.regression_batch()
    if masked:
        batch = tr.TaskBatch.from_tasks(
            [((x[i:], y[i:]), q) for i, ((x, y), q) in enumerate(contracts.tasks_of(batch))]
        )
    learner, support = contracts.learner("maml", contracts.net(), "batched"), batch.support
    encoder = tr.LabelledEncoder(
        None, dim=4, features=contracts.INPUTS, targets=contracts.OUTPUTS, select=2
    )
    reg = tr.TRLearner(encoder).double()
    found = reg(learner, batch).embeddings
    encoder.select = None
    chosen = select_samples(2, support.x, support)
    wanted = reg(learner, tr.TaskBatch(chosen, batch.query)).embeddings
    contracts.close(found, wanted, 1e-12)
    assert (found - reg(learner, batch).embeddings).abs().max() > 1e-3


@pytest.mark.unchecked
def test_options_are_checked() -> None:
    for wrong in (0, 0.0, 1.5, -1, True, "half"):
        for encoder in (tr.InputEncoder, tr.LabelledEncoder):
            with pytest.raises(ValueError, match=r"select must be a share in \(0.0, 1.0\].*, got "):
                encoder(None, dim=2, select=wrong)
    batch, learner = (
        contracts.regression_batch(),
        contracts.learner("maml", contracts.net(), "batched"),
    )
    encoder = tr.InputEncoder(None, dim=2, select=lambda features, support: features[..., 0] > 0)
    reg = tr.TRLearner(encoder).double()
    with pytest.raises(ValueError, match=r"select must return positions .*, got torch.bool"):
        reg(learner, batch)
