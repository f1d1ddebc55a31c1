"""Whatever sets a gradient on a frozen entry is refused, or has no effect on it."""

import pytest
import torch
from lightning.pytorch import Callback

from dowser_pl.methods import Magnitude, SoftDowser
from tests.callbacks.test_compact import assert_equal, fit, weights_of
from tests.tiny_models import save_tiny_llava

OPTIONS = {
    "plain": {},
    "accumulation": {"accumulate_grad_batches": 2},
    "bf16-mixed": {"precision": "bf16-mixed"},
    "also train": {"module_options": {"also_train": ["projector"]}},
}


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    return save_tiny_llava(tmp_path_factory.mktemp("model"))


class Seen(Callback):
    """What the optimizer is about to see of every matrix: gradients of frozen entries, and how many numbers in all."""

    def __init__(self):
        self.frozen, self.counts = set(), set()

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        entries = trainer.callbacks[0].entries
        seen = {id(each) for group in optimizer.param_groups for each in group["params"]}
        for (name, weight), parameter in zip(entries.weights.items(), entries.parameters(), strict=True):
            assert id(parameter) in seen
            self.counts.add(parameter.grad.numel() / int(entries.masks[name].sum()))
            if weight.grad is not None:
                self.frozen.add(float(weight.grad[~entries.masks[name]].abs().max()))


@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIONS)
def test_the_optimizer_sees_k_gradients_and_no_matrix_has_one(model_folder, tmp_path, name):
    seen = Seen()
    fit(model_folder, tmp_path, callbacks=[seen], **OPTIONS[name])
    assert seen.counts == {1.0} and not seen.frozen


def test_in_the_dense_form_gradients_of_frozen_entries_are_zero(model_folder, tmp_path):
    seen = Seen()
    fit(model_folder, tmp_path, callbacks=[seen], update="dense")
    assert seen.frozen == {0.0} and min(seen.counts) > 5


class Pull(Callback):
    """A regularizer of somebody's: it writes into the gradients of whole matrices."""

    def on_after_backward(self, trainer, pl_module):
        for layer in pl_module.tuned_layers().values():
            pull = 10.0 * torch.ones_like(layer.weight)
            layer.weight.grad = pull if layer.weight.grad is None else layer.weight.grad + pull


@pytest.mark.parametrize("method", [Magnitude(0.1), SoftDowser()], ids=lambda each: type(each).__name__)
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_gradient_of_whole_matrices_is_refused(model_folder, tmp_path, method, accumulate):
    with pytest.raises(ValueError, match=r"got a gradient of all entries of \S+ \(21 of 21 matrices\), expected it"):
        fit(model_folder, tmp_path, method=method, callbacks=[Pull()], accumulate_grad_batches=accumulate)


def test_in_the_dense_form_it_moves_no_frozen_entry(model_folder, tmp_path):
    _, module, dowser = fit(model_folder, tmp_path, update="dense", callbacks=[Pull()])
    base = fit(model_folder, tmp_path / "base", max_steps=0)[1].network
    tuned = dict(module.network.named_parameters())
    for name, mask in dowser.entries.masks.items():
        before, after = base.get_parameter(f"{name}.weight"), tuned[f"{name}.weight"]
        assert torch.equal(before[~mask], after[~mask]) and not torch.equal(before[mask], after[mask])


class Second(Callback):
    """An optimizer of its own over the matrices."""

    def on_train_start(self, trainer, pl_module):
        weights = [layer.weight for layer in pl_module.tuned_layers().values()]
        self.optimizer = torch.optim.AdamW(weights, lr=0.1, weight_decay=0.5)

    def on_after_backward(self, trainer, pl_module):
        self.optimizer.step()

    on_before_zero_grad = on_train_batch_end = lambda self, *_: self.optimizer.step()


def test_a_second_optimizer_over_the_matrices_finds_nothing_to_do(model_folder, tmp_path):
    _, alone, _ = fit(model_folder, tmp_path / "alone")
    _, beside, _ = fit(model_folder, tmp_path / "beside", callbacks=[Second()])
    assert_equal(weights_of(beside), weights_of(alone))
