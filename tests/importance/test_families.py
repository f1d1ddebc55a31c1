"""The importance pass runs on every supported family, and no matrix is left out."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from transformers import Blip2Processor, InstructBlipProcessor, MllamaProcessor
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil
from transformers.models.mllama.image_processing_pil_mllama import MllamaImageProcessorPil

from dowser_pl.importance import FACTORS, PRODUCTS, InputGrams, Probe, measure, probing_mode, write_prompts
from dowser_pl.importance.probe import stacked
from dowser_pl.importance.prompts import Prompt, noise_images
from dowser_pl.models.layers import find_layers, text_inputs, text_model
from tests.distributed.test_sharded_steps import inputs_of
from tests.tiny_models import BOS, FAMILIES, IMAGE, tiny_tokenizer

SETTINGS = Probe(num_prompts=4, num_probes=2, num_tokens=12, batch_size=4, seed=1)


def factors_of(model, batch_size: int):
    layers = find_layers(model, None, ["attn", "mlp"])
    text = text_model(model)

    def inputs(tokens, mask):
        return text_inputs(text, tokens, mask)

    with probing_mode(text):
        prompts = write_prompts(text, tiny_tokenizer(), SETTINGS, range(4), text_inputs=inputs)
        settings = replace(SETTINGS, batch_size=batch_size)
        return layers, measure(text, layers, prompts, settings, FACTORS + PRODUCTS, text_inputs=inputs)


@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "mllama"])
def test_every_matrix_gets_factors_whatever_the_batch(family):
    model = FAMILIES[family]().eval()
    layers, together = factors_of(model, 4)
    _, alone = factors_of(model, 1)
    assert set(together.layers) == set(layers)
    for name, layer in layers.items():
        got = together.layers[name]
        assert got["activation"].shape == (4, layer.in_features)
        assert got["abs_gradient"].shape == got["square_gradient"].shape == (4, layer.out_features)
        assert got["token_product"].shape == got["weight_square"].shape == layer.weight.shape
        assert float(got["activation"].min()) >= 0
        for statistic, expected in alone.layers[name].items():
            scale = float(expected.max())
            assert scale > 0
            torch.testing.assert_close(got[statistic], expected, rtol=1e-3, atol=1e-4 * scale)


def with_pictures(model, processor, batch_size, targets=("qformer", "attn", "mlp")):
    layers = find_layers(model, None, targets)
    settings = replace(SETTINGS, batch_size=batch_size, noise_images=True)
    with probing_mode(model):
        prompts = write_prompts(
            model, processor.tokenizer, settings, range(4), lambda part: noise_images(processor, settings, part)
        )
        return layers, prompts, measure(model, layers, prompts, settings, FACTORS + PRODUCTS)


@pytest.mark.parametrize("family", ["instructblip", "blip2"])
def test_pictures_reach_the_qformer(family):
    model, processor = FAMILIES[family]().eval(), blip_processor(family)
    torch.nn.init.normal_(model.query_tokens, generator=torch.Generator().manual_seed(0))  # zeros in a new model
    layers, prompts, together = with_pictures(model, processor, 4)
    _, _, alone = with_pictures(model, processor, 1)
    for prompt in prompts:
        assert prompt.tokens[:4].tolist() == [IMAGE] * 4 and int(prompt.tokens[4]) == BOS
        assert prompt.image["pixel_values"].shape == (1, 3, 16, 16)
    lengths = {int(prompt.image["qformer_attention_mask"].sum()) for prompt in prompts if family == "instructblip"}
    assert len(lengths) > 1 or family == "blip2"  # so that some are padded
    last = "qformer.encoder.layer.1"
    unused = {f"{last}.intermediate.dense", f"{last}.output.dense"} & set(layers)  # nobody reads the last words
    for name, layer in layers.items():
        got = together.layers[name]
        assert got["activation"].shape == (4, layer.in_features)
        assert got["token_product"].shape == got["weight_square"].shape == layer.weight.shape
        for statistic, expected in alone.layers[name].items():
            scale = float(expected.max())
            assert (scale > 0) == (statistic == "activation" or name not in unused), (name, statistic)
            torch.testing.assert_close(got[statistic], expected, rtol=1e-3, atol=1e-4 * scale)


@pytest.mark.parametrize(("family", "later"), [("paligemma2", 1), ("gemma3_vl", 0)])
def test_text_behind_a_picture_is_of_the_type_of_text(family, later):
    """Of PaliGemma's types 0 is what is asked, which sees all of itself, 1 what is answered; Gemma's 1 is an image."""
    types = torch.zeros(1, 3, dtype=torch.int64)
    row = Prompt(torch.tensor([IMAGE, BOS, 20, 30, 40]), image={"token_type_ids": types})
    inputs, _ = stacked([row], torch.device("cpu"), partial(text_inputs, FAMILIES[family]()))
    assert inputs["token_type_ids"].tolist() == [[0, 0, 0, later, later]]


@pytest.mark.parametrize("batch_size", [4, 1])
def test_pictures_reach_the_layers_that_read_them(batch_size):
    """Of every matrix what a pass with hooks alone finds, prompt by prompt, padding tiles and padding left out."""
    model = FAMILIES["mllama"]().eval()
    layers, prompts, _ = with_pictures(model, mllama_processor(), batch_size, ["attn", "mlp"])
    prompts = [replace(prompt, tokens=prompt.tokens[: 14 - row]) for row, prompt in enumerate(prompts)]
    with probing_mode(model):
        measured = measure(model, layers, prompts, replace(SETTINGS, batch_size=batch_size), FACTORS)
    assert any(".cross_attn.k_proj" in name for name in layers)
    for row, prompt in enumerate(prompts):
        assert prompt.tokens.tolist().count(IMAGE) == 1 and prompt.image["aspect_ratio_mask"].tolist() == [[[1, 0]]]
        for name, mean in means_of_inputs(model, layers, prompt).items():
            torch.testing.assert_close(measured.layers[name]["activation"][row], mean, rtol=1e-4, atol=1e-6)


@torch.no_grad()
def means_of_inputs(model, layers, prompt):
    """Of each matrix the mean of |h| over what one prompt shows it; of two tiles the second one is padding."""
    means, length = {}, len(prompt.tokens)

    def watch(name):
        def hook(module, inputs):
            (value,) = inputs
            is_picture = name.endswith(("cross_attn.k_proj", "cross_attn.v_proj"))
            assert len(value) == (2 if is_picture else 1)
            means[name] = value[0].abs().mean(dim=0)

        return hook

    handles = [layer.register_forward_pre_hook(watch(name)) for name, layer in layers.items()]
    sees = torch.tensor([[0, 0]] + [[1, 0]] * (length - 1))[None, :, None]  # none before the picture stands there
    model(input_ids=prompt.tokens[None], **prompt.image | {"cross_attention_mask": sees}, use_cache=False)
    for handle in handles:
        handle.remove()
    return means


@torch.no_grad()
def test_grams_of_pictures_leave_padding_tiles_out():
    """Two rows whose second tile is padding: of what keys and values are made of the first tile of each counts."""
    model, inputs, seen = FAMILIES["mllama"]().eval(), inputs_of("mllama"), {}
    layers = {name: layer for name, layer in find_layers(model, None, ["attn"]).items() if ".cross_attn." in name}
    first = next(layer for name, layer in layers.items() if name.endswith("k_proj"))
    handle = first.register_forward_pre_hook(lambda module, args: seen.update(value=args[0][[0, 2]].flatten(0, 1)))
    with InputGrams(layers) as grams:
        grams.start(inputs["attention_mask"].bool(), inputs=inputs)
        model(**inputs, use_cache=False)
    handle.remove()
    expected = seen["value"].T @ seen["value"] / len(seen["value"])
    for name in layers:
        if name.endswith(("k_proj", "v_proj")):
            torch.testing.assert_close(grams.mean(name), expected)


@torch.no_grad()
def test_grams_of_pictures_leave_padding_pictures_out():
    """A place for a second picture, which the rows do not have, changes nothing: its first tile counts as one there."""
    model, inputs = FAMILIES["mllama"]().eval(), inputs_of("mllama")
    padded = inputs | {
        "pixel_values": torch.cat([inputs["pixel_values"], torch.zeros_like(inputs["pixel_values"])], dim=1),
        "aspect_ratio_ids": torch.cat([inputs["aspect_ratio_ids"], torch.zeros(2, 1, dtype=torch.int64)], dim=1),
        "aspect_ratio_mask": torch.tensor([[[1, 0], [1, 0]]] * 2),  # as the processor has it
        "cross_attention_mask": torch.nn.functional.pad(inputs["cross_attention_mask"], (0, 0, 0, 1)),
    }
    layers = {name: layer for name, layer in find_layers(model, None, ["attn"]).items() if ".cross_attn." in name}
    means = []
    for each in (inputs, padded):
        with InputGrams(layers) as grams:
            grams.start(each["attention_mask"].bool(), inputs=each)
            model(**each, use_cache=False)
        means.append({name: grams.mean(name) for name in layers if name.endswith(("k_proj", "v_proj"))})
    assert means[0]
    torch.testing.assert_close(means[1], means[0])


def mllama_processor():
    images = MllamaImageProcessorPil(size={"height": 16, "width": 16}, max_image_tiles=2)
    return MllamaProcessor(images, tiny_tokenizer())


def test_encoder_decoders_write_after_no_picture():
    model = FAMILIES["instructblip_t5"]().eval()
    with pytest.raises(ValueError, match="noise_images .* encoder-decoder .* set --dowser.probe.noise_images false"):
        with_pictures(model, blip_processor("instructblip"), 4)


def blip_processor(family):
    images = BlipImageProcessorPil(size={"height": 16, "width": 16})
    if family == "blip2":
        return Blip2Processor(images, tiny_tokenizer(names_image=False), num_query_tokens=4)
    words, asked = (tiny_tokenizer(names_image=False) for _ in range(2))
    return InstructBlipProcessor(images, words, asked, num_query_tokens=4)
