import pytest
import torch

from dowser_pl.models.layers import find_layers
from dowser_pl.models.loading import load_model, skeleton
from tests.tiny_models import FAMILIES, save_tiny_llava


@pytest.mark.parametrize("family", FAMILIES)
def test_shapes_and_dtypes_are_those_of_the_model(family, tmp_path):
    model = FAMILIES[family]()
    model.config.save_pretrained(tmp_path)
    empty = skeleton(str(tmp_path), dtype="float32")
    expected = {name: (weight.shape, weight.dtype) for name, weight in model.named_parameters()}
    assert {name: (weight.shape, weight.dtype) for name, weight in empty.named_parameters()} == expected
    assert {weight.device.type for weight in empty.parameters()} == {"meta"}
    assert list(find_layers(empty, None, ["attn", "mlp"])) == list(find_layers(model, None, ["attn", "mlp"]))


@pytest.mark.parametrize("asked", ["auto", "float32", "bfloat16"])
def test_the_dtype_is_that_of_loading(asked, tmp_path):
    save_tiny_llava(tmp_path, dtype=torch.bfloat16)
    loaded = load_model(str(tmp_path), dtype=asked)
    empty = skeleton(str(tmp_path), dtype=asked)
    assert {weight.dtype for weight in empty.parameters()} == {weight.dtype for weight in loaded.parameters()}


def test_no_weight_file_is_needed_and_mistakes_are_explained(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        skeleton(str(tmp_path / "nowhere"))
    (tmp_path / "config.json").write_text('{"model_type": "nonsense"}')
    with pytest.raises(ValueError, match="model_type"):
        skeleton(str(tmp_path))
