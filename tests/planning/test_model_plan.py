import pytest

from dowser_pl.models.layers import decoder_layers, find_layers
from dowser_pl.planning.model import ASSUMED_TEXT_TOKENS, batch_of, decoder_of, sizes_of
from tests.tiny_models import FAMILIES, tiny_llava


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_tells_its_sizes(family):
    model = FAMILIES[family]().requires_grad_(False)
    tuned = [layer.weight for layer in find_layers(model, None, ["attn", "mlp"]).values()]
    for weight in tuned:
        weight.requires_grad_(True)
    blocks = list(decoder_layers(model))
    sizes = sizes_of(model, blocks, tuned, sum(weight.numel() for weight in tuned) // 10)
    assert sum(sizes.weights.values()) == sum(each.nbytes for each in (*model.parameters(), *model.buffers()))
    assert len(sizes.matrices) == len(tuned) and not sizes.whole
    assert sizes.layer_bytes == max(sum(each.nbytes for each in block.parameters()) for block in blocks)
    decoder = decoder_of(model, blocks, "32-true")
    assert (decoder.layers, decoder.hidden_size, decoder.intermediate_size) == (len(blocks), 32, 48)
    assert (decoder.heads, decoder.query_size, decoder.vocab_size, decoder.itemsize) == (4, 32, 96, 4)
    assert decoder.key_value_size in (16, 32)


class Data:
    batch_size = 6
    max_length = 100


def test_rows_and_tokens_of_a_batch():
    model = tiny_llava(max_position_embeddings=4096)  # four tokens an image
    assert batch_of(model, None, True).tokens == 4 + ASSUMED_TEXT_TOKENS and batch_of(model, None, True).rows == 1
    assert (batch_of(model, Data(), False).rows, batch_of(model, Data(), False).tokens) == (6, 100)
    assert batch_of(model, Data(), False, tokens=700).tokens == 700
    shared = Data()
    shared.split_batches = True
    assert batch_of(model, shared, False, devices=4).rows == 2, "6 rows for 4 devices: one has two"
    assert batch_of(tiny_llava(), None, False).tokens == 128, "the longest text the model takes"


def test_what_is_trained_without_a_mask_is_told_apart():
    model = tiny_llava().requires_grad_(False)
    weight = find_layers(model, 1, ["attn"]).popitem()[1].weight
    head = model.get_output_embeddings().weight
    for each in (weight, head):
        each.requires_grad_(True)
    sizes = sizes_of(model, list(decoder_layers(model)), [weight], 100)
    assert [each.trainable for each in sizes.matrices] == [100]
    assert [each.entries for each in sizes.whole] == [head.numel()]
