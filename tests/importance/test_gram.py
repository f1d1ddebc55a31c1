import pytest
import torch
from torch import nn
from torch.nn.functional import pad
from transformers import PreTrainedModel

from dowser_pl.importance import InputGrams
from dowser_pl.models.layers import find_layers
from tests.tiny_models import IMAGE, tiny_instructblip, tiny_llava


def batches(rows=3, seed=0):
    """Two batches of text, the second left-padded."""
    generator = torch.Generator().manual_seed(seed)
    for padded in (0, 2):
        tokens = torch.randint(8, 90, (rows, 6), generator=generator)
        mask = torch.ones_like(tokens)
        mask[0, :padded] = 0
        yield {"input_ids": tokens, "attention_mask": mask}


def inputs_of(model, layers, batch):
    inputs = {}
    handles = [
        layer.register_forward_hook(lambda module, given, output, name=name: inputs.update({name: given[0]}))
        for name, layer in layers.items()
    ]
    with torch.no_grad():
        model(**batch)
    for handle in handles:
        handle.remove()
    return inputs


def naive(model: PreTrainedModel, layers):
    """Token by token, in float64, from inputs that ordinary hooks hand over."""
    sums = {name: torch.zeros(layer.in_features, layer.in_features).double() for name, layer in layers.items()}
    count = 0
    for batch in batches():
        inputs = inputs_of(model, layers, batch)
        for row, position in batch["attention_mask"].nonzero().tolist():
            count += 1
            for name, value in inputs.items():
                h = value[row, position].double()
                sums[name] += torch.outer(h, h)
    return {name: total / count for name, total in sums.items()}


def measured(model, layers, **options):
    with torch.no_grad(), InputGrams(layers) as grams:
        for batch in batches():
            grams.start(batch["attention_mask"].bool())
            with torch.autocast("cpu", **options):
                model(**batch)
    return grams


@pytest.fixture(scope="module")
def model():
    return tiny_llava()


@pytest.fixture(scope="module")
def layers(model):
    return find_layers(model, None, ["attn", "mlp"])


def test_against_a_loop_over_tokens(model, layers):
    grams, expected = measured(model, layers, enabled=False), naive(model, layers)
    for name in layers:
        assert grams.mean(name).dtype == torch.float32
        torch.testing.assert_close(grams.mean(name), expected[name].float(), rtol=1e-4, atol=1e-5)
    assert set(grams.counts.values()) == {2 * 18 - 2}
    # q, k and v share one sum, gate and up another; with o and down four for each layer
    assert len(layers) == 21 and len(grams.sums) == 12
    assert not any(layer._forward_pre_hooks for layer in layers.values())


def test_padding_counts_where_no_mask_is_given(model, layers):
    with torch.no_grad(), InputGrams(layers) as grams:
        for batch in batches():
            grams.start(None)
            model(**batch)
    assert set(grams.counts.values()) == {36}


def test_sums_are_float32_under_autocast(model, layers):
    grams, exact = measured(model, layers, dtype=torch.bfloat16), measured(model, layers, enabled=False)
    for name in layers:
        assert grams.mean(name).dtype == torch.float32
        scale = float(exact.mean(name).abs().max())
        torch.testing.assert_close(grams.mean(name) / scale, exact.mean(name) / scale, rtol=0, atol=0.05)


def test_two_halves_add_up(model, layers):
    """As they must where several processes measure."""
    whole = measured(model, layers, enabled=False)
    parts = []
    for batch in batches():
        with torch.no_grad(), InputGrams(layers) as grams:
            grams.start(batch["attention_mask"].bool())
            model(**batch)
        parts.append(grams)
    for name, total in whole.sums.items():
        assert whole.counts[name] == sum(part.counts[name] for part in parts)
        torch.testing.assert_close(sum(part.sums[name] for part in parts), total)


def test_a_matrix_that_saw_nothing_is_named():
    linear = nn.Linear(2, 2)
    with pytest.raises(ValueError, match="lonely took in no token"):
        InputGrams({"lonely": linear}).mean("lonely")
    with torch.no_grad(), InputGrams({"lonely": linear}) as grams:
        grams.start(torch.zeros(1, 3, dtype=torch.bool))
        linear(torch.ones(1, 3, 2))
    with pytest.raises(ValueError, match="lonely took in no token"):
        grams.mean("lonely")


def test_inputs_that_are_shared_only_now_and_then_are_refused():
    one, two = nn.Linear(2, 2), nn.Linear(2, 2)
    value = torch.ones(1, 3, 2)
    with torch.no_grad(), InputGrams({"one": one, "two": two}) as grams:
        grams.start(None)
        one(value), two(value)
        assert torch.equal(grams.mean("one"), grams.mean("two"))
        with pytest.raises(ValueError, match="two shares its input with one in one batch and with two in another"):
            one(value), two(value + 1)


def test_rows_that_were_flattened_are_told_apart_by_the_mask():
    """As OPT hands them to its MLP."""
    linear = nn.Linear(2, 2)
    values = torch.arange(12.0).view(2, 3, 2)
    mask = torch.tensor([[False, True, True], [True, False, True]])
    with torch.no_grad(), InputGrams({"m": linear}) as grams:
        grams.start(mask)
        linear(values.view(6, 2))
    expected = sum(torch.outer(h, h) for h in values[mask]) / 4
    assert torch.equal(grams.mean("m"), expected)


def test_the_qformer_counts_its_own_positions():
    """As every row alone, unpadded; also where instructions are as long as texts, or as the queries are many."""
    model = tiny_instructblip().eval()
    layers = find_layers(model, None, ["qformer", "attn", "mlp"])
    for lengths in ((3, 7), (2, 4), (5, 1)):  # of texts behind 4 queries, and of instructions
        together, alone = InputGrams(layers), InputGrams(layers)
        rows = [blip_row(seed, *(max(1, length - seed) for length in lengths)) for seed in (0, 1)]
        longest = {name: max(row[name].shape[1] for row in rows) for name in rows[0] if name != "pixel_values"}
        padded = [
            {n: pad(v, (0, longest[n] - v.shape[1])) if n in longest else v for n, v in row.items()} for row in rows
        ]
        both = {name: torch.cat([row[name] for row in padded]) for name in padded[0]}
        for grams, batches in ((together, [both]), (alone, rows)):
            with torch.no_grad(), grams:
                for batch in batches:
                    grams.start(batch["attention_mask"].bool(), inputs=batch)
                    model(**batch)
        for name in layers:
            torch.testing.assert_close(together.mean(name), alone.mean(name), rtol=1e-4, atol=1e-6)
        counted = {
            name.rpartition("layer.0.")[2]: count for name, count in together.counts.items() if "layer.0" in name
        }
        words = sum(int(row["qformer_attention_mask"].sum()) for row in rows)
        assert counted["attention.attention.query"] == 2 * 4 + words
        assert counted["intermediate.dense"] == counted["output.dense"] == words
        assert counted["intermediate_query.dense"] == counted["crossattention.attention.query"] == 2 * 4
        assert counted["crossattention.attention.key"] == 2 * 5  # patches and the class token


def blip_row(seed, text, instruction):
    generator = torch.Generator().manual_seed(seed)
    words, asked = (torch.randint(8, 90, (1, length), generator=generator) for length in (text, instruction))
    tokens = torch.cat([torch.full((1, 4), IMAGE), words], dim=1)
    return {
        "input_ids": tokens,
        "attention_mask": torch.ones_like(tokens),
        "qformer_input_ids": asked,
        "qformer_attention_mask": torch.ones_like(asked),
        "pixel_values": torch.randn(1, 3, 16, 16, generator=generator),
    }
