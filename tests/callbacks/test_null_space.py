"""Runs in the null space of self-written inputs: what is protected stays, limits are exact, and a run resumes."""

import math

import pytest
import torch

from dowser_pl.callbacks import Dowser
from dowser_pl.callbacks.dowser import masks
from dowser_pl.methods import Full, NullSpace
from dowser_pl.models.loading import load_model
from tests.tiny_models import save_tiny_llava
from tests.tiny_run import KillAt, Killed, TinyData, build_module, build_trainer

TOKENS = 40


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    return save_tiny_llava(tmp_path_factory.mktemp("model"))


def fit(model_folder, folder, method, ckpt_path=None, decay=0.1, **options):
    trainer = build_trainer(folder, method, limit_val_batches=1, **{"max_epochs": 1, **options})
    module = build_module(model_folder, weight_decay=decay)
    trainer.fit(module, datamodule=TinyData(), ckpt_path=ckpt_path)
    return module, next(each for each in trainer.callbacks if isinstance(each, Dowser))


def weights_of(module):
    return {name: value.clone() for name, value in module.network.state_dict().items()}


def moves(module, model_folder):
    base = load_model(str(model_folder), dtype="float32")
    return {n: layer.weight.double() - base.get_submodule(n).weight for n, layer in module.tuned_layers().items()}


def test_a_run_leaves_outputs_on_the_rows_of_its_own_as_they_were(model_folder, tmp_path, monkeypatch):
    """eps towards 0: no move along any direction that the rows have, measured here by hooks on those very rows."""
    seen = {}
    first = masks.first_tokens
    monkeypatch.setattr(masks, "first_tokens", lambda *args: seen.setdefault("rows", first(*args)))
    module, _ = fit(model_folder, tmp_path, NullSpace(1e-9, rank=4, tokens=12))
    free, _ = fit(model_folder, tmp_path / "full", Full())
    inputs = {}
    network = load_model(str(model_folder), dtype="float32").eval()
    hooks = [
        network.get_submodule(name).register_forward_pre_hook(
            lambda _, args, name=name: inputs.setdefault(name, []).append(args[0].flatten(0, -2).double())
        )
        for name in module.tuned_layers()
    ]
    assert hooks
    with torch.no_grad():
        for row in seen["rows"]:
            network(input_ids=row.tokens[None], **row.image)
    full = moves(free, model_folder)
    for name, move in moves(module, model_folder).items():
        taken = torch.cat(inputs[name])
        leading = torch.linalg.eigh(taken.T @ taken)[1][:, -4:]
        assert float((move @ leading).norm()) < 1e-3 * float((full[name] @ leading).norm()), name
        assert float(move.norm()) > 1e-3


def test_infinite_eps_is_full_fine_tuning_bit_by_bit(model_folder, tmp_path):
    module, _ = fit(model_folder, tmp_path / "null", NullSpace(math.inf, tokens=TOKENS))
    free, _ = fit(model_folder, tmp_path / "full", Full())
    assert all(torch.equal(value, weights_of(free)[key]) for key, value in weights_of(module).items())
    assert any(bool(each.any()) for each in moves(module, model_folder).values())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("precision", "checkpoint"), [("32-true", "compact"), pytest.param("bf16-true", "full", marks=pytest.mark.slow)]
)
def test_a_resumed_run_ends_like_an_unbroken_one(model_folder, tmp_path, monkeypatch, precision, checkpoint):
    method, options = NullSpace(rank=4, tokens=TOKENS), {"precision": precision, "checkpoint": checkpoint}
    whole, dowser = fit(model_folder, tmp_path / "whole", method, **options)
    with pytest.raises(Killed):
        fit(model_folder, tmp_path / "cut", method, callbacks=[KillAt(4)], **options)
    monkeypatch.setattr(masks, "input_directions", lambda **_: pytest.fail("measured tuned weights"))
    last = tmp_path / "cut" / "checkpoints" / "last.ckpt"
    resumed, again = fit(model_folder, tmp_path / "cut", method, last, **options)
    assert all(torch.equal(value, weights_of(whole)[key]) for key, value in weights_of(resumed).items())
    assert again.counts == dowser.counts and again.frozen_digest == dowser.frozen_digest
    assert again.entries.num_bytes() == dowser.entries.num_bytes()  # directions are shared again
