"""Every supported family sharded over two ranks: losses, gradients and answers of one process."""

import pytest
import torch

from dowser_pl.distributed.collectives import gather_to_rank_zero
from dowser_pl.distributed.models import run_reduced_grad_hooks
from dowser_pl.distributed.tensors import register_reduced_grad_hook, to_local
from dowser_pl.models.generation import greedy_answers
from dowser_pl.models.layers import find_layers
from tests.distributed.harness import RankError, run
from tests.distributed.sharded import both
from tests.distributed.test_sharded_families import shard
from tests.tiny_experts import EXPERT_FAMILIES
from tests.tiny_models import FAMILIES, IMAGE, tiny_tokenizer


def inputs_of(family):
    """Text; with an image where the model does not run without."""
    tokens = torch.arange(10, 26).view(2, 8)
    inputs = {"input_ids": tokens, "labels": tokens, "attention_mask": torch.ones_like(tokens)}
    if "blip" in family:
        tokens[:, :4] = IMAGE
        inputs["pixel_values"] = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    if "instructblip" in family:
        inputs |= {"qformer_input_ids": tokens[:, 4:], "qformer_attention_mask": torch.ones_like(tokens[:, 4:])}
    if family == "instructblip_t5":
        inputs["decoder_attention_mask"] = inputs["attention_mask"]
    if family.startswith("paligemma"):
        inputs["token_type_ids"] = torch.ones_like(tokens)
    if family == "molmo2":
        inputs["mm_token_type_ids"] = torch.zeros_like(tokens)
    if family == "mllama":  # without one of its layers is left out
        inputs["pixel_values"] = torch.rand(2, 1, 2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
        inputs["aspect_ratio_ids"] = torch.ones(2, 1, dtype=torch.int64)
        inputs["aspect_ratio_mask"] = torch.tensor([[[1, 0]], [[1, 0]]])
        inputs["cross_attention_mask"] = torch.tensor([1, 0]).expand(2, 8, 1, 2).clone()
    return inputs


def stepped(family, kind):
    """Losses of two passes and answers then, and what a matrix' gradients of each are: whole, on the first rank."""
    model, losses, taken = (FAMILIES | EXPERT_FAMILIES)[family]().eval().requires_grad_(False), [], {}
    targets = ["attn", *([] if family in EXPERT_FAMILIES else ["mlp"]), *(["qformer"] if "blip" in family else [])]
    for layer in find_layers(model, None, targets).values():
        layer.weight.requires_grad_(True)
    if kind is not None:
        shard(model, kind)
    layers = find_layers(model, None, targets)
    for name, layer in layers.items():

        def take(weight, name=name):
            taken.setdefault(name, []).append(to_local(weight.grad).flatten())
            weight.grad = None

        register_reduced_grad_hook(layer.weight, take)
    for _ in range(2):
        loss = model(**inputs_of(family), use_cache=False).loss
        losses.append(float(loss.detach()))
        loss.backward()
        run_reduced_grad_hooks(model)
    assert taken.keys() == layers.keys()
    asked = {
        name: value for name, value in inputs_of(family).items() if name not in ("labels", "decoder_attention_mask")
    }
    losses += greedy_answers(model, tiny_tokenizer(), asked, 4)
    return losses, {name: [gather_to_rank_zero(each) for each in taken[name]] for name in sorted(taken)}


def compare_families(kind, families):
    """Names of the families that differ, and how."""
    odd = []
    for family in families:
        (losses, gradients), (its_losses, its_gradients) = stepped(family, None), stepped(family, kind)
        if its_losses[2:] != losses[2:] or its_losses[:2] != pytest.approx(losses[:2], rel=1e-6):
            odd.append(f"{family}: {losses} {its_losses}")
        for name, whole in gradients.items() if torch.distributed.get_rank() == 0 else ():
            for twice, two in zip(whole, its_gradients[name], strict=True):
                one = twice[: twice.numel() // 2]  # each rank had all of it
                if not float((one - two).abs().max()) <= 1e-6 * float(one.abs().max()):
                    odd.append(f"{family}: {name}")
    return odd


@pytest.mark.slow
@both
def test_every_family_steps_as_in_one_process(kind):
    assert run(compare_families, kind, list(FAMILIES), seconds=300) == [[], []]


@pytest.mark.slow
@both
def test_so_do_models_with_experts(kind):
    assert run(compare_families, kind, list(EXPERT_FAMILIES), seconds=300) == [[], []]


def with_a_trained_table(family):
    model = FAMILIES[family]()
    model.get_input_embeddings().weight.requires_grad_(True)
    shard(model, "fsdp2")


def test_a_table_whose_gradient_would_be_missed_is_refused():
    with pytest.raises(RankError, match="got trained embeddings in a Blip2ForConditionalGeneration, expected frozen"):
        run(with_a_trained_table, "blip2")
