"""Language models as their users have them: a dict of tokens and masks in, named outputs out, LoRA or not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.testing import assert_close

import trlearner as tr

transformers = pytest.importorskip("transformers", reason="transformers is not installed")
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:engine='auto' runs this learner with 'loop'"),
]
SMALL = {"vocab_size": 30, "num_labels": 2, "attn_implementation": "eager"}


def bert() -> nn.Module:
    config = transformers.BertConfig(
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=8,
        max_position_embeddings=8,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        **SMALL,
    )
    return transformers.BertForSequenceClassification(config)


def gpt2() -> nn.Module:
    sizes = {"n_embd": 8, "n_layer": 2, "n_head": 2, "n_positions": 8}
    drops = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    ends = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1}
    return transformers.GPT2ForSequenceClassification(
        transformers.GPT2Config(**sizes, **drops, **ends, **SMALL)
    )


HEADS = {bert: "classifier", gpt2: "score"}


def batch() -> tr.TaskBatch:
    """Three tasks of sentences of unequal lengths."""
    g = torch.Generator().manual_seed(0)
    ids = torch.randint(1, 30, (3, 8, 6), generator=g)
    lengths = torch.randint(2, 7, (3, 8, 1), generator=g)
    mask = (torch.arange(6) < lengths).long()
    x, y = {"input_ids": ids * mask, "attention_mask": mask}, torch.arange(8).expand(3, 8) % 2

    def part(some: slice) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        return {name: t[:, some] for name, t in x.items()}, y[:, some]

    return tr.TaskBatch(part(slice(0, 4)), part(slice(4, 8)), ways=2)


def step(learner: tr.Learner, encoder: nn.Module | None = None) -> tr.Output:
    reg = tr.TRLearner(encoder or tr.UpdateEncoder(dim=8), loss_fn=cross_entropy)
    out = reg(learner, batch())
    out.loss.backward()
    return out


def moved(learner: tr.Learner) -> set[str]:
    """The names of what adaptation changed."""
    fast = learner.adapt(batch().support, cross_entropy).fast
    model = dict(learner.model.named_parameters())
    names = {n.removeprefix("model."): t for n, t in fast.items()}
    return {n for n, t in names.items() if (t[0] - model[n]).abs().max() > 0}


@pytest.mark.full
@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize("make", [bert, gpt2])
def test_a_whole_model_adapts(make: Any, first_order: bool) -> None:
    torch.manual_seed(0)
    model = make()
    made = tr.MAML(model, lr=0.1, steps=1, first_order=first_order, output="logits")
    out = step(made)
    assert out.predictions.shape == (3, 4, 2)
    assert model.get_submodule(HEADS[make]).weight.grad.abs().max() > 0
    assert len(moved(made)) > 10


@pytest.mark.full
def test_engines_agree() -> None:
    found = []
    for engine in ("loop", "batched"):
        torch.manual_seed(0)
        model = gpt2().double()
        out = step(tr.MAML(model, lr=0.1, steps=1, engine=engine, output="logits"))
        found.append([out.loss, *(p.grad for p in model.parameters())])
    assert_close(found[0], found[1], rtol=0.0, atol=1e-9)


@pytest.mark.full
@pytest.mark.parametrize("make", [bert, gpt2])
def test_a_part_adapts_by_name(make: Any) -> None:
    torch.manual_seed(0)
    model, head = make(), HEADS[make]
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(head))
    learner = tr.MAML(model, lr=0.1, steps=1, adapts=head, output="logits")
    step(learner)
    only = {name for name, _ in model.named_parameters() if name.startswith(head)}
    assert moved(learner) == only
    assert {name for name, p in model.named_parameters() if p.grad is not None} == only


@pytest.mark.full
def test_the_last_layer_of_bert_is_a_head() -> None:
    torch.manual_seed(0)
    model = bert().double()
    found = []
    for learner in (
        tr.ANIL(model, head="classifier", lr=0.1, steps=2, output="logits"),
        tr.MAML(model, lr=0.1, steps=2, adapts="classifier", output="logits", engine="loop"),
    ):
        model.zero_grad()
        out = step(learner)
        found.append([out.loss, *(p.grad.clone() for p in model.parameters())])
    assert_close(found[0], found[1], rtol=0.0, atol=1e-9)


def test_a_head_that_is_not_last_is_told_what_to_use() -> None:
    learner = tr.ANIL(gpt2(), head="score", steps=1, output="logits")
    with pytest.raises(
        ValueError, match=r"must be the last thing .* tr.MAML\(model, adapts='score'\)"
    ):
        step(learner)
    tied = transformers.GPT2LMHeadModel(gpt2().config)
    with pytest.raises(ValueError, match=r"shared with the body.* tr.MAML\(model, adapts=...\)"):
        tr.ANIL(tied, head="lm_head", output="logits")


@pytest.mark.full
@pytest.mark.parametrize("make", [bert, gpt2])
def test_prototypes_of_sentences(make: Any) -> None:
    """A body without its head, whose pooled or last hidden state describes a sentence."""
    torch.manual_seed(0)
    model = make()
    body, output = (model.bert, "pooler_output") if make is bert else (model.transformer, None)
    call = None if make is bert else lambda m, x: m(**x).last_hidden_state.mean(1)
    mean = tr.LabelledEncoder.for_batch(batch(), dim=4)  # of tokens and masks as they are
    out = step(tr.ProtoNet(body, output=output, call=call), mean)
    assert out.predictions.shape == (3, 4, 2)


@pytest.mark.full
@pytest.mark.parametrize("make", [bert, gpt2])
def test_lora_adapts_alone(make: Any) -> None:
    peft = pytest.importorskip("peft", reason="peft is not installed")
    torch.manual_seed(0)
    targets = ["query"] if make is bert else ["c_attn"]
    fan = {"fan_in_fan_out": make is gpt2}
    config = peft.LoraConfig(
        r=2, target_modules=targets, lora_dropout=0.0, init_lora_weights=False, **fan
    )
    model = peft.get_peft_model(make(), config)
    learner = tr.MAML(model, lr=10.0, steps=1, adapts="*lora*", output="logits")
    step(learner)
    lora = {name for name, _ in model.named_parameters() if "lora" in name}
    assert lora and moved(learner) == lora
    assert {name for name, p in model.named_parameters() if p.grad is not None} == lora
