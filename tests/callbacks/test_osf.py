"""Runs of OSF: the leading triples of every matrix stay, where full training moves them, and a run resumes."""

import numpy as np
import pytest
import torch

from dowser_pl.callbacks.dowser import masks
from dowser_pl.distributed.limits import no_training
from dowser_pl.methods import OSF, Full
from dowser_pl.models.loading import load_model
from tests.callbacks.test_null_space import fit, weights_of
from tests.tiny_models import save_tiny_llava
from tests.tiny_run import KillAt, Killed


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    return save_tiny_llava(tmp_path_factory.mktemp("model"))


def test_the_leading_half_of_the_triples_of_every_matrix_stays(model_folder, tmp_path):
    base, strays = load_model(str(model_folder), dtype="float32"), {}
    for name, method in {"osf": OSF(), "full": Full()}.items():
        module, _ = fit(model_folder, tmp_path / name, method)
        layers, strays[name] = module.tuned_layers(), []
        for key, layer in layers.items():
            before, after = (each.detach().double().numpy() for each in (base.get_submodule(key).weight, layer.weight))
            outer, values, inner = np.linalg.svd(before)
            k = min(before.shape) // 2
            u, s, v = outer[:, :k], values[:k], inner[:k].T
            strays[name].append(max(np.abs(after @ v - u * s).max(), np.abs(after.T @ u - v * s).max()))
            assert np.abs(after - before).max() > 1e-3
    assert len(strays["osf"]) == 21
    assert max(strays["osf"]) < 1e-5 < 1e-3 < min(strays["full"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("precision", "checkpoint"), [("32-true", "compact"), pytest.param("bf16-true", "full", marks=pytest.mark.slow)]
)
def test_a_resumed_run_ends_like_an_unbroken_one(model_folder, tmp_path, monkeypatch, precision, checkpoint):
    method, options = OSF(), {"precision": precision, "checkpoint": checkpoint}
    whole, dowser = fit(model_folder, tmp_path / "whole", method, **options)
    with pytest.raises(Killed):
        fit(model_folder, tmp_path / "cut", method, callbacks=[KillAt(4)], **options)
    monkeypatch.setattr(masks, "singular_directions", lambda *_: pytest.fail("of tuned weights"))
    last = tmp_path / "cut" / "checkpoints" / "last.ckpt"
    resumed, again = fit(model_folder, tmp_path / "cut", method, last, **options)
    assert all(torch.equal(value, weights_of(whole)[key]) for key, value in weights_of(resumed).items())
    assert again.counts == dowser.counts and again.frozen_digest == dowser.frozen_digest
    assert again.entries.num_bytes() == dowser.entries.num_bytes()


def test_what_it_cannot_do_is_refused(model_folder, tmp_path):
    with pytest.raises(ValueError, match="OSF decides after every step .* got update 'dense'"):
        fit(model_folder, tmp_path, OSF(), update="dense")
    assert "got preserve 0.5 with weights that are sharded" in no_training(OSF(), False, False, "compact")
