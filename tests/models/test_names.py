import pytest
import torch
from safetensors.torch import load_file, save_file

from dowser_pl.models.names import saved_names
from tests.tiny_experts import tiny_llava_mixtral
from tests.tiny_models import FAMILIES, tiny_llava, tiny_paligemma

MIXTRAL = {"gate_up_proj", "down_proj"}  # experts are joined in memory and apart in the files
MOLMO2 = {"q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "embed_tokens"}  # the other way round


def numbered(model):
    """Fill every tensor with a number of its own; tied ones share theirs."""
    owners = {}
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.data_ptr() not in owners:
                owners[tensor.data_ptr()] = len(owners) + 1
                tensor.fill_(owners[tensor.data_ptr()])
    return model


def assert_names_are_those_of_the_files(model, folder):
    names = saved_names(model)
    model.save_pretrained(folder)
    written = load_file(folder / "model.safetensors")
    assert sorted(names.values()) == sorted(written)
    state = model.state_dict()
    for runtime, saved in names.items():
        assert torch.equal(state[runtime], written[saved]), (runtime, saved)
    values = [tensor.flatten()[0].item() for tensor in written.values()]
    assert len(set(values)) == len(values)  # or equal values would prove nothing


@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "molmo2"])
def test_a_model_that_was_built(family, tmp_path):
    assert_names_are_those_of_the_files(numbered(FAMILIES[family]()), tmp_path)


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "paligemma", "instructblip_t5"])
def test_a_model_that_was_loaded(family, tmp_path):
    model = numbered(FAMILIES[family]())
    model.save_pretrained(tmp_path / "a")
    assert_names_are_those_of_the_files(type(model).from_pretrained(tmp_path / "a"), tmp_path / "b")


def test_a_model_from_a_file_with_runtime_names(tmp_path):
    model = numbered(tiny_llava())
    model.save_pretrained(tmp_path / "a")
    save_file(
        {name: tensor.contiguous() for name, tensor in model.state_dict().items()}, tmp_path / "a/model.safetensors"
    )
    assert_names_are_those_of_the_files(type(model).from_pretrained(tmp_path / "a"), tmp_path / "b")


def test_names_differ_from_those_in_memory():
    names = saved_names(tiny_llava())
    runtime = "model.language_model.layers.0.self_attn.q_proj.weight"
    assert names[runtime] != runtime


def test_a_tied_tensor_has_one_name():
    names = saved_names(tiny_paligemma())
    assert "lm_head.weight" not in names
    with pytest.raises(ValueError, match="lm_head.weight is not one tensor in the saved model: it is tied"):
        names["lm_head.weight"]
    with pytest.raises(ValueError, match="nonsense is not one tensor .* no such parameter"):
        names["nonsense"]


@pytest.mark.parametrize(("family", "parts"), [("mixtral", MIXTRAL), ("molmo2", MOLMO2)])
def test_a_tensor_in_another_layout_has_none(family, parts, tmp_path):
    if family == "molmo2" and family not in FAMILIES:
        pytest.skip("transformers has it since 5.20")
    model = (FAMILIES | {"mixtral": tiny_llava_mixtral})[family]()
    names = saved_names(model)
    model.save_pretrained(tmp_path)
    written, state = load_file(tmp_path / "model.safetensors"), model.state_dict()
    assert all(torch.equal(state[runtime], written[saved]) for runtime, saved in names.items())
    refused = set(state) - set(names)
    assert {name.split(".")[-2 if name.endswith("weight") else -1] for name in refused} == parts
    assert len(written) != len(state)
    for name in refused:
        with pytest.raises(ValueError, match="transposed, split or joined"):
            names[name]
