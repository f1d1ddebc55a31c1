"""Adapters behind a null space on two ranks, whole on each or sharded over them, against one process."""

import pytest
from safetensors.torch import load_file

from dowser_pl.methods import Lora, LoraStart, NullSpaceSettings
from dowser_pl.models.lora import LoraSettings
from tests.distributed.fits import difference, fit
from tests.distributed.harness import alone, run
from tests.tiny_models import save_tiny_llava

NULL_SPACE = NullSpaceSettings(0.1, 8, 60)


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    return save_tiny_llava(tmp_path_factory.mktemp("model"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "kind"),
    [
        (Lora(NULL_SPACE), "ddp"),
        (Lora(NULL_SPACE), "fsdp2"),
        (Lora(preserve=4), "ddp"),
        (Lora(start=LoraStart(tokens=60)), "ddp"),
    ],
    ids=["ddp", "fsdp2", "preserve-ddp", "start-ddp"],
)
def test_two_ranks_end_where_one_process_does(model_folder, tmp_path, method, kind):
    """Trained, written, and gone on with from the end."""
    options = {"max_epochs": 1, "num_rows": 16, "module": {"lora": LoraSettings(r=4)}, "export": True}
    options |= {"method": method, "strategy": kind, "optimizer": "sgd"}
    options |= {"gradient_clip_val": 0.05}
    one = alone(fit, tmp_path / "one", model_folder, **options)
    first, second = run(fit, tmp_path / "two", model_folder, **options)
    assert difference(first, second) == 0 and one.frozen_digest == first.frozen_digest == second.frozen_digest
    assert first.counts == second.counts and first.counts[1].entries == one.counts[1].entries
    assert first.counts[1].changed > 0 and first.steps == one.steps
    bound = 1e-4 * one.way
    assert difference(first, one) <= bound
    expected, found = (load_file(tmp_path / each / "adapter" / "adapter_model.safetensors") for each in ("one", "two"))
    assert expected.keys() == found.keys()
    assert all(float((tensor - found[key]).abs().max()) <= bound for key, tensor in expected.items())
    last = tmp_path / "two" / "checkpoints" / "last.ckpt"
    again = run(fit, tmp_path / "two", model_folder, ckpt_path=str(last), **options)
    assert difference(again[0], first) == 0


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["fsdp1", "fsdp2"])
@pytest.mark.parametrize("named", [{"preserve": 4}, {"start": LoraStart()}], ids=["preserve", "start"])
def test_what_takes_whole_matrices_is_refused_where_they_are_sharded(model_folder, tmp_path, kind, named):
    options = {"method": Lora(**named), "strategy": kind, "module": {"lora": LoraSettings(r=4)}}
    with pytest.raises(Exception, match=f"got {next(iter(named))}.* with weights that are sharded"):
        run(fit, tmp_path, model_folder, **options)


@pytest.mark.slow
def test_flat_pieces_are_refused(model_folder, tmp_path):
    with pytest.raises(Exception, match="Lora in a null space with FSDP1"):
        run(
            fit,
            tmp_path,
            model_folder,
            method=Lora(NULL_SPACE),
            strategy="fsdp1",
            module={"lora": LoraSettings(r=4)},
        )
