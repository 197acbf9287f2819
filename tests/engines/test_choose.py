"""Which engine runs, why, and what trying one leaves behind: nothing."""

import gc
import warnings
import weakref

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close

import trlearner as tr
from trlearner.engines import choose
from trlearner.engines.choose import ENGINES

TIGHT = {"rtol": 0.0, "atol": 1e-9}


class ConvNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten())
        self.head = nn.Linear(2 * 3 * 3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


class Branching(nn.Module):
    """Looks at its data to decide what to do, which vmap cannot."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) if x.sum() > 0 else self.layer(-x)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(1, 3, batch_first=True)
        self.head = nn.Linear(3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.gru(x[..., None])[0][:, -1])


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def regression(mask: Tensor | None = None) -> tr.TaskBatch:
    x, y = (torch.randn(3, 4, width, dtype=torch.float64) for width in (2, 1))
    return tr.TaskBatch(tr.Samples(x, y, mask), (x, y))


def images() -> tr.TaskBatch:
    x, y = torch.randn(3, 4, 1, 5, 5, dtype=torch.float64), torch.arange(4).repeat(3, 1) % 2
    return tr.TaskBatch((x, y), (x, y), ways=2)


def ran(learner: tr.Learner, batch: tr.TaskBatch, loss_fn=F.mse_loss) -> str:
    """The engine that both ways in name."""
    learner.double()
    adapted = learner.adapt(batch.support, loss_fn)
    out = tr.TRLearner(encoder=tr.InputEncoder(None, dim=2), lam=0.0, loss_fn=loss_fn)
    assert out(learner, batch).engine == adapted.engine
    return adapted.engine


# ---- auto ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [tr.MAML, tr.MetaSGD, tr.TNet])
def test_auto_is_batched_where_nothing_speaks_against_it(kind):
    model = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1))
    assert ran(kind(model, steps=1), regression()) == "batched"


@pytest.mark.parametrize("heavy", [False, True])
@pytest.mark.parametrize("kind", [tr.MAML, tr.MetaSGD, tr.TNet])
def test_auto_is_channels_last_where_large_convolutions_adapt_on_a_cpu(kind, heavy, monkeypatch):
    if heavy:
        monkeypatch.setattr(choose, "HEAVY", 0)
    assert ran(kind(ConvNet(), steps=1), images(), F.cross_entropy) == (
        "channels_last" if heavy else "batched"
    )


@pytest.mark.parametrize(("hidden", "expected"), [(300, "batched"), (400, "loop")])
def test_auto_is_loop_where_a_megabyte_of_parameters_adapts_on_a_cpu(hidden, expected):
    wide = nn.Sequential(nn.Linear(2, hidden), nn.ReLU(), nn.Linear(hidden, hidden)).double()
    head = nn.Linear(hidden, 1).double()
    learner = tr.MAML(nn.Sequential(wide, head))
    batch = regression()
    assert learner.engine_for(batch.support, F.mse_loss).name == expected
    # What stays as it is does not count.
    assert (
        tr.ANIL(nn.Sequential(wide, head), head="1").engine_for(batch.support, F.mse_loss).name
        == "batched"
    )


def test_queries_count_as_well():
    # 4 support samples and 4 queries, of 2 * 9 * 9 * 2 + 18 * 2 * 2 = 396 operations each
    at = {}
    for limit in (4 * 396, 8 * 396):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(choose, "HEAVY", limit)
            learner = tr.MAML(ConvNet().double(), steps=1)
            reg = tr.TRLearner(tr.InputEncoder(None, dim=25), loss_fn=F.cross_entropy).double()
            at[limit] = reg(learner, images()).engine
            assert learner.adapt(images().support, F.cross_entropy).engine == "batched"
    assert list(at.values()) == ["channels_last", "batched"]


def test_auto_is_loop_where_a_model_needs_its_images_as_they_are(monkeypatch):
    class Viewing(ConvNet):
        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.body[:2](x).view(len(x), -1))

    monkeypatch.setattr(choose, "HEAVY", 0)
    learner = tr.MAML(Viewing(), steps=1)
    with pytest.warns(UserWarning, match="'loop', for 'channels_last' failed: view size"):
        assert ran(learner, images(), F.cross_entropy) == "loop"
    assert ran(learner, images(), F.cross_entropy) == "loop"  # warned once


def test_auto_is_the_same_where_they_stay_as_they_are(monkeypatch):
    frozen = ConvNet()
    frozen.body.requires_grad_(False)
    for heavy, expected in ((2e8, "batched"), (0, "channels_last")):
        monkeypatch.setattr(choose, "HEAVY", heavy)
        anil = tr.ANIL(ConvNet(), head="head", steps=1)
        for learner in (anil, tr.MAML(frozen, steps=1), tr.ProtoNet(ConvNet())):
            assert ran(learner, images(), F.cross_entropy) == expected


@pytest.mark.parametrize("frozen", [False, True])
def test_auto_is_loop_where_large_convolutions_of_no_images_adapt(frozen, monkeypatch):
    monkeypatch.setattr(choose, "HEAVY", 0)
    model = nn.Sequential(
        nn.Unflatten(1, (1, 2)), nn.Conv1d(1, 1, 1), nn.Flatten(), nn.Linear(2, 1)
    )
    model[1].requires_grad_(not frozen)
    assert ran(tr.MAML(model, steps=1), regression()) == ("batched" if frozen else "loop")


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("coupled", [False, True])
def test_auto_is_loop_for_masked_tasks_with_layers_that_couple_samples(masked, coupled):
    norm = nn.BatchNorm1d(4) if coupled else nn.LayerNorm(4)
    learner = tr.MAML(nn.Sequential(nn.Linear(2, 4), norm, nn.Linear(4, 1)), steps=1)
    mask = torch.tensor([[True] * 4, [True] * 2 + [False] * 2, [True] * 3 + [False]])
    engine = ran(learner, regression(mask if masked else None))
    assert engine == ("loop" if masked and coupled else "batched")
    # Decided for each batch, not once and for all.
    assert ran(learner, regression()) == "batched"


def test_auto_looks_at_the_mask_of_the_queries_as_well():
    model = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)).double()
    x, y = (torch.randn(3, 4, width, dtype=torch.float64) for width in (2, 1))
    mask = torch.tensor([[True] * 4, [True] * 2 + [False] * 2, [True] * 3 + [False]])
    reg = tr.TRLearner(encoder=tr.InputEncoder(None, dim=2)).double()
    out = reg(tr.MAML(model, steps=1), tr.TaskBatch((x, y), tr.Samples(x, y, mask)))
    assert out.engine == "loop"


@pytest.mark.parametrize(
    ("model", "reason"),
    [(Branching, "data-dependent control flow"), (Recurrent, "Batching rule not implemented")],
)
def test_auto_is_loop_with_one_warning_where_vmap_fails(model, reason: str):
    learner, batch = tr.MAML(model().double(), lr=0.1, steps=2), regression()
    with pytest.warns(UserWarning, match=f"runs this learner with 'loop'.*{reason}") as caught:
        adapted = learner.adapt(batch.support, F.mse_loss)
    assert len(caught) == 1 and "Pass engine='loop' to silence this" in str(caught[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert ran(learner, batch) == adapted.engine == "loop"
    # A second learner is tried anew.
    with pytest.warns(UserWarning, match="runs this learner with 'loop'"):
        tr.MAML(learner.model, lr=0.1, steps=2).adapt(batch.support, F.mse_loss)
    wanted = tr.MAML(learner.model, lr=0.1, steps=2, engine="loop").adapt(batch.support, F.mse_loss)
    x = batch.query.x
    assert_close(adapted(x), wanted(x), **TIGHT)


def test_a_meta_step_warns_once_as_well():
    reg = tr.TRLearner(encoder=tr.InputEncoder(None, dim=2)).double()
    learner = tr.MAML(Branching().double(), steps=1)
    with pytest.warns(UserWarning, match="runs this learner with 'loop'") as caught:
        out = [reg(learner, regression()) for _ in range(2)]
    assert [o.engine for o in out] == ["loop", "loop"] and len(caught) == 1


def test_asking_for_an_engine_that_vmap_cannot_run_raises_vmaps_own_error():
    learner = tr.MAML(Branching().double(), steps=1, engine="batched")
    with pytest.raises(RuntimeError, match="data-dependent control flow"):
        learner.adapt(regression().support, F.mse_loss)


def test_an_error_of_the_users_own_is_no_reason_for_another_engine():
    def broken(predictions: Tensor, targets: Tensor) -> Tensor:
        raise KeyError("mine")

    learner = tr.MAML(nn.Linear(2, 1).double(), steps=1)
    for _ in range(2):  # warnings are errors here, so there was none
        with pytest.raises(KeyError, match="mine"):
            learner.adapt(regression().support, broken)
    assert ran(learner, regression()) == "batched"


# ---- what was asked for -------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["batched", "channels_last", "higher", "loop"])
def test_the_engine_that_was_asked_for_runs_and_is_named(name: str):
    assert ran(tr.MAML(nn.Linear(2, 1), steps=1, engine=name), regression()) == name
    assert ENGINES[name].name == name


def test_an_unknown_engine_is_refused():
    message = (
        r"engine must be 'auto', 'tune' or one of \['batched', .*'higher', 'loop'.*\], got 'warp'"
    )
    with pytest.raises(ValueError, match=message):
        tr.MAML(nn.Linear(2, 1).double(), engine="warp")
    learner = tr.MAML(nn.Linear(2, 1).double())
    learner.engine = "warp"
    with pytest.raises(ValueError, match=message):
        learner.adapt(regression().support, F.mse_loss)


def test_batched_cannot_drop_samples_from_layers_that_couple_them():
    model = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)).double()
    mask = torch.tensor([[True] * 4, [True] * 2 + [False] * 2, [True] * 3 + [False]])
    learner = tr.MAML(model, steps=1, engine="batched")
    with pytest.raises(ValueError, match="engine='batched' cannot drop masked samples .*GroupNorm"):
        learner.adapt(regression(mask).support, F.mse_loss)
    assert len(learner.adapt(regression().support, F.mse_loss)) == 3


# ---- losses under masks -------------------------------------------------------------------------

MASK = torch.tensor([[True] * 4, [True, False, False, False], [True] * 3 + [False]])


def total(predictions: Tensor, targets: Tensor) -> Tensor:
    return (predictions - targets).square().sum()


def test_a_loss_that_masks_would_change_is_refused_by_batched():
    learner = tr.MAML(nn.Linear(2, 1).double(), steps=1, engine="batched")
    for _ in range(2):
        with pytest.raises(ValueError, match=r"must be the mean .* on 8 samples.*engine='loop'"):
            learner.adapt(regression(MASK).support, total)
    assert len(learner.adapt(regression().support, total)) == 3


@pytest.mark.parametrize("engine", ["loop", "higher"])
def test_loops_take_any_loss(engine: str):
    learner = tr.MAML(nn.Linear(2, 1).double(), steps=1, engine=engine)
    assert len(learner.adapt(regression(MASK).support, total)) == 3


def test_one_sample_a_task_is_enough_to_notice():
    x, y = (torch.randn(3, 4, width, dtype=torch.float64) for width in (2, 1))
    batch = tr.TaskBatch((x[:, :1], y[:, :1]), tr.Samples(x, y, MASK))
    reg = tr.TRLearner(encoder=tr.InputEncoder(None, dim=2), loss_fn=total).double()
    with pytest.raises(ValueError, match=r"must be the mean .* on 3 samples"):
        reg(tr.MAML(nn.Linear(2, 1).double(), steps=1, engine="batched"), batch)


def test_a_loss_is_tried_once_for_a_learner():
    calls = []

    def loss_fn(predictions: Tensor, targets: Tensor) -> Tensor:
        calls.append(len(predictions))
        return F.mse_loss(predictions, targets)

    learner = tr.MAML(nn.Linear(2, 1).double(), steps=1, engine="batched")
    counts = []
    for _ in range(2):
        calls.clear()
        learner.adapt(regression(MASK).support, loss_fn)
        counts.append(list(calls))
    assert 8 in counts[0] and 8 not in counts[1] and len(counts[1]) > 0


# ---- no trace -----------------------------------------------------------------------------------


@pytest.mark.parametrize("model", [Branching, Recurrent, None])
@pytest.mark.filterwarnings("ignore:engine='auto' runs this learner with 'loop'")
def test_trying_leaves_the_random_stream_alone(model):
    """With dropout the trial draws; what follows is what the chosen engine would draw alone."""
    drop = nn.Dropout(0.5)
    layer = nn.Linear(2, 1) if model is None else model()
    net = nn.Sequential(drop, layer).double()
    batch = regression()
    found = {}
    for engine in ("auto", "batched" if model is None else "loop"):
        torch.manual_seed(3)
        learner = tr.MAML(net, lr=0.1, steps=2, engine=engine)
        found[engine] = learner.adapt(batch.support, F.mse_loss)(batch.query.x)
        found[engine + " state"] = torch.get_rng_state()
    (auto, auto_state, alone, alone_state) = found.values()
    assert_close(auto, alone, rtol=0.0, atol=1e-12)
    assert torch.equal(auto_state, alone_state)


@pytest.mark.filterwarnings("ignore:engine='auto' runs this learner with 'loop'")
@pytest.mark.parametrize("model", [Branching, lambda: nn.Linear(2, 1)])
def test_without_random_layers_the_random_stream_does_not_move(model):
    batch = regression(MASK)
    torch.manual_seed(3)
    learner = tr.MAML(model().double(), lr=0.1, steps=2)
    before = torch.get_rng_state()
    learner.adapt(batch.support, F.mse_loss)
    assert torch.equal(torch.get_rng_state(), before)


def test_trying_changes_no_buffer_parameter_or_gradient():
    model = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)).double()
    before = {n: t.clone() for n, t in model.state_dict().items()}
    assert ran(tr.MAML(model, steps=1), regression()) == "batched"
    assert {n for n, t in model.state_dict().items() if not torch.equal(t, before[n])} == set()
    assert [p.grad for p in model.parameters()] == [None] * 6


def test_what_is_remembered_of_a_learner_dies_with_it():
    learner = tr.MAML(nn.Linear(2, 1).double(), steps=1)
    learner.adapt(regression(MASK).support, F.mse_loss)
    alive = weakref.ref(learner)
    del learner
    gc.collect()
    assert alive() is None


def test_the_trial_is_repeated_for_another_mode():
    class Picky(nn.Module):
        """Runs under vmap in training mode only."""

        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(2, 1).double()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x) if self.training or x.sum() == x.sum() else x

    learner = tr.MAML(Picky(), steps=1)
    assert ran(learner, regression()) == "batched"
    learner.eval()
    with pytest.warns(UserWarning, match="for 'batched' failed"):
        assert ran(learner, regression()) == "loop"
