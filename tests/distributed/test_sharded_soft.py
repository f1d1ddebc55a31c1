"""Methods that decide after every step where weights are sharded over two ranks, against one process."""

import shutil
from functools import partial

import pytest
import torch

from dowser_pl.callbacks import AtomicCheckpointIO
from dowser_pl.distributed.collectives import DistributedReducer
from dowser_pl.errors import DowserError
from dowser_pl.functional.selection import highest, highest_of_parts
from dowser_pl.functional.soft_masks import rescaled, standardised
from dowser_pl.methods import L2SP, OSF, Anchor, MoFO, NullSpace, SoftDowser, Spider
from dowser_pl.strategies.fsdp2 import FSDP2Strategy
from tests.distributed.fits import difference, fit
from tests.distributed.harness import alone, run
from tests.distributed.sharded import both, one_fast
from tests.distributed.test_resume import fit_until
from tests.tiny_models import save_tiny_llava

LAST = "checkpoints/last.ckpt"
METHODS = {"spider": Spider(), "soft dowser": SoftDowser(), "l2sp": L2SP(0.1), "anchor": Anchor(0.9)}
MATRICES = [
    torch.linspace(-2, 3, 35).view(5, 7),
    torch.full((4, 3), -2.0),
    torch.zeros(3, 2),
    torch.tensor([[1.0, 0.0, 0.0]]),
]


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    return save_tiny_llava(tmp_path_factory.mktemp("model"))


def parts(matrices):
    """Uneven ones, the second rank with nothing of the last."""
    found = []
    for matrix in matrices:
        first = -(-matrix.shape[0] // 2)
        part = (matrix[:first], matrix[first:])[torch.distributed.get_rank()]
        size = standardised(part, DistributedReducer())
        top = highest_of_parts(part.abs(), lambda total: total // 3, DistributedReducer())
        found.append((size, rescaled(size * (size > 0.4), DistributedReducer()), top))
    return found


def test_parts_of_a_matrix_are_standardised_and_chosen_by_all_of_it():
    halves = run(parts, MATRICES)
    for matrix, first, second in zip(MATRICES, *halves, strict=True):
        size = standardised(matrix)
        assert torch.allclose(torch.cat([first[0], second[0]]), size, atol=1e-6)
        assert torch.allclose(torch.cat([first[1], second[1]]), rescaled(size * (size > 0.4)), atol=1e-6)
        assert torch.equal(torch.cat([first[2], second[2]]), highest(matrix.abs(), matrix.numel() // 3))


@pytest.mark.slow
@both
@pytest.mark.parametrize("name", METHODS)
def test_two_ranks_end_where_one_process_does(model_folder, tmp_path, name, kind):
    options = {"max_epochs": 1, "num_rows": 16, "optimizer": "sgd", "method": METHODS[name], "strategy": kind}
    options |= {"gradient_clip_val": 0.05, "accumulate_grad_batches": 2}
    one = alone(fit, tmp_path / "one", model_folder, **options)
    first, second = run(fit, tmp_path / "two", model_folder, **options)
    assert one.frozen_digest == first.frozen_digest == second.frozen_digest
    assert first.counts[1].entries == one.counts[1].entries and first.counts[1].changed > 0
    assert first.steps == one.steps > 0
    assert difference(first, one) <= 1e-5 * one.way


@pytest.mark.slow
@one_fast
def test_momentum_is_filtered_by_that_of_whole_matrices(model_folder, tmp_path, kind):
    """Adam, of which the entries of small momentum, whose sign rounding decides, do not move."""
    options = {"max_epochs": 1, "num_rows": 16, "batch_size": 4, "method": MoFO(0.02, decay="chosen")}
    one = alone(fit, tmp_path / "one", model_folder, **options)
    first, second = run(fit, tmp_path / "two", model_folder, strategy=kind, **options)
    assert one.frozen_digest == first.frozen_digest == second.frozen_digest
    assert first.counts == second.counts and first.steps == one.steps == 4
    assert 0.02 * one.counts[1].entries < one.counts[1].changed < 0.09 * one.counts[1].entries
    assert abs(first.counts[1].changed - one.counts[1].changed) < 0.01 * one.counts[1].changed
    assert difference(first, one) <= 1e-3 * one.way and difference(first, second) == 0


@pytest.mark.slow
@both
def test_one_process_then_two_ranks_then_one(model_folder, tmp_path, kind):
    """Sums of gradients and percentiles go along, so the end is that of an unbroken run."""
    settings = {"num_rows": 16, "batch_size": 4, "max_epochs": 1, "optimizer": "sgd", "method": SoftDowser()}
    unbroken = alone(fit, tmp_path / "unbroken", model_folder, **settings)
    folder, resumed = tmp_path / "run", settings | {"ckpt_path": str(tmp_path / "run" / LAST)}
    alone(fit_until, folder, model_folder, 1, **settings)
    run(fit_until, folder, model_folder, 2, strategy=kind, **resumed)
    ended = alone(fit, folder, model_folder, **resumed)
    assert ended.steps == unbroken.steps == 4
    assert difference(ended, unbroken) <= 1e-5 * unbroken.way


@pytest.mark.slow
def test_a_folder_that_ranks_wrote_together_is_gone_on_with_by_all(model_folder, tmp_path):
    """FSDP2 into a folder, then FSDP1, then one process: what is kept beside the entries goes along."""
    settings = {"num_rows": 16, "batch_size": 4, "max_epochs": 1, "optimizer": "sgd", "method": SoftDowser()}
    settings |= {"plugins": [AtomicCheckpointIO()]}
    unbroken = alone(fit, tmp_path / "unbroken", model_folder, **settings)
    folder, resumed = tmp_path / "run", settings | {"ckpt_path": str(tmp_path / "run" / LAST)}
    run(fit_until, folder, model_folder, 1, strategy=FSDP2Strategy(save_distributed_checkpoint=True), **settings)
    assert (folder / LAST).is_dir()
    run(fit_until, folder, model_folder, 2, strategy="fsdp1", **resumed)
    assert (folder / LAST).is_file()
    run(fit_until, folder, model_folder, 3, strategy=FSDP2Strategy(save_distributed_checkpoint=True), **resumed)
    ended = alone(fit, folder, model_folder, **resumed)
    assert ended.steps == unbroken.steps == 4
    assert difference(ended, unbroken) <= 1e-5 * unbroken.way


NULL_SPACE = {
    "max_epochs": 1,
    "num_rows": 16,
    "batch_size": 4,
    "optimizer": "sgd",
    "method": NullSpace(rank=4, tokens=40),
}

OSF_RUN = {"method": OSF()}


def fit_null(folder, model, step=None, **options):
    """A run, until so many steps are done."""
    run_it = fit if step is None else partial(fit_until, step=step)
    return run_it(folder, model, **NULL_SPACE | options)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        pytest.param("ddp", {}, marks=pytest.mark.slow),
        ("fsdp2", {}),
        pytest.param("ddp", OSF_RUN, marks=pytest.mark.slow),
    ],
    ids=["ddp", "fsdp2", "osf-ddp"],
)
def test_a_null_space_on_two_ranks_is_that_of_one_process(model_folder, tmp_path, kind, options):
    one = alone(fit_null, tmp_path / "one", model_folder, **options)
    first, second = run(fit_null, tmp_path / "two", model_folder, strategy=kind, **options)
    assert one.frozen_digest == first.frozen_digest == second.frozen_digest
    assert first.steps == one.steps == 4 and first.counts[1].changed > 0
    assert difference(first, one) <= 1e-5 * one.way and difference(first, second) == 0


@pytest.mark.slow
@pytest.mark.parametrize("sharded", [False, True], ids=["file", "folder"])
def test_a_null_space_goes_on_bit_by_bit_on_two_ranks_and_on_one(model_folder, tmp_path, sharded):
    """Directions are whole on every rank, and written once, in a checkpoint of either form."""

    def strategy():
        return FSDP2Strategy(save_distributed_checkpoint=sharded)

    options = {"plugins": [AtomicCheckpointIO()]}
    unbroken, _ = run(fit_null, tmp_path / "unbroken", model_folder, strategy=strategy(), **options)
    folder = tmp_path / "run"
    run(fit_null, folder, model_folder, 2, strategy=strategy(), **options)
    assert (folder / LAST).is_dir() == sharded
    shutil.copytree(folder, tmp_path / "other")
    resumed, _ = run(fit_null, folder, model_folder, strategy=strategy(), ckpt_path=str(folder / LAST), **options)
    assert difference(resumed, unbroken) == 0 and resumed.steps == unbroken.steps == 4
    alone_now = alone(fit_null, tmp_path / "other", model_folder, ckpt_path=str(tmp_path / "other" / LAST), **options)
    assert difference(alone_now, unbroken) <= 1e-5 * unbroken.way


def refused(folder, model):
    with pytest.raises(DowserError, match=r"NullSpace in a null space with FSDP1.*keeps rows of matrices whole.*fsdp2"):
        fit_null(folder, model, strategy="fsdp1")


def osf_refused(folder, model):
    with pytest.raises(DowserError, match=r"got preserve 0.5 with weights that are sharded"):
        fit_null(folder, model, strategy="fsdp2", **OSF_RUN)


@pytest.mark.slow
def test_osf_is_refused_where_weights_are_sharded(model_folder, tmp_path):
    run(osf_refused, tmp_path, model_folder)


def test_a_null_space_of_flat_pieces_is_refused(model_folder, tmp_path):
    run(refused, tmp_path, model_folder)
