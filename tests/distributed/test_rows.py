"""Rows of a run on two ranks: all of them on both, bit for bit those of one process."""

import pytest
from torch import distributed

from dowser_pl.callbacks import Dowser
from dowser_pl.files.digests import digest
from dowser_pl.importance import Rows
from dowser_pl.importance.replay import Replay
from dowser_pl.methods import Magnitude
from tests.distributed.harness import alone, run
from tests.tiny_models import save_tiny_llava
from tests.tiny_run import TinyData, build_module, build_trainer


def rows_of(folder, model, strategy):
    """Of what the run trains with and of what it measures with: kind, number, tokens and picture of every row."""
    several = distributed.is_initialized()
    trainer = build_trainer(
        folder,
        Magnitude(0.2),
        devices=2 if several else 1,
        strategy=strategy if several else "auto",
        rows=Rows(per_source=10, num_tokens=6, batch_size=2),
        replay=Replay(),
        drift=True,
        max_steps=1,
    )
    trainer.fit(build_module(model), datamodule=TinyData(num_rows=20))
    dowser = next(each for each in trainer.callbacks if isinstance(each, Dowser))
    return [
        (row.kind, row.number, row.tokens.tolist(), {name: digest(value) for name, value in row.image.items()})
        for part in (dowser._replayer, dowser._meter)
        for row in part.base.rows
    ]


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    return save_tiny_llava(tmp_path_factory.mktemp("model"))


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_two_ranks_have_the_rows_of_one_process(model_folder, tmp_path, strategy):
    one = alone(rows_of, tmp_path / "one", model_folder, strategy)
    assert {kind for kind, *_ in one} >= {"text", "turn", "noise", "train", "mosaic"}
    assert run(rows_of, tmp_path / "two", model_folder, strategy) == [one, one]
