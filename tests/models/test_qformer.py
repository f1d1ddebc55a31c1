"""The Q-Former as a target, and which positions its matrices read."""

import pytest
import torch

from dowser_pl.models.layers import find_blocks, find_layers
from dowser_pl.models.qformer import positions_read, qformer_layers
from tests.tiny_models import FAMILIES, IMAGE, tiny_instructblip, tiny_llava

ATTENTION_KINDS = ("attention", "crossattention")
ATTENTION = [
    f"{kind}.{name}"
    for kind in ATTENTION_KINDS
    for name in ("attention.query", "attention.key", "attention.value", "output.dense")
]
WORDS, QUERIES = ["intermediate.dense", "output.dense"], ["intermediate_query.dense", "output_query.dense"]
OF_LAYER = {"instructblip": [*ATTENTION, *WORDS, *QUERIES], "blip2": [*ATTENTION, *QUERIES]}


@pytest.mark.parametrize("family", OF_LAYER)
def test_every_matrix_of_the_qformer(family):
    model = FAMILIES[family]()
    found = find_layers(model, None, ["qformer"])
    expected = {f"qformer.encoder.layer.{number}.{name}" for number in (0, 1) for name in OF_LAYER[family]}
    assert set(found) == expected
    assert all(model.get_submodule(name) is module for name, module in found.items())
    assert list(found) == [name for name, _ in model.named_modules() if name in found]
    blocks = find_blocks(model, found)
    assert all(block == ".".join(name.split(".")[:4]) for name, block in blocks.items())


def test_named_ones_and_the_decoder_beside_them():
    model = tiny_instructblip()
    found = find_layers(model, 1, ["qformer.crossattention.attention.query", "q_proj"])
    assert list(found) == [
        "qformer.encoder.layer.0.crossattention.attention.query",
        "qformer.encoder.layer.1.crossattention.attention.query",
        "language_model.model.layers.2.self_attn.q_proj",
    ]
    assert set(find_layers(model, None, ["qformer.query"])) == {
        f"qformer.encoder.layer.{number}.{kind}.attention.query" for number in (0, 1) for kind in ATTENTION_KINDS
    }
    whole = find_layers(model, None, ["attn", "mlp", "qformer"])
    assert set(whole) == {*find_layers(model, None, ["attn", "mlp"]), *find_layers(model, None, ["qformer"])}


def test_what_is_not_there_is_refused():
    with pytest.raises(ValueError, match=r"\['qformer'\] match no matrix to tune in LlavaForConditionalGeneration"):
        find_layers(tiny_llava(), None, ["attn", "qformer"])
    with pytest.raises(ValueError, match=r"\['qformer.up_proj'\] match no .* 'qformer.intermediate_query.dense'"):
        find_layers(tiny_instructblip(), None, ["qformer.up_proj"])
    with pytest.raises(ValueError, match="expected null, as it counts layers of the text decoder"):
        find_layers(tiny_instructblip(), 2, ["qformer"])
    assert qformer_layers(tiny_llava()) == {}


def inputs_of(model, instruction, mask, rows=2):
    """What the matrices of the Q-Former take in."""
    taken = {}
    handles = [
        layer.register_forward_pre_hook(lambda module, given, name=name: taken.update({name: given[0]}))
        for name, layer in find_layers(model, None, ["qformer"]).items()
    ]
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        model(
            input_ids=torch.tensor([[*[IMAGE] * 4, 7, 8, 9]] * rows),
            attention_mask=torch.ones(rows, 7, dtype=torch.int64),
            pixel_values=torch.randn(rows, 3, 16, 16, generator=generator),
            qformer_input_ids=instruction,
            qformer_attention_mask=mask,
        )
    for handle in handles:
        handle.remove()
    return taken


def test_positions_are_those_that_padding_does_not_reach():
    """Other words where the padding is change what is made of the padding, and of nothing else."""
    model = tiny_instructblip().eval()
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    words = torch.tensor([[7, 8, 9, 10, 11], [12, 13, 14, 15, 16]])
    one = inputs_of(model, words, mask)
    two = inputs_of(model, torch.where(mask == 0, 40, words), mask)
    assert len(one) == 24
    for name, value in one.items():
        read = positions_read(name, value.shape[1], mask)
        read = torch.ones(value.shape[:2], dtype=torch.bool) if read is None else read
        assert read.shape == value.shape[:2]
        same = ((value - two[name]).abs() < 1e-6).all(dim=-1)
        assert torch.equal(read, same), name


def test_one_without_words_reads_all():
    model = FAMILIES["blip2"]()
    assert all(positions_read(name, 4, None) is None for name in find_layers(model, None, ["qformer"]))
