"""Training some entries in a loop of one's own: what moves, what does not, and what is refused."""

import copy

import pytest
import torch
from transformers import AutoModelForImageTextToText

from dowser_pl.errors import DowserError
from dowser_pl.functional.masks import PackedMasks
from dowser_pl.integrations import Masks, train_only
from dowser_pl.models.layers import find_layers
from dowser_pl.patches.apply import apply_patches
from tests.tiny_models import save_tiny_llava

TOKENS = torch.tensor([[5, 9, 11, 20, 7, 3]])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny_llava(tmp_path_factory.mktemp("model"))


@pytest.fixture
def model(folder):
    return AutoModelForImageTextToText.from_pretrained(folder)


@pytest.fixture
def masks(model):
    random = torch.Generator().manual_seed(1)
    layers = find_layers(model, None, ["attn", "mlp"])
    return {name: torch.rand(layer.weight.shape, generator=random) < 0.2 for name, layer in layers.items()}


def loss_of(model):
    return model(input_ids=TOKENS, labels=TOKENS).loss


def test_a_step_moves_what_the_masks_say_by_the_gradient(model, masks):
    twin = copy.deepcopy(model)
    loss_of(twin).backward()
    before = {name: each.clone() for name, each in model.state_dict().items()}
    with train_only(model, masks) as trained:
        optimizer = torch.optim.SGD(trained.parameters(), lr=0.5)
        loss_of(model).backward()
        optimizer.step()
    for name, each in model.state_dict().items():
        matrix = name.removesuffix(".weight")
        if matrix not in masks:
            assert torch.equal(each, before[name])
            continue
        mask, gradient = masks[matrix], twin.get_submodule(matrix).weight.grad
        assert torch.equal(each[~mask], before[name][~mask])
        torch.testing.assert_close(each[mask], (before[name] - 0.5 * gradient)[mask])


@pytest.mark.parametrize("fused", [torch.optim.AdamW, torch.optim.Adagrad])
def test_any_optimizer_any_number_of_steps(model, masks, fused):
    before = {name: model.get_submodule(name).weight.detach().clone() for name in masks}
    with train_only(model, masks) as trained:
        optimizer = fused(trained.parameters(), lr=1e-2, weight_decay=0.1)
        first = float(loss_of(model))
        for _ in range(5):
            loss_of(model).backward()
            torch.nn.utils.clip_grad_norm_(trained.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
        assert float(loss_of(model)) < first
    for name, mask in masks.items():
        moved = model.get_submodule(name).weight != before[name]
        assert not moved[~mask].any() and moved[mask].float().mean() > 0.9


def test_the_block_leaves_the_model_as_free_as_it_was(model, masks):
    model.lm_head.weight.requires_grad_(False)
    needed = {name: each.requires_grad for name, each in model.named_parameters()}
    with train_only(model, masks):
        assert {name for name, each in model.named_parameters() if each.requires_grad} == {f"{n}.weight" for n in masks}
    assert {name: each.requires_grad for name, each in model.named_parameters()} == needed
    loss_of(model).backward()
    assert model.get_submodule(next(iter(masks))).weight.grad is not None  # nothing gathers it any more
    torch.optim.SGD(model.parameters(), lr=0.1).step()  # nor refuses this


def test_a_patch_makes_the_tuned_model_of_the_base(tmp_path, folder, model, masks):
    with train_only(model, Masks(PackedMasks.of(masks.items()), {"class_path": "Mine"})) as trained:
        optimizer = torch.optim.AdamW(trained.parameters(), lr=1e-2)
        loss_of(model).backward()
        optimizer.step()
        trained.save_patch(tmp_path / "patch.safetensors")
    apply_patches(folder, [tmp_path / "patch.safetensors"], tmp_path / "tuned")
    tuned = AutoModelForImageTextToText.from_pretrained(tmp_path / "tuned").state_dict()
    assert all(torch.equal(tuned[name], each) for name, each in model.state_dict().items())


def test_a_state_goes_on_bit_for_bit(folder, model, masks):
    def steps(model, trained, optimizer, number):
        for _ in range(number):
            loss_of(model).backward()
            optimizer.step()
            optimizer.zero_grad()

    with train_only(model, masks) as trained:
        optimizer = torch.optim.AdamW(trained.parameters(), lr=1e-2)
        steps(model, trained, optimizer, 2)
        state = copy.deepcopy((trained.state_dict(), optimizer.state_dict()))
        steps(model, trained, optimizer, 2)
    again = AutoModelForImageTextToText.from_pretrained(folder)
    with train_only(again, masks) as trained:
        optimizer = torch.optim.AdamW(trained.parameters(), lr=1e-2)
        trained.load_state_dict(state[0])
        optimizer.load_state_dict(state[1])
        steps(again, trained, optimizer, 2)
    assert all(torch.equal(again.state_dict()[name], each) for name, each in model.state_dict().items())


def test_a_state_of_other_masks_or_another_base_is_refused(model, masks):
    with train_only(model, masks) as trained:
        state = copy.deepcopy(trained.state_dict())
    name = next(iter(masks))
    with train_only(model, masks | {name: ~masks[name]}) as trained, pytest.raises(DowserError, match="other masks"):
        trained.load_state_dict(state)
    for changed in (model.get_submodule(name).weight, model.lm_head.weight):
        with torch.no_grad():
            changed.add_(1)
        with train_only(model, masks) as trained, pytest.raises(DowserError, match="another base"):
            trained.load_state_dict(state)
        with torch.no_grad():
            changed.sub_(1)


def test_an_optimizer_over_whole_matrices_is_refused_at_its_first_step(model, masks):
    before = {name: each.clone() for name, each in model.state_dict().items()}
    message = r"holds all of model\..*Fix: build it inside the block"
    with pytest.raises(DowserError, match=message), train_only(model, masks):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        loss_of(model).backward()
        optimizer.step()
    assert all(torch.equal(each, before[name]) for name, each in model.state_dict().items())


def test_a_step_of_another_block_or_none_at_all_is_refused(model, masks):
    with train_only(model, masks) as trained:
        earlier = torch.optim.SGD(trained.parameters(), lr=0.1)
    with pytest.raises(DowserError, match="holds values of another block"), train_only(model, masks):
        loss_of(model).backward()
        earlier.step()
    with pytest.raises(DowserError, match="gradients came and no optimizer made a step"), train_only(model, masks):
        loss_of(model).backward()
    with train_only(model, masks):  # nothing was asked for
        pass


def test_optimizers_that_look_more_than_once_within_a_step_are_refused(model, masks):
    with pytest.raises(DowserError, match="got LBFGS, which asks"), train_only(model, masks) as trained:
        torch.optim.LBFGS(trained.parameters()).step(lambda: loss_of(model))


def test_a_matrix_that_is_used_twice_is_refused(model):
    model.get_output_embeddings().weight = model.get_input_embeddings().weight
    mask = torch.ones(model.lm_head.weight.shape, dtype=torch.bool)
    with pytest.raises(DowserError, match="the weight of lm_head is used in another place of the model too"):
        train_only(model, {"lm_head": mask}).__enter__()


def test_what_else_moved_is_told_at_the_end(model, masks):
    name = next(iter(masks))
    with pytest.raises(RuntimeError, match="or another part of"), train_only(model, masks), torch.no_grad():
        model.get_submodule(name).weight[~masks[name]] += 1
    with pytest.raises(RuntimeError, match="or another part"), train_only(model, masks), torch.no_grad():
        model.lm_head.weight += 1


def test_an_error_in_the_block_comes_out_and_lets_go(model, masks):
    with pytest.raises(ZeroDivisionError), train_only(model, masks):
        1 / 0  # noqa: B018
    assert all(each.requires_grad for each in model.parameters())


def test_masks_of_something_else_are_refused(model):
    with pytest.raises(DowserError, match=r"got 1 masks, of which 1 are of no matrix of this Llava.*\['there'\]"):
        train_only(model, {"there": torch.ones(2, 2, dtype=torch.bool)}).__enter__()
    with pytest.raises(DowserError, match="got 0 masks"):
        train_only(model, {}).__enter__()
