"""What TRLearner adds to the MAML scripts of higher, learn2learn and torchopt: our lines and their places."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trlearner.integrations.examples.patch import Difference, Edit, difference, edited, part

REG = (
    "reg = tr.TRLearner(encoder=tr.InputEncoder({}, dim=64), lam=LAM, loss_fn={},",
    "                   align='sinkhorn')",
    "{}.add_param_group({{'params': reg.parameters()}})",
)


def imports(library: str) -> tuple[str, str]:
    return "import trlearner as tr", f"from trlearner.integrations.{library} import adapted"


def regularizer(features: str, loss: str, optimizer: str) -> tuple[str, ...]:
    return REG[0].format(features, loss), REG[1], REG[2].format(optimizer)


@dataclass(frozen=True)
class Script:
    """One library's script, and what TRLearner adds to it.

    Attributes:
        path: In its repository.
        loop: From the line with the first to that with the second: all that happens in a meta-step.
        setup: Our lines elsewhere.
        inside: Our lines in the loop.
        device: What else is changed, with TRLearner or without.
        arguments: Of its command line.
        options: Of its ``main``, given the number of steps.
    """

    path: str
    loop: tuple[str, str]
    setup: tuple[Edit, ...]
    inside: tuple[Edit, ...]
    device: tuple[Edit, ...] = ()
    arguments: tuple[str, ...] = ()
    options: Callable[[int], dict[str, Any]] = lambda steps: {}

    def source(self, root: Path, plugged: bool) -> str:
        """The script as it is run."""
        theirs = (root / self.path).read_text("utf-8")
        ours = (*self.setup, *self.inside) if plugged else ()
        return edited(theirs, (*self.device, *ours))

    def lines(self, root: Path) -> tuple[Difference, Difference]:
        """How the loop differs, and how all of the script does."""
        before, after = self.source(root, False), self.source(root, True)
        loops = part(before, *self.loop), part(after, *self.loop)
        return difference(*loops), difference(before.splitlines(), after.splitlines())


SMALL = ("--task_num", "8", "--k_spt", "1", "--k_qry", "3")

HIGHER = Script(
    "examples/maml-omniglot.py",
    ("def train(", "def test("),
    setup=(
        Edit("import torch.optim as optim", imports("higher")),
        Edit(
            "meta_opt = optim.Adam(",
            ("global reg", *regularizer("net[:-1]", "F.cross_entropy", "meta_opt")),
        ),
    ),
    inside=(
        Edit("meta_opt.zero_grad()", ("tasks = reg.collect(reduction='sum', ways=5)",)),
        Edit(
            "qry_loss.backward()",
            (
                "tasks.add(adapted(fnet), support=(x_spt[i], y_spt[i]), query=(x_qry[i], y_qry[i]), "
                "loss=qry_loss)",
            ),
            "instead",
        ),
        Edit("meta_opt.step()", ("tasks.backward()",), "before"),
    ),
    device=(Edit("device = torch.device('cuda')", ("device = torch.device('cpu')",), "instead"),),
    arguments=SMALL,
)

LEARN2LEARN = Script(
    "examples/vision/maml_omniglot.py",
    ("for iteration in range(", "meta_test_error = 0.0"),
    setup=(
        Edit("import learn2learn as l2l", imports("learn2learn")),
        Edit("loss = nn.CrossEntropyLoss(", regularizer("model.features", "loss", "opt")),
    ),
    inside=(
        Edit("meta_valid_accuracy = 0.0", ("tasks = reg.collect(reduction='sum', ways=ways)",)),
        Edit(
            "evaluation_error.backward()",
            (
                "tasks.add(adapted(learner), support=tuple(t[::2] for t in batch), "
                "query=tuple(t[1::2] for t in batch), loss=evaluation_error)",
            ),
            "instead",
        ),
        Edit("# Average the accumulated gradients", ("tasks.backward()",), "before"),
    ),
    options=lambda steps: {"num_iterations": steps, "cuda": False},
)

TORCHOPT = Script(
    "examples/few-shot/maml_omniglot.py",
    ("def train(", "def test("),
    setup=(
        Edit("import torch.optim as optim", imports("torchopt")),
        Edit(
            "meta_opt = optim.Adam(",
            ("global reg", *regularizer("net[:-1]", "F.cross_entropy", "meta_opt")),
        ),
    ),
    inside=(
        Edit("meta_opt.zero_grad()", ("tasks = reg.collect(ways=5)",)),
        Edit(
            "qry_losses.append(qry_loss)",
            ("tasks.add(adapted(net), support=(x_spt[i], y_spt[i]), query=(x_qry[i], y_qry[i]))",),
        ),
        Edit("qry_losses.backward()", ("(qry_losses + tasks.penalty()).backward()",), "instead"),
    ),
    arguments=SMALL,
)

SCRIPTS = {"higher": HIGHER, "learn2learn": LEARN2LEARN, "torchopt": TORCHOPT}


def sources(name: str) -> Path | None:
    """Where a library was cloned to: ``$TRLEARNER_HIGHER``, ``$TRLEARNER_LEARN2LEARN``, ..."""
    folder = os.environ.get(f"TRLEARNER_{name.upper()}")
    return Path(folder) if folder and (Path(folder) / SCRIPTS[name].path).is_file() else None
