"""An adapt function of the user's own, decorated."""

import contracts
import pytest
import torch
from contracts import close

import trlearner as tr
from regularizer.test_collect import adapt, by_hand, regularizer, unequal


@pytest.mark.parametrize("sizes", ["equal", "unequal"])
def test_a_decorated_function_is_the_loop_by_hand(sizes: str) -> None:
    batch = contracts.regression_batch() if sizes == "equal" else unequal()
    model, twin = contracts.net(), contracts.net()
    reg = regularizer(model)

    @reg.regularize
    def mine(support):  # type: ignore[no-untyped-def]
        """Mine."""
        return adapt(model, *support)

    out = mine(batch)
    loss, tasks = by_hand(twin, regularizer(twin), batch)
    close(out.loss, loss, 1e-12)
    close(out.task_loss + 0.7 * out.relation_loss, loss.detach(), 1e-12)
    close(out.relations, tasks.term.relations.detach(), 1e-12)
    for a, b in zip(
        torch.autograd.grad(out.loss, list(model.parameters())),
        torch.autograd.grad(loss, list(twin.parameters())),
        strict=True,
    ):
        close(a, b, 1e-12)
    assert out.predictions.shape == (4, 6, 3) and out.engine == "collected"
    assert (mine.__name__, mine.__doc__) == ("mine", "Mine.")
    support, (x, _) = contracts.tasks_of(batch)[0]
    close(mine.adapt(support)(x), out.predictions[0, : len(x)].requires_grad_(), 1e-12)


def test_without_the_term_there_are_no_relations() -> None:
    model = contracts.net()
    reg = regularizer(model, lam=0.0)
    out = reg.regularize(lambda support: adapt(model, *support))(contracts.regression_batch())
    assert out.relations is None and out.weights is None and out.relation_loss == 0
    assert torch.equal(out.loss, out.task_loss)


def test_predictions_of_several_tensors_keep_their_structure() -> None:
    model = contracts.net()
    reg = regularizer(model, loss_fn=lambda p, y: (p["a"] - y).square().mean() + p["b"].mean())

    @reg.regularize
    def mine(support):  # type: ignore[no-untyped-def]
        fmodel = adapt(model, *support)
        return lambda x: {"a": fmodel(x), "b": fmodel(x)[:, :2, None]}

    out = mine(contracts.regression_batch())
    assert {name: list(p.shape) for name, p in out.predictions.items()} == {
        "a": [4, 6, 3],
        "b": [4, 6, 2, 1],
    }
    assert isinstance(out, tr.Output)
