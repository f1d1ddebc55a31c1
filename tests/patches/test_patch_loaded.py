import pytest
import torch

from dowser_pl.masking.base_model import Change
from dowser_pl.patches import loaded
from dowser_pl.patches.apply import apply_patches
from dowser_pl.patches.loaded import apply_to_model, save_difference
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


def test_a_file_is_applied_by_its_path(case):
    model, tuned, path = case
    base = state(model)
    apply_to_model(model, path).remove()
    assert same_bits(state(model), base)
    apply_to_model(model, str(path))
    assert same_bits(state(model), tuned)


def test_the_base_is_in_place_meanwhile(case):
    model, tuned, path = case
    base, undo = state(model), apply_to_model(model, path)
    with undo.base_in_place():
        assert same_bits(state(model), base)
    assert same_bits(state(model), tuned)
    undo.remove()
    with undo.base_in_place():
        assert same_bits(state(model), base)


def test_two_loaded_models_make_the_patch_of_their_folders(case, tmp_path):
    model, tuned, path = case
    other = tuned_llava(model.dtype)
    save_difference(tmp_path / "d", model, other)
    with Patch.open(path) as expected, Patch.open(tmp_path / "d") as found:
        assert found.names == expected.names
        for name in found.names:
            one, two = found.change(name), expected.change(name)
            assert (one.shape, one.base_sha256) == (two.shape, two.base_sha256) and one.runtime in state(model)
            assert one.values.equal(two.values) and (one.mask is two.mask is None or one.mask.equal(two.mask))
    undo = apply_to_model(model, tmp_path / "d")
    assert same_bits(state(model), tuned)
    undo.remove()
    apply_patches(tmp_path / "base", [tmp_path / "d"], tmp_path / "out")
    assert same_bits(state(type(model).from_pretrained(tmp_path / "out", dtype=model.dtype)), tuned)


def test_what_makes_no_patch_of_two_models_is_refused(tmp_path):
    base = tiny_llava()
    with pytest.raises(ValueError, match="no entry of the tuned model differs"):
        save_difference(tmp_path / "d", base, tiny_llava())
    with pytest.raises(ValueError, match="is bfloat16 of shape .* in the tuned model and float32 of"):
        save_difference(tmp_path / "d", base, tiny_llava().bfloat16())
    with pytest.raises(ValueError, match="is missing in the tuned model|is float32 .* and missing in the base"):
        save_difference(tmp_path / "d", base, tiny_paligemma())
    assert not (tmp_path / "d").exists()


def test_a_tied_tensor_is_named_once_and_one_that_no_file_holds_is_refused(tmp_path):
    base, tuned = tiny_paligemma(), tiny_paligemma()
    with torch.no_grad():
        tuned.get_input_embeddings().weight[0] += 1
    save_difference(tmp_path / "d", base, tuned)
    with Patch.open(tmp_path / "d") as patch:
        assert len(patch.names) == 1
    base, tuned = tiny_llava(), tiny_llava()
    base._keys_to_ignore_on_save = tuned._keys_to_ignore_on_save = ["lm_head.weight"]
    with torch.no_grad():
        tuned.lm_head.weight[0] += 1
    with pytest.raises(ValueError, match="lm_head.weight differs and is not stored as one tensor"):
        save_difference(tmp_path / "e", base, tuned)
