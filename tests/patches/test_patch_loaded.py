import pytest
import torch

from dowser_pl.masking.base_model import Change
from dowser_pl.patches import loaded
from dowser_pl.patches.loaded import apply_to_model
from dowser_pl.patches.patch import Patch, save_patch, tensor_digest
from tests.patches.samples import HEAD, make_patch, naive_changes, same_bits, save_base, save_tuned, tuned_llava
from tests.tiny_models import tiny_llava, tiny_paligemma


def state(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.fixture(params=[torch.float32, torch.bfloat16])
def case(request, tmp_path):
    """Loaded base, what it becomes, and a patch that knows saved names only."""
    dtype = request.param
    base, tuned = save_base(tmp_path / "base", dtype), save_tuned(tmp_path / "tuned", dtype)
    return tiny_llava().to(dtype), state(tuned_llava(dtype)), make_patch(tmp_path / "p.safetensors", base, tuned)


def test_applied_in_place_and_removed_bit_for_bit(case):
    model, tuned, path = case
    base, places = state(model), {name: tensor.data_ptr() for name, tensor in model.named_parameters()}
    with Patch.open(path) as patch:
        undo = apply_to_model(model, patch)
    assert same_bits(state(model), tuned)
    undo.remove()
    assert same_bits(state(model), base)
    assert {name: tensor.data_ptr() for name, tensor in model.named_parameters()} == places
    with pytest.raises(ValueError, match="off the model already"):
        undo.remove()


def test_names_of_the_loaded_model_need_no_others(case, tmp_path, monkeypatch):
    model, tuned, _ = case
    base = state(model)
    changes = {
        f"saved.{name}": Change(tuple(base[name].shape), None, tuned[name], tensor_digest(base[name]), name)
        for name in base
        if not torch.equal(base[name], tuned[name])
    }
    save_patch(tmp_path / "r", changes, HEAD)
    monkeypatch.setattr(loaded, "_by_saved_name", lambda _: pytest.fail("asked for saved names"))
    with Patch.open(tmp_path / "r") as patch:
        apply_to_model(model, patch)
    assert same_bits(state(model), tuned)


def test_another_base_is_refused_before_anything_is_written(case):
    model, _, path = case
    with Patch.open(path) as patch:
        last = next(name for name, _ in reversed(list(model.named_parameters())) if name.endswith("down_proj.weight"))
        model.get_parameter(last).data[-1, -1] *= -1
        before = state(model)
        with pytest.raises(ValueError, match=f"{last} has digest .*Nothing was written; load the base model"):
            apply_to_model(model, patch)
        assert same_bits(state(model), before)
        other = torch.float16
        with pytest.raises(ValueError, match="is float16 of shape .* load the base model with dtype="):
            apply_to_model(model.to(other), patch)


def test_a_failure_half_way_leaves_the_base(case, monkeypatch):
    model, _, path = case
    before, exchange, calls = state(model), loaded.exchange, []

    def failing(tensor, change):
        calls.append(tensor)
        if len(calls) == 3:
            raise MemoryError
        return exchange(tensor, change)

    monkeypatch.setattr(loaded, "exchange", failing)
    with Patch.open(path) as patch, pytest.raises(MemoryError):
        apply_to_model(model, patch)
    assert len(calls) == 3 + 2
    assert same_bits(state(model), before)


def test_training_in_between_is_noticed(case):
    model, _, path = case
    with Patch.open(path) as patch:
        undo = apply_to_model(model, patch)
    weight = next(
        tensor for name, tensor in model.named_parameters() if name.endswith("q_proj.weight") and "lang" in name
    )
    weight.data += 1
    with pytest.raises(ValueError, match="q_proj.weight was changed after the patch was applied"):
        undo.remove()


def test_unknown_and_tied_tensors_are_refused(tmp_path):
    model = tiny_paligemma()
    name = "model.language_model.embed_tokens.weight"
    weight = model.get_parameter(name)
    for runtime in (name, "lm_head.weight"):
        save_patch(
            tmp_path / "t", {"x": Change(tuple(weight.shape), None, weight + 1, tensor_digest(weight), runtime)}, {}
        )
        with (
            Patch.open(tmp_path / "t") as patch,
            pytest.raises(ValueError, match=f"{name}.* one tied tensor") as caught,
        ):
            apply_to_model(model, patch)
        assert "lm_head.weight" in str(caught.value)
    saved = "language_model.model.layers.0.self_attn.k_prjo.weight"
    save_patch(tmp_path / "u", {saved: Change((1,), None, torch.ones(1), "0" * 64)}, {})
    with (
        Patch.open(tmp_path / "u") as patch,
        pytest.raises(ValueError, match=f"changes {saved}.*nearest.*k_proj.weight"),
    ):
        apply_to_model(model, patch)


def test_a_plain_module_by_its_own_names(tmp_path):
    model = torch.nn.Linear(2, 1)
    with torch.no_grad():
        before = model.weight.clone()
    save_patch(tmp_path / "m", {"weight": Change((1, 2), None, before + 1, tensor_digest(before))}, {})
    with Patch.open(tmp_path / "m") as patch:
        undo = apply_to_model(model, patch)
    assert torch.equal(model.weight, before + 1)
    undo.remove()
    assert torch.equal(model.weight, before)


def test_a_patch_of_a_folder_has_saved_names(case, tmp_path):
    changes = naive_changes(tmp_path / "base", tmp_path / "tuned")
    assert not set(changes) <= set(case[0].state_dict())
