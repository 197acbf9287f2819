"""The code in the documentation runs, and its learners keep their promises on every engine."""

import contextlib
import pathlib
import re

import contracts
import peer_sources
import pytest
import reference
import torch
from contracts import BATCHED_FIRST, close, later
from torch import nn
from torch.nn.functional import mse_loss
from trlearner.integrations.examples.scripts import SCRIPTS

import trlearner as tr

ROOT = pathlib.Path(__file__).parents[2]
EXACT = 1e-12

pytestmark = pytest.mark.skipif(
    not (ROOT / "docs").is_dir(), reason="the documentation lies beside the sources only"
)


def blocks(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)


def learners() -> dict:
    names: dict = {}
    for block in blocks("docs/learners.md"):
        exec(block, names)
    return names


@pytest.mark.parametrize(
    "page",
    [
        "README.md",
        "docs/doctor.md",
        "docs/learners.md",
        "docs/method.md",
        "docs/models.md",
        "docs/monitor.md",
        "docs/sampler.md",
        *later("docs/when-it-helps.md"),  # remembers a hundred tasks
    ],
)
@pytest.mark.filterwarnings("ignore:.* models are not remembered")  # their learners are not trained
def test_code_blocks_run(page: str, tmp_path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.chdir(tmp_path)
    names: dict = {"__name__": "__main__"}
    torch.manual_seed(0)
    for block in blocks(page):
        exec(compile(block, page, "exec"), names)
    assert "tr" in names


PEERS = ("higher", "learn2learn", "torchopt", "torchmeta", "easyfsl", "lightning")


def peer_of(block: str) -> str:
    """The library that a block is about: the first of `PEERS` that it imports."""
    found = re.findall(r"^(?:import|from) (\w+)", block, re.MULTILINE)
    return next((name for name in found if name in PEERS), "torch")


@pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec.. is deprecated")  # lightning
@pytest.mark.parametrize("peer", ["torch", *PEERS])
def test_plug_in_blocks_run(peer: str, tmp_path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    """Every library's on its own, after the first, if it is to be had."""
    monkeypatch.chdir(tmp_path)
    setup, *others = blocks("docs/plug-in.md")
    chosen = [block for block in others if peer_of(block) == peer]
    assert chosen
    names: dict = {"__name__": "__main__"}
    torch.manual_seed(0)
    exec(compile(setup, "docs/plug-in.md", "exec"), names)
    before = [p.clone() for p in names["net"].parameters()]
    with getattr(peer_sources, peer, contextlib.nullcontext)():
        if not hasattr(peer_sources, peer):
            pytest.importorskip(peer, reason=f"{peer} is not installed")
        for block in chosen:
            exec(compile(block, f"docs/plug-in.md, {peer}", "exec"), names)
    if peer != "torchmeta":  # whose network is its own
        assert not all(map(torch.equal, before, names["net"].parameters()))
    if peer == "lightning":  # whose trainer clears gradients at the end
        assert names["trainer"].global_step == 1
    else:
        # Rounding alone leaves 1e-17 where relations are constant.
        assert names["reg"].relation.weight.grad.norm() > 1e-9


def test_every_plug_in_block_is_run() -> None:
    setup, *others = blocks("docs/plug-in.md")
    assert {peer_of(block) for block in others} == {"torch", *PEERS}
    assert len(others) == len(PEERS) + 2  # in two phases, too
    assert "import trlearner as tr" in setup


def test_the_scripts_lines_are_those_that_are_tried() -> None:
    """tests/integrations/test_integration_peers.py runs them."""
    page = (ROOT / "docs/plug-in.md").read_text("utf-8")
    shown = [
        re.findall(r"^\+ (.*)", block, re.MULTILINE)
        for block in re.findall(r"```diff\n(.*?)```", page, re.DOTALL)
    ]
    scripts = list(SCRIPTS.values())
    assert shown == [
        *([line for edit in script.inside for line in edit.lines] for script in scripts),
        [line for edit in scripts[0].setup for line in edit.lines],
    ]


def test_examples_are_under_thirty_lines() -> None:
    classes = [block for block in blocks("docs/learners.md") if "class " in block]
    assert len(classes) == 2
    for block in classes:
        body = block[block.index("class ") :]
        assert len(body.splitlines()) < 30


@pytest.mark.parametrize("engine", BATCHED_FIRST)
def test_boil_is_maml_with_a_still_head(engine: str) -> None:
    model, batch = contracts.net(), contracts.regression_batch()
    boil = learners()["BOIL"](model, "head", lr=0.3, steps=2, engine=engine)
    maml = tr.MAML(model, lr={"body": 0.3, "head": 0.0}, steps=2, engine=engine)
    x = batch.query.x
    adapted = boil.adapt(batch.support, mse_loss)
    assert set(adapted.fast) == {"model.body.weight", "model.body.bias"}
    close(adapted(x), maml.adapt(batch.support, mse_loss)(x), EXACT)


@pytest.mark.parametrize("engine", BATCHED_FIRST)
def test_cavia_adapts_its_context_by_the_formula(engine: str) -> None:
    model = contracts.net(inputs=contracts.INPUTS + 3)
    batch = contracts.regression_batch()
    cavia = learners()["CAVIA"](model, 3, lr=0.5, steps=2, engine=engine).double()
    params = dict(model.named_parameters())

    def predict(fast: dict, x: torch.Tensor) -> torch.Tensor:
        return reference.mlp(params, torch.cat([x, fast["context"].expand(len(x), -1)], 1))

    start = {"context": torch.zeros(3).double()}
    adapted = cavia.adapt(batch.support, mse_loss)
    expected = [
        reference.adapt(predict, start, ["context"], *s, mse_loss, lambda n, t: 0.5, 2)
        for s, _ in contracts.tasks_of(batch)
    ]
    close(adapted.fast["context"], torch.stack([e["context"] for e in expected]), EXACT)
    wanted = torch.stack([predict(e, x) for e, x in zip(expected, batch.query.x, strict=True)])
    close(adapted(batch.query.x), wanted, EXACT)
    found, truth = (
        torch.autograd.grad(p.square().sum(), list(model.parameters()))
        for p in (adapted(batch.query.x), wanted)
    )
    for a, b in zip(found, truth, strict=True):
        close(a, b, 1e-9)


@pytest.mark.parametrize("engine", BATCHED_FIRST)
@pytest.mark.parametrize("name", ["BOIL", "CAVIA"])
def test_own_learners_work_under_the_regularizer(engine: str, name: str) -> None:
    batch = contracts.regression_batch()
    if name == "BOIL":
        learner = learners()["BOIL"](contracts.net(), "head", lr=0.3, engine=engine)
    else:
        model = contracts.net(inputs=contracts.INPUTS + 3)
        learner = learners()["CAVIA"](model, 3, engine=engine).double()
    torch.manual_seed(0)
    reg = tr.TRLearner(encoder=tr.LabelledEncoder(None, dim=4)).double()
    out = reg(learner, batch)
    assert out.engine == engine
    out.loss.backward()
    trained = [p for p in learner.parameters() if p.requires_grad]
    assert trained
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in trained)
    assert isinstance(learner.model, nn.Module)
