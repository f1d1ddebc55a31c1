"""Layer finding: exact names per family, and a refusal for everything that is not understood."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import bitsandbytes as bnb
import pytest
import torch
from torch import Tensor, nn

from dowser_pl.models.layers import find_layers, text_inputs, text_model
from tests.tiny_models import (
    FAMILIES,
    tiny_blip2_gpt2,
    tiny_llava,
)
from tests.tiny_more_models import tiny_phi4_multimodal

BOTH = ["attn", "mlp"]
LLAMA = {
    "attn": [f"self_attn.{name}_proj" for name in "qkvo"],
    "mlp": ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"],
}
OPT = {
    "attn": ["self_attn.k_proj", "self_attn.v_proj", "self_attn.q_proj", "self_attn.out_proj"],
    "mlp": ["fc1", "fc2"],
}
T5 = {
    "attn": [f"layer.{place}.{name}" for place in ("0.SelfAttention", "1.EncDecAttention") for name in "qkvo"],
    "mlp": [f"layer.2.DenseReluDense.{name}" for name in ("wi_0", "wi_1", "wo")],
}
GLM = LLAMA | {"mlp": ["mlp.gate_up_proj", "mlp.down_proj"]}
READS_PICTURES = LLAMA | {"attn": [f"cross_attn.{name}_proj" for name in "qkvo"]}
CARRIES_A_STATE = LLAMA | {
    "attn": [f"linear_attn.{name}" for name in ("out_proj", "in_proj_qkv", "in_proj_z", "in_proj_b", "in_proj_a")]
}
PHI = {"attn": ["self_attn.o_proj", "self_attn.qkv_proj"], "mlp": ["mlp.gate_up_proj", "mlp.down_proj"]}
# Family -> list of decoder layers, their number, and the matrices of one layer, or of each.
EXPECTED = {
    "llava": ("model.language_model.layers", 3, LLAMA),
    "llava_next": ("model.language_model.layers", 3, LLAMA),
    "llava_onevision": ("model.language_model.layers", 3, LLAMA),
    "qwen2_5_vl": ("model.language_model.layers", 3, LLAMA),
    "qwen3_vl": ("model.language_model.layers", 3, LLAMA),
    "internvl": ("model.language_model.layers", 3, LLAMA),
    "idefics3": ("model.text_model.layers", 3, LLAMA),
    "smolvlm": ("model.text_model.layers", 3, LLAMA),
    "nvila": ("model.language_model.layers", 3, LLAMA),
    "paligemma": ("model.language_model.layers", 3, LLAMA),
    "qwen2_vl": ("model.language_model.layers", 3, LLAMA),
    "gemma3_vl": ("model.language_model.layers", 3, LLAMA),
    "paligemma2": ("model.language_model.layers", 3, LLAMA),
    "mistral3": ("model.language_model.layers", 3, LLAMA),
    "molmo2": ("model.language_model.layers", 3, LLAMA),
    "mllama": ("model.language_model.layers", 3, [LLAMA, READS_PICTURES, LLAMA]),
    "llava_phi3": ("model.language_model.layers", 3, PHI),
    "glm4v": ("model.language_model.layers", 3, GLM),
    "minicpmv": ("model.language_model.layers", 3, [CARRIES_A_STATE, LLAMA, CARRIES_A_STATE]),
    "instructblip": ("language_model.model.layers", 3, LLAMA),
    "instructblip_t5": ("language_model.decoder.block", 2, T5),
    "blip2": ("language_model.model.decoder.layers", 3, OPT),
    **dict.fromkeys(("llama", "qwen2", "qwen3", "mistral", "gemma2", "gemma3"), ("model.layers", 3, LLAMA)),
    "phi3": ("model.layers", 3, PHI),
}


@contextmanager
def tracked(layers: dict[str, nn.Linear]) -> Iterator[tuple[set[str], set[str]]]:
    """Names of the layers that a forward pass, and a gradient, went through."""
    forward: set[str] = set()
    backward: set[str] = set()

    def watch(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            forward.add(name)
            output.register_hook(lambda gradient: backward.add(name) if gradient.abs().sum() > 0 else None)

        return hook

    handles = [layer.register_forward_hook(watch(name)) for name, layer in layers.items()]
    yield forward, backward
    for handle in handles:
        handle.remove()


def test_every_family_is_expected() -> None:
    assert EXPECTED.keys() >= FAMILIES.keys() >= EXPECTED.keys() - {"molmo2"}, "which transformers has since 5.20"


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("targets", [["attn"], ["mlp"], BOTH])
@pytest.mark.parametrize("last_n_layers", [None, 1, 2])
def test_exactly_the_matrices_of_the_last_decoder_layers(
    family: str, targets: list[str], last_n_layers: int | None
) -> None:
    model = FAMILIES[family]()
    prefix, num_layers, matrices = EXPECTED[family]
    first = num_layers - (last_n_layers or num_layers)
    of_each = matrices if isinstance(matrices, list) else [matrices] * num_layers
    expected = [
        f"{prefix}.{index}.{suffix}"
        for index in range(first, num_layers)
        for target in targets
        for suffix in of_each[index][target]
    ]

    found = find_layers(model, last_n_layers, targets)

    assert list(found) == expected
    assert all(module is model.get_submodule(name) for name, module in found.items())


@pytest.mark.parametrize("family", FAMILIES)
def test_text_alone_reaches_every_layer(family: str) -> None:
    model = FAMILIES[family]().train()
    layers = find_layers(model, None, BOTH)
    text = text_model(model)
    tokens = torch.randint(10, 90, (2, 7), generator=torch.Generator().manual_seed(0))
    extra = {"decoder_input_ids": tokens} if text.config.is_encoder_decoder else {}

    with tracked(layers) as (forward, backward):
        text(**text_inputs(text, tokens, torch.ones_like(tokens)), **extra).logits[:, -1].square().sum().backward()

    reads_pictures = {name for name in layers if family == "mllama" and ".layers.1." in name}
    assert forward == backward == layers.keys() - reads_pictures


def test_a_tower_inside_the_text_decoder_is_refused() -> None:
    """Or its blocks would be taken for those of the decoder."""
    with pytest.raises(
        ValueError, match=r"decoder layers of Phi4MultimodalForCausalLM: got 3 lists of blocks .model.lay"
    ):
        find_layers(tiny_phi4_multimodal(), None, BOTH)


def test_quantised_layers_are_found() -> None:
    model = tiny_llava()
    model.model.language_model.layers[1].mlp.up_proj = bnb.nn.Linear8bitLt(32, 48, bias=False)

    found = find_layers(model, 2, ["mlp"])

    assert isinstance(found["model.language_model.layers.1.mlp.up_proj"], bnb.nn.Linear8bitLt)


@pytest.mark.parametrize("last_n_layers", [0, -1, 4])
def test_number_of_layers_out_of_range(last_n_layers: int) -> None:
    with pytest.raises(ValueError, match=rf"got last_n_layers={last_n_layers}, expected 1 to 3"):
        find_layers(tiny_llava(), last_n_layers, BOTH)


@pytest.mark.parametrize("targets", [[], ["attn", ""], "attn"])
def test_no_list_of_targets(targets: list[str]) -> None:
    with pytest.raises(ValueError, match=r"got targets=.*expected a list of one or more of \['attn', 'mlp'\] or names"):
        find_layers(tiny_llava(), None, targets)


@pytest.mark.parametrize("family", FAMILIES)
def test_matrices_by_their_own_names(family: str) -> None:
    """Each name alone finds what ends in it, whole parts of names only; all names together find what the kinds find."""
    model = FAMILIES[family]()
    whole = find_layers(model, 2, BOTH)
    names = {name.rpartition(".")[2] for name in whole}
    for name in names:
        assert list(find_layers(model, 2, [name])) == [each for each in whole if each.split(".")[-1] == name]
    assert list(find_layers(model, 2, sorted(names))) == list(whole)
    assert list(find_layers(model, 2, ["attn", *names])) == list(whole)  # one that is meant twice comes once


def test_more_parts_of_a_name_tell_it_from_others() -> None:
    found = find_layers(FAMILIES["instructblip_t5"](), 1, ["EncDecAttention.q", "wi_0"])
    prefix = "language_model.decoder.block.1.layer"
    assert list(found) == [f"{prefix}.1.EncDecAttention.q", f"{prefix}.2.DenseReluDense.wi_0"]


def test_fused_matrices_have_one_name() -> None:
    model = tiny_llava()
    for layer in model.model.language_model.layers:
        layer.mlp.gate_up_proj = nn.Linear(32, 96, bias=False)
        del layer.mlp.gate_proj, layer.mlp.up_proj
    found = find_layers(model, None, ["gate_up_proj"])
    assert list(found) == [f"model.language_model.layers.{index}.mlp.gate_up_proj" for index in range(3)]
    with pytest.raises(ValueError, match=r"of which \['up_proj'\] match no matrix .*'down_proj', 'gate_up_proj'\]"):
        find_layers(model, None, ["down_proj", "up_proj"])


@pytest.mark.parametrize("name", ["norm", "proj", "fc1", "Q_PROJ", "self_attn", "layers.0.self_attn.q_proj"])
def test_names_that_match_nothing_are_refused_with_what_there_is(name: str) -> None:
    """`fc1` is in the vision tower alone, and no matrix of layer 0 is among the last two."""
    there = r"'q_proj', 'k_proj', 'v_proj', 'o_proj', 'gate_proj', 'up_proj', 'down_proj'\]\."
    with pytest.raises(ValueError, match=rf"of which \['{name}'\] match no matrix .*'mlp'\], or .*\[{there}"):
        find_layers(tiny_llava(), 2, ["attn", name])


def test_transposed_matrices_are_refused() -> None:
    with pytest.raises(ValueError, match=r"transformer.h.0.attn.c_attn.weight in a Conv1D"):
        find_layers(tiny_blip2_gpt2(), None, BOTH)


def test_bare_matrix_is_refused() -> None:
    model = tiny_llava()
    model.model.language_model.layers[1].extra = nn.Parameter(torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"layers.1.extra in a LlamaDecoderLayer"):
        find_layers(model, 1, BOTH)


def test_unclassified_matrix_is_refused() -> None:
    model = tiny_llava()
    model.model.language_model.layers[1].adapter = nn.Linear(32, 32)
    with pytest.raises(ValueError, match=r"whether model.language_model.layers.1.adapter belongs .* got neither"):
        find_layers(model, None, BOTH)


def test_doubly_classified_matrix_is_refused() -> None:
    model = tiny_llava()
    model.model.language_model.layers[1].self_attn.mlp = nn.Linear(32, 32)
    with pytest.raises(ValueError, match=r"layers.1.self_attn.mlp belongs .* got attn and mlp"):
        find_layers(model, None, BOTH)


def test_weight_tied_to_another_layer_is_refused() -> None:
    model = tiny_llava()
    layers = model.model.language_model.layers
    layers[2].mlp.up_proj.weight = layers[1].mlp.up_proj.weight
    with pytest.raises(
        ValueError, match=r"layers.1.mlp.up_proj.weight and .*layers.2.mlp.up_proj.weight are one tensor"
    ):
        find_layers(model, 1, ["mlp"])
    assert len(find_layers(model, 1, ["attn"])) == 4


def test_no_matrix_of_the_target() -> None:
    model = tiny_llava()
    for layer in model.model.language_model.layers:
        layer.mlp = nn.Identity()
    with pytest.raises(ValueError, match=r"\['mlp'\] match no matrix to tune .*: \['q_proj', .*'o_proj'\]"):
        find_layers(model, None, ["mlp"])
    assert len(find_layers(model, None, BOTH)) == 12  # a kind of which there is none stands for none


def test_second_list_of_blocks_is_refused() -> None:
    model = tiny_llava()
    decoder = model.model.language_model
    decoder.gated_layers = nn.ModuleList([type(decoder.layers[0])(decoder.config, 0)])
    with pytest.raises(ValueError, match=r"got 2 lists of blocks \(.*layers, .*gated_layers\).* expected exactly one"):
        find_layers(model, None, BOTH)


def test_text_decoder_without_blocks_is_refused() -> None:
    model = tiny_llava()
    model.model.language_model.layers = nn.ModuleList()
    with pytest.raises(ValueError, match=r"got 0 lists of blocks \(none\)"):
        find_layers(model, None, BOTH)
