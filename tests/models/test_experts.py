"""Mixtures of experts: what stays frozen whole, what may be tuned beside it, and the refusal of what reaches it."""

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from dowser_pl.errors import DowserError
from dowser_pl.models.experts import has_experts, of_experts
from dowser_pl.models.layers import decoder_layers, find_layers
from dowser_pl.models.loading import load_model, skeleton
from dowser_pl.models.names import saved_names
from dowser_pl.planning.model import decoder_of, sizes_of
from tests.tiny_experts import EXPERT_FAMILIES
from tests.tiny_models import FAMILIES, tiny_llava

HALVES = {f"experts.{name}" for name in ("gate_up_proj", "gate_proj", "up_proj", "down_proj")}
# Family -> first decoder layer with experts, their block, and what of it is frozen.
EXPECTED = {
    "qwen3_moe": (0, "mlp", {"gate", *HALVES}),
    "qwen3_vl_moe": (0, "mlp", {"gate", *HALVES}),
    "llava_mixtral": (0, "mlp", {"gate", *HALVES}),
    "olmoe": (0, "mlp", {"gate", *HALVES}),
    "qwen2_moe": (1, "mlp", {"gate", "shared_expert_gate", *HALVES}),
    "llama4": (1, "feed_forward", {"router", *HALVES}),
    "gemma4_moe": (0, "", {"router.proj", *HALVES}),
}


@pytest.mark.parametrize("family", EXPERT_FAMILIES)
def test_experts_and_routers_are_frozen_and_nothing_else(family):
    first, block, frozen = EXPECTED[family]
    layers = decoder_layers(EXPERT_FAMILIES[family]())
    for index, layer in enumerate(layers):
        expected = {f"{block}.{name}" if block else name for name in frozen} if index >= first else set()
        assert set(of_experts(layer)) == expected
        assert has_experts(layer) == (index >= first)


@pytest.mark.parametrize("family", EXPERT_FAMILIES)
def test_attention_is_found_beside_experts(family):
    model = EXPERT_FAMILIES[family]()
    found = find_layers(model, None, ["attn"])
    expected = [n for n, each in model.named_modules() if isinstance(each, nn.Linear) and ".self_attn." in n]
    assert list(found) == [name for name in expected if "vi" not in name.split(".")[1]]
    assert len(found) == 12


@pytest.mark.parametrize("family", EXPERT_FAMILIES)
@pytest.mark.parametrize("target", ["mlp", "down_proj", "gate_proj", "gate_up_proj", "experts.up_proj"])
def test_targets_that_reach_experts_are_refused_with_what_there_is(family, target):
    model = EXPERT_FAMILIES[family]()
    with pytest.raises(DowserError, match=rf"of which \['{target}'\] reach the mixture of experts at .*experts, exp"):
        find_layers(model, None, ["attn", target])
    with pytest.raises(DowserError, match=r"Fix: --model.targets '\[attn\]', or more of \['attn', 'q_proj', "):
        find_layers(model, 1, [target])


@pytest.mark.parametrize(
    ("family", "router"), [("qwen3_moe", "gate"), ("llama4", "router"), ("qwen2_moe", "shared_expert_gate")]
)
def test_routers_are_refused(family, router):
    with pytest.raises(DowserError, match=rf"of which \['{router}'\] reach the mixture"):
        find_layers(EXPERT_FAMILIES[family](), None, [router])


def test_what_every_token_passes_is_found_by_name():
    model = EXPERT_FAMILIES["qwen2_moe"]()
    shared = find_layers(model, None, ["shared_expert.down_proj"])
    assert list(shared) == [f"model.layers.{index}.mlp.shared_expert.down_proj" for index in (1, 2)]
    assert list(find_layers(model, None, ["mlp.down_proj"])) == ["model.layers.0.mlp.down_proj"]
    with pytest.raises(DowserError, match=r"'o_proj', 'shared_expert.gate_proj', 'shared_expert.up_proj', 'shared_ex"):
        find_layers(model, None, ["mlp"])


def test_layers_below_the_tuned_ones_may_have_experts_and_those_above_none():
    model = EXPERT_FAMILIES["qwen2_moe"]()
    model.model.layers[2].mlp = model.model.layers[0].mlp
    with pytest.raises(DowserError, match=r"experts at model.layers.1"):
        find_layers(model, 2, ["mlp"])
    model.model.layers[2].mlp = type(model.model.layers[0].mlp)(model.config, 48)
    assert list(find_layers(model, 1, ["mlp"])) == [
        f"model.layers.2.mlp.{name}_proj" for name in ("gate", "up", "down")
    ]


def test_experts_in_a_list_are_found_too():
    model = tiny_llava()
    last = model.model.language_model.layers[2]
    experts = nn.ModuleList([type(last.mlp)(last.mlp.config) for _ in range(2)])
    last.mlp = nn.ModuleDict({"router": nn.Linear(32, 2), "experts": experts})
    assert len(find_layers(model, 1, ["attn"])) == 4
    for target in ("mlp", "up_proj", "experts.1.up_proj", "router"):
        with pytest.raises(DowserError, match=r"mixture of experts at model.language_model.layers.2.mlp.experts"):
            find_layers(model, 1, [target])


def test_attention_that_has_experts_is_reached_by_its_kind():
    model = tiny_llava()
    attention = model.model.language_model.layers[1].self_attn
    attention.experts = nn.Module()
    attention.experts.weight = nn.Parameter(torch.zeros(2, 3, 3))
    with pytest.raises(DowserError, match=r"\['attn'\] reach .*1.self_attn.experts, .* Fix: --model.targets '\[gate_"):
        find_layers(model, None, ["attn"])
    assert len(find_layers(model, None, ["mlp"])) == 9


@pytest.mark.parametrize("read", [load_model, skeleton], ids=["loaded", "skeleton"])
@pytest.mark.parametrize("quantization", ["4bit", "8bit"])
def test_stacks_that_would_stay_unpacked_are_refused(read, quantization, tmp_path):
    EXPERT_FAMILIES["qwen3_moe"]().save_pretrained(tmp_path)
    with pytest.raises(DowserError, match=rf"got quantization='{quantization}' for Qwen3Moe.*, 69% of whose weights"):
        read(str(tmp_path), quantization=quantization)


@pytest.mark.parametrize("family", EXPERT_FAMILIES)
def test_what_is_tuned_beside_experts_has_one_name_in_the_files(family, tmp_path):
    model = EXPERT_FAMILIES[family]()
    model.save_pretrained(tmp_path)
    written, names = load_file(tmp_path / "model.safetensors"), saved_names(model)
    for name, layer in find_layers(model, None, ["attn"]).items():
        assert torch.equal(written[names[f"{name}.weight"]], layer.weight)


@pytest.mark.parametrize("family", EXPERT_FAMILIES)
def test_experts_are_weights_of_the_plan(family):
    model = EXPERT_FAMILIES[family]().requires_grad_(False)
    blocks, tuned = list(decoder_layers(model)), [each.weight for each in find_layers(model, None, ["attn"]).values()]
    sizes = sizes_of(model, blocks, tuned, 100)
    assert sum(sizes.weights.values()) == sum(each.nbytes for each in (*model.parameters(), *model.buffers()))
    assert len(sizes.matrices) == len(tuned) and not sizes.whole
    wide = {
        "llava_mixtral": 2 * 48,
        "olmoe": 2 * 48,
        "qwen2_moe": 2 * 16 + 24,  # with the shared expert
        "llama4": 48 + 48,
        "gemma4_moe": 2 * 16 + 48,  # with the dense MLP beside the experts
    }
    assert decoder_of(model, blocks, "32-true").intermediate_size == wide.get(family, 48)  # of dense layers


def test_layers_of_layers_are_refused_whatever_the_target():
    model = tiny_llava()
    layers = decoder_layers(model)
    layers[1].both = nn.ModuleList([type(layers[0])(model.config.text_config, 0) for _ in range(2)])
    for target in ("attn", "mlp"):
        with pytest.raises(DowserError, match=r"reach the mixture of experts at .*layers.1.both"):
            find_layers(model, None, [target])


@pytest.mark.parametrize("family", FAMILIES)
def test_dense_families_have_none(family):
    assert not any(has_experts(layer) or of_experts(layer) for layer in decoder_layers(FAMILIES[family]()))
