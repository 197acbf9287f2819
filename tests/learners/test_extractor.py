"""Feature extractors: whose their parameters are, and what follows for training, saving and moving them."""

import copy
import pathlib
import pickle
import re
import warnings
from collections.abc import Callable
from dataclasses import replace

import contracts
import pytest
import torch
from ranks import Failed, Ranks
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.testing import assert_close

import trlearner as tr
from trlearner.base.functional import below, tensors
from trlearner.distributed import sync_gradients
from trlearner.engines import compiled
from trlearner.learners.extractor import Extractor

EXACT = {"rtol": 0.0, "atol": 0.0}
TIGHT = {"rtol": 0.0, "atol": 1e-9}
WANTS = "want gradients, but belong neither to the learner nor to the regularizer"


class Net(nn.Module):
    def __init__(self, norm: nn.Module | None = None) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Linear(2, 4), norm or nn.Identity(), nn.Tanh())
        self.head = nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def draw(tasks: int = 3, samples: int = 5, width: int = 2) -> Tensor:
    return torch.randn(tasks, samples, width, dtype=torch.float64)


def batch(mask: Tensor | None = None) -> tr.TaskBatch:
    return tr.TaskBatch(tr.Samples(draw(), draw(width=1), mask), (draw(), draw(width=1)))


def names(module: nn.Module) -> list[str]:
    return [name for name, _ in module.named_parameters()]


def foreign_net(norm: bool = False) -> nn.Module:
    """An extractor that is nobody's, with statistics that were updated."""
    net = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4) if norm else nn.Tanh()).double()
    net(torch.randn(50, 2).double())
    return net.eval()


def pair(
    extractor: Callable[[Net], nn.Module], engine: str = "loop", **options: object
) -> tuple[tr.Learner, tr.TRLearner]:
    """A learner, and a regularizer that looks through what `extractor` makes of its model."""
    model = Net().double()
    learner = tr.MAML(model, lr=0.1, steps=2, engine=engine)
    encoder = tr.InputEncoder(extractor(model), dim=4, **options)
    return learner, tr.TRLearner(encoder, lam=0.5, normalize="softmax").double()


def gradients(loss: Tensor, *modules: nn.Module) -> list[Tensor]:
    found = torch.autograd.grad(loss, [p for m in modules for p in m.parameters()])
    return list(found)


# ---- the table of docs/method.md, row by row ----------------------------------------------------


def part_of_the_learner() -> None:
    learner, reg = pair(lambda model: model.features)
    assert names(reg) == ["relation.weight"]
    assert list(reg.state_dict()) == ["_extra_state", "relation.weight"]
    assert not any(m is learner.model.features for m in reg.modules())
    data, found = batch(), []
    for reg.encoder.detach in (False, True):
        found.append(gradients(reg(learner, data).loss, learner.model.features)[0])
    assert (found[0] - found[1]).abs().max() > 1e-4  # the relations train it


def partly_of_the_learner() -> None:
    new = nn.Linear(4, 4).double()
    learner, reg = pair(lambda model: nn.Sequential(model.features, new))
    assert names(reg) == ["relation.weight"]
    with pytest.warns(UserWarning, match=r"the extractor's '1.weight' and 1 more " + WANTS):
        out = reg(learner, batch())
    out.loss.backward()
    assert all(p.grad.abs().max() > 0 for p in (*new.parameters(), *learner.parameters()))
    message = r"own=True makes .*, but its '0.0.weight' and 1 more belong to the learner. Leave own=True out"
    learner, reg = pair(lambda model: nn.Sequential(model.features, new), own=True)
    with pytest.raises(ValueError, match=message):
        reg(learner, batch())


def owned() -> None:
    g = foreign_net(norm=True)
    learner, reg = pair(lambda _: g, own=True)
    mine = [f"encoder.extractor.module.{n}" for n in names(g)]
    assert names(reg) == [*mine, "relation.weight"]
    buffers = [n for n, _ in reg.named_buffers()]
    assert buffers == [f"encoder.extractor.module.{n}" for n, _ in g.named_buffers()]
    assert set(reg.state_dict()) == {"_extra_state", *names(reg), *buffers}
    optimizer = torch.optim.SGD([*learner.parameters(), *reg.parameters()], lr=1.0)
    before = g[0].weight.clone()
    reg(learner, batch()).loss.backward()
    optimizer.step()
    assert (g[0].weight - before).abs().max() > 1e-4


def frozen() -> None:
    g = foreign_net(norm=True).requires_grad_(False)
    learner, reg = pair(lambda _: g)
    assert names(reg) == ["relation.weight"] and list(reg.buffers()) == []
    data, before = batch(), copy.deepcopy(g.state_dict())
    out = reg(learner, data)
    out.loss.backward()
    wanted = g(data.support.x.flatten(0, 1)).unflatten(0, (3, 5)).mean(1)
    assert_close(out.embeddings, wanted, **TIGHT)
    assert all(p.grad is None for p in g.parameters())
    assert all(torch.equal(t, before[n]) for n, t in g.state_dict().items())


def wants_gradients() -> None:
    g = foreign_net()
    learner, reg = pair(lambda _: g)
    assert names(reg) == ["relation.weight"]
    data = batch()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        with torch.no_grad():
            reg(learner, data)
        reg.relate(learner, data)
        assert not seen  # nothing is trained
        out = reg(learner, data)
        reg(learner, data)
    (warning,) = seen  # once
    assert re.search(
        f"'0.weight' and 1 more {WANTS}.* own=True .*requires_grad_", str(warning.message)
    )
    assert warning.filename == __file__
    out.loss.backward()
    assert all(p.grad.abs().max() > 0 for p in g.parameters())  # for an optimizer of your own


def several_processes(two: Ranks) -> None:
    for rank, found in enumerate(two(on_ranks)):
        assert not isinstance(found, Failed), f"rank {rank}: {found.trace}"
        off, foreign_off, together_off, moved = found
        assert off <= 1e-12 and together_off <= 1e-12
        assert foreign_off > 1e-4  # its gradient is of this rank's tasks only
        assert moved == rank  # rank 0's was sent to nobody


def on_ranks(rank: int, size: int) -> tuple[float, float, float, float]:
    """How far gradients are from one process's: an owned extractor's, and a foreign one's."""
    torch.manual_seed(0)
    whole = tr.TaskBatch((draw(4), draw(4, width=1)), (draw(4), draw(4, width=1)))
    mine = whole[2 * rank : 2 * rank + 2]
    g = foreign_net()
    learner, reg = pair(lambda _: g, own=True)
    wanted = gradients(reg(learner, whole).loss, g)
    tr.MetaStep(learner, reg)(mine).loss.backward()
    sync_gradients(learner, reg)
    off = _distance(wanted, g)
    g.zero_grad()
    encoder = tr.InputEncoder(g, dim=4)
    foreign = tr.TRLearner(encoder, lam=0.5, normalize="softmax").double()
    foreign.load_state_dict({n: t for n, t in reg.state_dict().items() if "encoder" not in n})
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*" + WANTS)
        tr.MetaStep(learner, foreign)(mine).loss.backward()
    sync_gradients(learner, foreign)
    alone = _distance(wanted, g)
    sync_gradients(g)
    g.requires_grad_(False)[0].bias.fill_(rank)
    step = tr.MetaStep(learner, foreign)
    assert not any(p is g[0].bias for p in DistributedDataParallel(step).parameters())
    return off, alone, _distance(wanted, g), float(g[0].bias[0])


def _distance(wanted: list[Tensor], module: nn.Module) -> float:
    pairs = zip(wanted, module.parameters(), strict=True)
    return max((w - p.grad).abs().max().item() for w, p in pairs)


KINDS = ("learner", "own", "foreign", "partly")


def graphs(engine: str = "traced", tolerance: float = 1e-9, kinds: tuple[str, ...] = KINDS) -> None:
    """A graph takes a foreign extractor's tensors for inputs: it sees new values, and has their gradient."""
    data, built = batch(), []
    build = compiled.build

    def counting(*args: object, **options: object) -> object:
        built.append(args)
        return build(*args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiled, "build", counting)
        for kind in kinds:
            built.clear()
            g = foreign_net(norm=True)
            extractors = {
                "learner": lambda model: model.features,
                "partly": lambda model: nn.Sequential(model.features, nn.Linear(4, 4).double()),
            }
            learner, reg = pair(extractors.get(kind, lambda _, g=g: g), own=kind == "own")
            if kind in ("foreign", "partly"):
                reg._warned.add(reg.encoder.extractor.concerns(learner)[0])
            module = reg.encoder.extractor.module
            for _ in range(2):
                found = {}
                for name in (engine, "loop"):
                    learner.engine = name
                    out = reg(learner, data)
                    found[name] = [out.loss, out.embeddings, *gradients(out.loss, module)]
                assert_close(found[engine], found["loop"], rtol=0.0, atol=tolerance)
                assert all(t.abs().max() > 0 for t in found["loop"])
                with torch.no_grad():
                    for p in (*module.parameters(), *module.buffers()):
                        p.mul_(2)
            assert len(built) == 1, kind


def own_loop() -> None:
    model = Net().double()
    encoder = tr.InputEncoder(nn.Sequential(model.features, nn.Linear(4, 4).double()), dim=4)
    reg = tr.TRLearner(encoder, lam=0.5).double()
    data, seen = batch(), []
    for _ in range(2):  # without a warning: the loop's optimizer has the model
        tasks = reg.collect()
        for i in range(3):
            fast = {n: p * (1 + 0.1 * i) for n, p in model.named_parameters()}
            tasks.add(
                lambda x, fast=fast: torch.func.functional_call(model, fast, (x,)),
                support=data.support.real(i),
                query=data.query.real(i),
            )
        penalty = tasks.penalty()
        assert tasks.term is not None
        wanted = encoder.extractor.module(data.support.x).mean(1)
        assert_close(tasks.term.embeddings, wanted, **TIGHT)
        assert all(g.abs().max() > 0 for g in gradients(penalty, encoder.extractor.module))
        seen.append(tasks.term.embeddings)
        with torch.no_grad():
            model.features[0].weight.mul_(2)
    assert (seen[0] - seen[1]).abs().max() > 1e-2
    assert names(reg) == ["relation.weight"]


def moved() -> None:
    made = {
        "learner": pair(lambda model: model.features),
        "own": pair(lambda _: foreign_net(), own=True),
        "foreign": pair(lambda _: foreign_net().requires_grad_(False)),
    }
    for kind, (learner, reg) in made.items():
        module = reg.encoder.extractor.module
        reg.float()
        assert (module[0].weight.dtype == torch.float32) == (kind == "own")
        module.train()
        reg.eval()
        assert module.training == (kind != "own")
        module.train()
        learner.eval()
        assert module.training == (kind != "learner")
        learner.float()
        assert (module[0].weight.dtype == torch.float32) == (kind != "foreign")
        data = batch().to(torch.float32)
        if kind != "foreign":
            assert torch.isfinite(reg(learner, data).loss)
            continue
        message = (
            r"'0.weight' is torch.float64 on cpu, but the inputs are torch.float32 .*extractor.to\("
        )
        with pytest.raises(ValueError, match=message):
            reg(learner, data)
        module.to(torch.float32)
        assert torch.isfinite(reg(learner, data).loss)
        module.to("meta")
        with pytest.raises(
            ValueError, match="'0.weight' is torch.float32 on meta, but the inputs are"
        ):
            reg(learner, data)


def saved() -> None:
    data = batch()
    for kind, extractor in {
        "learner": lambda model: model.features,
        "own": lambda _: foreign_net(),
        "foreign": lambda _: foreign_net().requires_grad_(False),
    }.items():
        (learner, reg), (other, again) = (pair(extractor, own=kind == "own") for _ in range(2))
        wanted = reg(learner, data)
        other.load_state_dict(learner.state_dict())
        again.load_state_dict(reg.state_dict())
        off = (again(other, data).embeddings - wanted.embeddings).abs().max()
        assert (off > 1e-2) if kind == "foreign" else (off == 0)
        if kind == "foreign":
            again.encoder.extractor.module.load_state_dict(
                reg.encoder.extractor.module.state_dict()
            )
            assert_close(again(other, data).embeddings, wanted.embeddings, **EXACT)
        for copied in (copy.deepcopy, lambda both: pickle.loads(pickle.dumps(both))):
            twin, twins = copied((learner, reg))
            out = twins(twin, data)
            assert_close(out.loss, wanted.loss, **EXACT)
            out.loss.backward()
            assert names(twins) == names(reg)
            assert all(p.grad is None for p in (*learner.parameters(), *reg.parameters()))
            weight = twins.encoder.extractor.module[0].weight
            assert (weight is twin.model.features[0].weight) == (kind == "learner")
            assert (weight.grad is None) == (kind == "foreign")


ROWS: dict[str, Callable[..., None]] = {
    "a part of the learner": part_of_the_learner,
    "partly a part of the learner": partly_of_the_learner,
    "foreign, `own=True`": owned,
    "foreign and frozen": frozen,
    "foreign, wants gradients": wants_gradients,
    "several processes": several_processes,
    "`compiled`, `traced`": graphs,
    "`collect()`": own_loop,
    "`.to()`, `.eval()`": moved,
    "saved, loaded, copied": saved,
}


@pytest.mark.parametrize("row", ROWS)
def test_row(row: str, request: pytest.FixtureRequest) -> None:
    given = [request.getfixturevalue("two")] if row == "several processes" else []
    ROWS[row](*given)


@pytest.mark.slow
def test_a_compiled_graph_takes_a_foreign_extractor_for_an_input(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    graphs("compiled", tolerance=1e-7, kinds=("foreign",))


def test_the_table_has_these_rows():
    page = pathlib.Path(__file__).parents[2] / "docs" / "method.md"
    if not page.exists():
        pytest.skip("the documentation lies beside the sources only")
    section = page.read_text().split("## Extractors\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| ([^|]*) \|", section, re.MULTILINE)
    assert rows[1:] == list(ROWS)


# ---- what is registered -------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["maml", "metasgd", "anil", "tnet", "protonet", "bayes"])
@pytest.mark.parametrize("part", ["features", "slice", "all"])
def test_a_part_of_the_model_is_the_learners(kind: str, part: str):
    model = Net(nn.BatchNorm1d(4))
    parts = {"features": model.features, "slice": model.features[:2], "all": model}
    encoder = tr.InputEncoder(parts[part], dim=1 if part == "all" else 4)
    learner = {
        "maml": tr.MAML,
        "metasgd": tr.MetaSGD,
        "anil": lambda model: tr.ANIL(model, head="head"),
        "tnet": tr.TNet,
        "protonet": tr.ProtoNet,
        "bayes": lambda model: tr.BayesHead(model, dim=1),
    }[kind](model)
    extractor = encoder.extractor
    assert names(encoder) == list(encoder.state_dict()) == list(encoder.buffers()) == []
    assert extractor.foreign(learner) == {} and extractor.concerns(learner) == []
    shared = extractor.shared(learner)
    assert len(shared) == len(tensors(parts[part])) > 4
    theirs = learner.state()
    assert all(theirs[other] is tensors(parts[part])[name] for name, other in shared.items())


def test_a_weight_that_is_tied_to_the_model_is_the_learners():
    model = Net()
    tied = nn.Linear(2, 4)
    tied.weight = model.features[0].weight
    learner, extractor = tr.MAML(model), Extractor(tied)
    assert extractor.shared(learner) == {"weight": "model.features.0.weight"}
    found = extractor.foreign(learner)
    assert list(found) == ["bias"] and found["bias"] is tied.bias
    assert (
        "the extractor's 'bias' wants gradients, but belongs neither"
        in (extractor.concerns(learner)[0])
    )
    with pytest.raises(ValueError, match=r"its 'weight' belongs to the learner"):
        Extractor(tied, own=True).shared(learner)


def test_without_gradients_inputs_carry_none():
    learner, extractor = tr.MAML(Net()), Extractor(nn.Linear(2, 4))
    with torch.no_grad():
        assert not any(t.requires_grad for t in extractor.foreign(learner).values())
        assert extractor.concerns(learner) == []


def test_foreign_buffers_are_inputs_as_well():
    class Mixed(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner
            self.register_buffer("kept", torch.ones(4))
            self.register_buffer("passing", torch.ones(4), persistent=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x) * self.kept * self.passing

    learner, reg = pair(lambda model: Mixed(model.features).double())
    data = batch()
    state = below("encoder.", reg.prepared(learner, data))
    kept, passing = "extractor.module.kept", "extractor.module.passing"
    assert {n for n in state if n.startswith("extractor.")} == {kept, passing}
    models = contracts.models(learner)
    before = reg.encoder.encode(state, data, models)
    state[passing] = state[passing] * 3
    assert_close(reg.encoder.encode(state, data, models), 3 * before, **TIGHT)


def test_no_extractor_passes_inputs_on():
    extractor, learner = Extractor(None), tr.MAML(nn.Linear(1, 1))
    x = draw()
    assert list(extractor.state_dict()) == []
    models = contracts.models(learner)
    assert_close(extractor.features(models, {}, x), x, **EXACT)
    assert_close(extractor.features(models, {}, x[..., 0]), x[..., :1], **EXACT)
    images = torch.randn(2, 3, 4, 5, 6)
    assert_close(extractor.features(models, {}, images), images.reshape(2, 3, 120), **EXACT)


def test_own_is_an_error_on_a_part_of_the_learner_even_where_the_term_is_skipped():
    learner, reg = pair(lambda model: model.features, own=True)
    reg.lam = 0.0
    with pytest.raises(ValueError, match="its '0.weight' and 1 more belong to the learner"):
        reg(learner, batch())
    with pytest.raises(ValueError, match="its '0.weight' and 1 more belong to the learner"):
        reg.relate(learner, batch())


def test_a_copy_of_the_regularizer_alone_looks_through_a_copy_of_the_model():
    learner, reg = pair(lambda model: model.features)
    data = batch()
    before = reg(learner, data).embeddings
    alone = copy.deepcopy(reg)
    with torch.no_grad():
        learner.model.features[0].weight.mul_(2)
    with pytest.warns(UserWarning, match=WANTS + ".* build the encoder from this learner's model"):
        assert_close(alone(learner, data).embeddings, before, **EXACT)
    assert (reg(learner, data).embeddings - before).abs().max() > 1e-2


def test_an_optimizer_sees_every_parameter_once():
    learner, reg = pair(lambda _: foreign_net(), own=True)
    everything = [*learner.parameters(), *reg.parameters()]
    assert len({id(p) for p in everything}) == len(everything) == 4 + 2 + 1


@pytest.mark.unchecked
@pytest.mark.parametrize("value", [lambda x: x, "features", nn.Linear(2, 4).weight])
def test_an_extractor_must_be_a_module(value: object):
    with pytest.raises(
        TypeError, match="must be an nn.Module or None, got .*wrap it in an nn.Module"
    ):
        tr.InputEncoder(value, dim=4)


# ---- whose parameters are used ------------------------------------------------------------------


def encode(encoder: tr.Encoder, learner: tr.Learner, data: tr.TaskBatch) -> Tensor:
    return encoder.encode(tensors(encoder), data, contracts.models(learner))


def test_gradients_reach_the_right_tensors():
    model, new = Net().double(), nn.Linear(4, 3).double()
    learner = tr.MAML(model)
    mixed = nn.Sequential(model.features, new)
    encoder = tr.InputEncoder(mixed, dim=3)
    data = batch()
    embeddings = encode(encoder, learner, data)
    wanted = mixed(data.support.x.flatten(0, 1)).unflatten(0, (3, 5)).mean(1)
    assert_close(embeddings, wanted, **TIGHT)
    parameters = [*mixed.parameters(), *model.head.parameters()]
    scale = draw(1, 3, 3)[0]
    found = torch.autograd.grad((embeddings * scale).sum(), parameters, allow_unused=True)
    expected = torch.autograd.grad((wanted * scale).sum(), parameters, allow_unused=True)
    assert found[-2:] == expected[-2:] == (None, None)
    assert len(found) == 6 and all(g.abs().max() > 0 for g in found[:-2])
    assert_close(found[:-2], expected[:-2], **TIGHT)


@pytest.mark.parametrize("kind", ["learner", "own", "foreign"])
def test_the_explicit_state_is_what_counts(kind: str):
    """A state that differs from the modules' own tensors is the one that is used."""
    model = Net().double()
    learner = tr.MAML(model)
    module = model.features if kind == "learner" else foreign_net()
    encoder = tr.InputEncoder(module, dim=4, own=kind == "own")
    models = contracts.models(learner)
    state = learner.state() if kind == "learner" else tensors(encoder)
    if kind == "learner":
        models = replace(models, state=state)
    if kind == "foreign":
        foreign = encoder.extractor.foreign(learner)
        state = {f"extractor.module.{name}": t for name, t in foreign.items()}
    key = ("model.features." if kind == "learner" else "extractor.module.") + "0.weight"
    state[key] = state[key].detach() * 3 - 1
    state[key].requires_grad_()
    data = batch()
    own = {} if kind == "learner" else state
    found = encoder.encode(own, data, models)
    bias = module[0].bias
    wanted = torch.tanh(data.support.x @ state[key].T + bias).mean(1)
    assert_close(found, wanted, **TIGHT)
    assert torch.autograd.grad(found.sum(), state[key])[0].abs().max() > 0
    with pytest.raises(RuntimeError, match="appears to not have been used in the graph"):
        torch.autograd.grad(encoder.encode(own, data, models).sum(), module[0].weight)


def test_a_second_learner_around_the_same_model_owns_it_as_well():
    learner, reg = pair(lambda model: model.features)
    assert torch.isfinite(reg(learner, batch()).loss)
    assert torch.isfinite(reg(tr.ANIL(learner.model, head="head"), batch()).loss)
    with pytest.warns(UserWarning, match=WANTS):
        reg(tr.MAML(Net().double()), batch())


def test_tnet_features_are_the_transformed_ones():
    model = Net().double()
    learner = tr.TNet(model, lr=0.1, steps=1, engine="loop").double()
    for p in learner.transforms.parameters():
        p.data += 0.3 * torch.randn_like(p)
    encoder = tr.InputEncoder(model.features, dim=4)
    data = batch()
    layer, transform = model.features[0], learner.transforms["features/0"][0]
    hidden = (data.support.x @ layer.weight.T + layer.bias) @ transform.T
    found = encode(encoder, learner, data)
    assert_close(found, torch.tanh(hidden).mean(1), **TIGHT)
    assert (found - model.features(data.support.x).mean(1)).abs().max() > 1e-2
    gradient = torch.autograd.grad(found.square().sum(), learner.transforms["features/0"])[0]
    assert gradient.abs().max() > 0


@pytest.mark.parametrize("masked", [False, True])
def test_batchnorm_sees_exactly_each_tasks_real_samples(masked: bool):
    model = Net(nn.BatchNorm1d(4)).double()
    learner = tr.MAML(model)
    mask = torch.ones(3, 5, dtype=torch.bool)
    if masked:
        mask[0, 3:] = mask[1, 0] = False
    data = batch(mask if masked else None)
    found = encode(tr.InputEncoder(model.features, dim=4), learner, data)
    plain = copy.deepcopy(model.features)
    wanted = torch.stack([plain(data.support.real(i)[0]).mean(0) for i in range(3)])
    assert_close(found, wanted, **TIGHT)
    together = plain(data.support.x.flatten(0, 1)).unflatten(0, (3, 5)).mean(1)
    assert (found - together).abs().max() > 1e-2
    assert model.features[1].num_batches_tracked == 0


def test_batchnorm_in_evaluation_mode_uses_its_statistics():
    model, new = Net().double(), nn.BatchNorm1d(4).double()
    learner, data = tr.MAML(model, engine="loop"), batch()
    encoder = tr.InputEncoder(nn.Sequential(model.features, new), dim=4)
    reg = tr.TRLearner(encoder=encoder).double()
    new.requires_grad_(False).eval()
    assert model.features.training
    with pytest.raises(
        ValueError, match=r"^extractor\.1: evaluation mode needs running statistics"
    ):
        reg(learner, data)
    new.train()
    new(draw(1, 20, 4)[0])
    new.eval()
    assert torch.isfinite(reg(learner, data).loss)
    wanted = new(model.features(data.support.x.flatten(0, 1))).unflatten(0, (3, 5)).mean(1)
    assert_close(encode(encoder, learner, data), wanted, **TIGHT)


def test_convolutions_are_flattened():
    module = nn.Conv2d(1, 2, 3).double()
    x = torch.randn(2, 3, 1, 5, 6, dtype=torch.float64)
    encoder = tr.InputEncoder(module, dim=24)
    learner = tr.MAML(nn.Linear(1, 1))
    y = torch.zeros(2, 3, 1, dtype=torch.float64)
    found = encode(encoder, learner, tr.TaskBatch((x, y), (x, y)))
    wanted = torch.stack([F.conv2d(t, module.weight, module.bias).mean(0).flatten() for t in x])
    assert_close(found, wanted, **TIGHT)
