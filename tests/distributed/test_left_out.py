"""Rows that cannot be used, found by whichever process has them."""

import pytest

from tests.distributed.fits import fit
from tests.distributed.harness import RankError, run
from tests.tiny_models import save_tiny_llava
from tests.tiny_run import TinyData

BAD = (1, 2, 6, 7, 11)  # both of some steps, one of others


class SomeBad(TinyData):
    """Rows whose text has a place for an image more than there are."""

    def __init__(self, skip_bad_rows=True, check="none"):
        super().__init__(num_rows=13, batch_size=1)
        self.skip_bad_rows, self.check = skip_bad_rows, check

    def train_conversations(self):
        rows = super().train_conversations()
        for number in BAD:
            rows[number].messages[0]["content"].insert(0, {"type": "image"})
        return rows


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    return save_tiny_llava(tmp_path_factory.mktemp("model"))


CASES = {"ddp": ("ddp", {}), "fsdp2": ("fsdp2", {}), "all checked": ("ddp", {"check": "all"})}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("strategy", "options"),
    [pytest.param(*case, marks=[pytest.mark.slow] * (name != "ddp"), id=name) for name, case in CASES.items()],
)
def test_all_processes_take_the_same_steps_and_the_report_counts_all(model_folder, tmp_path, strategy, options):
    first, second = run(fit, tmp_path, model_folder, data=SomeBad(**options), strategy=strategy, max_epochs=1)
    assert len(first.seen) == len(second.seen) == first.steps == 7  # as with all rows
    used = {row for batches in (first.seen, second.seen) for batch in batches for row in batch}
    assert used == {f"row {number}" for number in set(range(13)) - set(BAD)}
    assert first.report["diagnostics"]["training_rows_left_out"] == len(BAD)


@pytest.mark.slow
def test_without_leave_the_row_is_named_on_all_processes(model_folder, tmp_path):
    with pytest.raises(RankError, match=r"row \d+: got 1 images, expected 2"):
        run(fit, tmp_path, model_folder, data=SomeBad(skip_bad_rows=False), max_epochs=1, patience=5.0)
