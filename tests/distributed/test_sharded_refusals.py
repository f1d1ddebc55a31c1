"""What must not be done with weights that are sharded over ranks is refused, on all of them and before it is done."""

from unittest.mock import patch

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.strategies import ModelParallelStrategy

from dowser_pl.callbacks import Curve
from dowser_pl.methods import Dare, ModelDowser
from dowser_pl.models.loading import load_model
from tests.distributed.fits import fit
from tests.distributed.harness import RankError, outcomes, run
from tests.distributed.sharded import one_fast
from tests.tiny_models import save_tiny_llava


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    return save_tiny_llava(tmp_path_factory.mktemp("model"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "options, said",
    [
        ({"method": Dare(0.3), "checkpoint": "full"}, "got dowser.checkpoint full, and dowser.method Dare changes"),
        ({"callbacks": (Curve([0.05]),), "checkpoint": "full"}, "full, and curve and budget change the model"),
        ({"keep": "best"}, "checkpoint.keep best holds what was trained on one process, got .*Fix: keep last"),
        ({"update": "dense"}, "got update 'dense' .* --dowser.update compact"),
        ({"module": {"quantization": "8bit"}}, "model.quantization 8bit, expected none"),
        (
            {"method": ModelDowser(0.1, estimator="weight")},
            "weight_square is a float32 number per weight",
        ),
    ],
)
@one_fast
def test_what_cannot_be_done_sharded_is_refused(model_folder, tmp_path, kind, options, said):
    with pytest.raises(RankError, match=said):
        run(fit, tmp_path, model_folder, strategy=kind, **options)


def fit_plain(folder, model):
    fit(folder, model, strategy=ModelParallelStrategy())


def test_a_strategy_of_lightning_itself_is_refused_with_ours(model_folder, tmp_path):
    with pytest.raises(RankError, match="ModelParallelStrategy is not supported: .* -c strategy/fsdp2"):
        run(fit_plain, tmp_path, model_folder)


def differing(folder, model, kind):
    """A batch without an image on the second rank alone."""

    class Blind(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if trainer.global_rank == 1:
                del batch["pixel_values"]

    fit(folder, model, strategy=kind, callbacks=(Blind(),), module={"also_train": ["projector"]})


@pytest.mark.slow
@one_fast
def test_a_trained_projector_needs_images_on_all_ranks_or_none(model_folder, tmp_path, kind):
    for outcome in outcomes(differing, tmp_path, model_folder, kind):
        assert "got images on 1 of 2 processes" in outcome.message


def scaled(folder, model, kind):
    """A projector with a number of its own, as it is trained by one process."""

    def load(*arguments, **options):
        loaded = load_model(*arguments, **options)
        where = "meta" if options["empty"] else "cpu"
        loaded.model.multi_modal_projector.scale = torch.nn.Parameter(torch.ones((), device=where))
        return loaded

    with patch("dowser_pl.module.multimodal.load_model", load):
        fit(folder, model, strategy=kind, module={"also_train": ["projector"]})


@one_fast
def test_a_trained_number_that_no_one_would_average_is_refused(model_folder, tmp_path, kind):
    with pytest.raises(RankError, match="got a parameter without dimensions .* model.also_train"):
        run(scaled, tmp_path, model_folder, kind)


def diverging(folder, model, kind):
    """A gradient that is not finite on the second rank alone."""

    class Spoil(Callback):
        def on_after_backward(self, trainer, pl_module):
            if trainer.global_rank == 1:
                next(each for each in pl_module.protected.parameters() if each.numel()).grad[0] = float("inf")

    fit(folder, model, strategy=kind, callbacks=(Spoil(),))


@one_fast
def test_a_gradient_that_is_not_finite_on_one_rank_stops_all(model_folder, tmp_path, kind):
    for outcome in outcomes(diverging, tmp_path, model_folder, kind):
        assert "a gradient is not finite at step 0" in outcome.message
