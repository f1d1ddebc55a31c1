"""Whatever goes wrong on one rank ends both, with that rank's message."""

import os
import signal
import time
from contextlib import nullcontext
from pathlib import Path
from unittest.mock import patch

import pytest
from lightning.pytorch import Callback
from torch import distributed

from tests.distributed.fits import fit
from tests.distributed.harness import outcomes, run
from tests.tiny_models import save_tiny_llava
from tests.tiny_run import TinyData

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    return save_tiny_llava(tmp_path_factory.mktemp("model"))


class BadRow(TinyData):
    """One row is ill, and only the rank that draws it finds out."""

    def train_conversations(self):
        rows = super().train_conversations()
        del rows[5].messages[1]
        return rows


class Fails(Callback):
    """Raises in a hook, on one rank."""

    def __init__(self, hook: str, rank: int) -> None:
        setattr(self, hook, lambda *_, **__: self._fail(rank))

    def _fail(self, rank: int) -> None:
        if distributed.get_rank() == rank:
            raise ValueError(f"only rank {rank} knows")


class Sticks(Callback):
    """Rank 1 fails while rank 0 is where no closed connection reaches it."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_rank == 1:
            raise ValueError("only rank 1 knows")
        time.sleep(60)


def with_a_bad_row(folder, model):
    data = BadRow(12, 4)
    data.split_batches = True
    return fit(folder, model, data=data)


def failing(folder, model, hook, rank):
    return fit(folder, model, callbacks=(Fails(hook, rank),), max_epochs=1)


def sticking(folder, model):
    return fit(folder, model, callbacks=(Sticks(),), max_epochs=1, patience=1.0)


def beginning_apart(folder, models):
    return fit(folder, models[distributed.get_rank()])


def test_ranks_that_begin_from_other_weights_are_refused(tmp_path, model_folder):
    """One machine has an older copy of the model, say; tuned matrices are not sent to make them equal."""
    other = save_tiny_llava(tmp_path / "other", seed=1)
    for outcome in outcomes(beginning_apart, tmp_path / "run", [model_folder, other]):
        assert "process 1 has other weights than the first" in outcome.message


def test_a_row_that_only_one_rank_can_read_is_named_on_both(tmp_path, model_folder):
    ended = outcomes(with_a_bad_row, tmp_path / "run", model_folder)
    messages = [outcome.message for outcome in ended]
    assert [outcome.status for outcome in ended] == [1, 1], messages
    assert all("row 5" in message for message in messages), messages
    assert sum("process" in message and "failed: " in message for message in messages) == 1


@pytest.mark.parametrize(
    ("hook", "rank"),
    [
        ("on_fit_start", 1),
        ("on_before_optimizer_step", 0),
        pytest.param("on_train_end", 0, marks=pytest.mark.slow),
        pytest.param("on_train_end", 1, marks=pytest.mark.slow),
    ],
)
def test_a_failure_in_any_hook_reaches_the_other_rank(tmp_path, model_folder, hook, rank):
    ended = outcomes(failing, tmp_path / "run", model_folder, hook, rank)
    assert [outcome.status for outcome in ended] == [1, 1]
    kept = " All 3 steps are kept in " if hook == "on_train_end" else ""
    own, told = f"ValueError: only rank {rank} knows", f"DowserError: process {rank} failed: only rank {rank} knows"
    assert ended[rank].message.partition(".")[0] == own and kept in ended[rank].message
    assert ended[1 - rank].message.partition(".")[0] == told


def failing_then_well(folder, model):
    """Two trainers in one process; the first run is refused on all ranks."""
    with pytest.raises(ValueError, match="a multiple of the number of processes"):
        fit(folder, model, batch_size=3, max_epochs=1)
    return fit(folder, model, max_epochs=1, patience=0.0, callbacks=(Slow(),)).steps


class Slow(Callback):
    """Longer than two looks."""

    def on_train_start(self, trainer, pl_module):
        time.sleep(2.5)


def interrupted(folder, model):
    with pytest.raises(SystemExit):
        fit(folder, model, callbacks=(Interrupts(),), max_epochs=1)


class Interrupts(Callback):
    """Ctrl-C reaches the second rank alone."""

    def on_train_start(self, trainer, pl_module):
        if trainer.global_rank == 1:
            raise KeyboardInterrupt


def terminated(folder, model):
    """The second process cannot ask who failed any more: where Lightning starts it, the store lies on the first."""
    gone = patch("dowser_pl.callbacks.fail_together._first_failure", side_effect=RuntimeError("no store"))
    with gone if distributed.get_rank() == 1 else nullcontext():
        fit(folder, model, callbacks=(Terminates(),), max_epochs=1)


class Terminates(Callback):
    """The first process alone is asked to end, as by ``kill``."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_rank == 0:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.slow
def test_a_run_that_is_asked_to_end_does(tmp_path, model_folder):
    """Lightning's own handler would begin a broadcast here, and none would ever end."""
    first, second = outcomes(terminated, tmp_path / "run", model_folder, seconds=40)
    assert first.status == second.status == 1
    assert second.message == "DowserError: process 0 failed: ended by SIGTERM"


@pytest.mark.slow
def test_a_run_after_one_that_failed_does_not_hear_of_it(tmp_path, model_folder):
    assert run(failing_then_well, tmp_path / "run", model_folder) == [3, 3]


def test_an_interruption_is_called_by_its_name(tmp_path, model_folder):
    assert outcomes(interrupted, tmp_path / "run", model_folder)[0].message.endswith("failed: KeyboardInterrupt")


@pytest.mark.slow
def test_a_rank_that_is_stuck_is_ended_with_the_others_message(tmp_path, model_folder):
    start = time.monotonic()
    ended = outcomes(sticking, tmp_path / "run", model_folder, grace=40)
    assert time.monotonic() - start < 40
    assert ended[0].status == 1 and "process 1 failed, so process 0 ends: only rank 1 knows" in ended[0].output
    assert not (Path(tmp_path) / "run" / "report.json").exists()
