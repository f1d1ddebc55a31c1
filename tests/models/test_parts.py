"""Parts that may be trained in full: together with the layers they make up the model, and never overlap."""

import pytest
import torch
from torch import nn

from dowser_pl.models.layers import find_layers, text_inputs, text_model
from dowser_pl.models.parts import PARTS, named_part
from tests.tiny_models import FAMILIES, TEXT_FAMILIES, tiny_llava, tiny_paligemma

TIED = {"paligemma", "paligemma2", "gemma3_vl", "instructblip_t5", "blip2", "gemma2", "gemma3"}
# What each projector is made of, as it stands in the parameters' names.
PROJECTORS = {
    "llava": {"model.multi_modal_projector"},
    "llava_next": {"model.multi_modal_projector", "model.image_newline"},
    "llava_onevision": {"model.multi_modal_projector", "model.image_newline"},
    "qwen2_5_vl": {"model.visual.merger"},
    "qwen3_vl": {"model.visual.merger", "model.visual.deepstack_merger_list"},
    "internvl": {"model.multi_modal_projector"},
    "idefics3": {"model.connector"},
    "smolvlm": {"model.connector"},
    "paligemma": {"model.multi_modal_projector"},
    "nvila": {"model.multi_modal_projector"},
    "qwen2_vl": {"model.visual.merger"},
    "gemma3_vl": {"model.multi_modal_projector"},
    "paligemma2": {"model.multi_modal_projector"},
    "mistral3": {"model.multi_modal_projector"},
    "mllama": {"model.multi_modal_projector"},
    "llava_phi3": {"model.multi_modal_projector"},
    "molmo2": {"model.multi_modal_projector"},
    "glm4v": {"model.visual.merger"},
    "minicpmv": {"model.merger"},
    "instructblip": {"query_tokens", "qformer", "language_projection"},
    "instructblip_t5": {"query_tokens", "qformer", "language_projection"},
    "blip2": {"query_tokens", "qformer", "language_projection"},
}


@pytest.mark.parametrize("family", FAMILIES)
def test_parts_and_layers_make_up_the_model(family: str) -> None:
    model = FAMILIES[family]()
    lacking = {"lm_head"} if family in TIED else set()
    lacking |= {"projector", "vision"} if family in TEXT_FAMILIES else set()
    parts = [set(named_part(model, part)) for part in PARTS if part not in lacking]
    layers = find_layers(model, None, ["attn", "mlp"])
    matrices = {f"{name}.{kind}" for name in layers for kind, _ in layers[name].named_parameters()}
    together = set().union(*parts, matrices)

    assert sum(len(names) for names in [*parts, matrices]) == len(together)  # nothing twice
    rest = {name for name, _ in model.named_parameters()} - together
    beside = {
        "instructblip_t5": ("language_model.encoder.", "relative_attention_bias"),
        "mllama": ("cross_attn_attn_gate", "cross_attn_mlp_gate"),
        "minicpmv": ("linear_attn.A_log", "linear_attn.dt_bias", "linear_attn.conv1d"),
    }
    assert all(any(part in name for part in beside[family]) for name in rest)
    assert bool(rest) == (family in beside)


@pytest.mark.parametrize("part", ["projector", "vision"])
def test_models_of_text_alone_have_no_sight(part: str) -> None:
    with pytest.raises(ValueError, match=r"cannot find the vision tower of LlamaForCausalLM. Fix: leave it frozen"):
        named_part(FAMILIES["llama"](), part)


@pytest.mark.parametrize("family", [name for name in FAMILIES if name in PROJECTORS])
def test_projector(family: str) -> None:
    names = named_part(FAMILIES[family](), "projector")
    owners = {owner for owner in PROJECTORS[family] for name in names if name.startswith(owner)}
    assert owners == PROJECTORS[family]
    assert all(name.startswith(tuple(owners)) for name in names)


def test_parts_of_llava() -> None:
    model = tiny_llava()
    assert list(named_part(model, "lm_head")) == ["lm_head.weight"]
    assert list(named_part(model, "embeddings")) == ["model.language_model.embed_tokens.weight"]
    assert len(named_part(model, "norms")) == 2 * 3 + 1
    assert all(name.startswith("model.vision_tower.") for name in named_part(model, "vision"))
    assert named_part(model, "lm_head")["lm_head.weight"] is model.lm_head.weight


def test_tied_head_is_refused() -> None:
    with pytest.raises(ValueError, match=r"lm_head is absent or tied .* name 'embeddings' to train both"):
        named_part(tiny_paligemma(), "lm_head")


def test_unknown_part_is_refused() -> None:
    with pytest.raises(ValueError, match=r"got the part 'head', expected one of \['projector', 'lm_head'"):
        named_part(tiny_llava(), "head")


def test_unknown_module_beside_the_projector_is_refused() -> None:
    model = tiny_llava()
    model.model.audio_tower = nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"cannot tell what model.audio_tower.weight"):
        named_part(model, "projector")


def test_part_that_is_missing() -> None:
    model = tiny_llava()
    model.model.multi_modal_projector = nn.Identity()
    with pytest.raises(ValueError, match=r"LlavaForConditionalGeneration, which has no projector"):
        named_part(model, "projector")


@pytest.mark.parametrize("family", FAMILIES)
def test_text_model_is_the_smallest_that_writes(family: str) -> None:
    model = FAMILIES[family]()
    expected = model.get_submodule("language_model") if "blip" in family else model
    assert text_model(model) is expected


def test_model_without_a_head() -> None:
    with pytest.raises(ValueError, match=r"got LlavaModel without a head"):
        text_model(tiny_llava().model)


@pytest.mark.parametrize("family", FAMILIES)
def test_text_does_not_see_padding(family: str) -> None:
    model = text_model(FAMILIES[family]())
    words = torch.tensor([[20, 30, 40]])
    padded = torch.tensor([[0, 0, 20, 30, 40], [15, 25, 20, 30, 40]])
    options = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
    alone = model.generate(**text_inputs(model, words, torch.ones_like(words)), **options)
    batch = model.generate(**text_inputs(model, padded, (padded != 0).long()), **options)
    assert torch.equal(batch[0, -4:], alone[0, -4:])


@pytest.mark.parametrize("family", FAMILIES)
def test_text_does_not_see_its_future(family: str) -> None:
    model = text_model(FAMILIES[family]())
    words, others = torch.tensor([[20, 30, 40]]), torch.tensor([[20, 30, 50]])
    if model.config.is_encoder_decoder:
        first, second = (model(input_ids=words, decoder_input_ids=text).logits for text in (words, others))
    else:
        first, second = (model(**text_inputs(model, text, torch.ones_like(text))).logits for text in (words, others))
    torch.testing.assert_close(first[:, :2], second[:, :2])
    assert not torch.allclose(first[:, 2], second[:, 2])
