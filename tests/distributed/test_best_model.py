"""`checkpoint.keep best` on two ranks, which must all choose, and all go back to, the same model."""

import pytest
from lightning.pytorch import Callback

from dowser_pl.callbacks import Forgetting
from tests.distributed.fits import difference, fit
from tests.distributed.harness import run
from tests.tiny_models import save_tiny_llava


class Scores(Callback):
    """Scores by step instead of the model's own; on the second rank others, which must not count."""

    def setup(self, trainer, pl_module, stage):
        forgetting = next(each for each in trainer.callbacks if isinstance(each, Forgetting))
        best = 6 if trainer.global_rank == 0 else 3
        forgetting.means = lambda module, of: {"h_score": 1.0 if trainer.global_step == best else 0.5}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_llava(tmp_path_factory.mktemp("model"))


@pytest.mark.slow
def test_all_ranks_keep_the_model_that_the_first_one_chose(model, tmp_path):
    options = {"module": {"scheduler": "constant"}, "strategy": "ddp"}
    two = run(fit, tmp_path / "two", model, max_epochs=2, **options)
    best = run(fit, tmp_path / "best", model, max_epochs=3, keep="best", callbacks=(Scores(),), **options)
    assert difference(best[0], two[0]) == difference(best[1], two[0]) == 0
    assert best[0].report["kept"].step == 6
    assert best[0].report["tasks"] == two[0].report["tasks"]
    last = str(tmp_path / "best" / "checkpoints" / "last.ckpt")
    again = run(
        fit, tmp_path / "best", model, max_epochs=3, keep="best", callbacks=(Scores(),), ckpt_path=last, **options
    )
    assert difference(again[0], two[0]) == difference(again[1], two[0]) == 0
    assert again[0].report["kept"] == best[0].report["kept"]
