"""What replay and the drift meter keep, planned before any row is written, against what a run of theirs keeps."""

import pytest
import torch

from dowser_pl.callbacks import room
from dowser_pl.importance import Rows
from dowser_pl.importance.replay import Replay
from dowser_pl.methods import Lora, NullSpace, NullSpaceSettings, Spider
from dowser_pl.models.lora import LoraSettings
from dowser_pl.planning.memory import Placement
from dowser_pl.planning.text import lines, table
from dowser_pl.planning.verb import plan_run
from tests.tiny_models import make_processor_folder, tiny_llava
from tests.tiny_run import TinyData, build_module, build_trainer

ROWS = Rows(sources=["text", "noise", "train"], per_source=20, num_tokens=2)  # too short to end by themselves
HIDDEN = 256


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    tiny_llava(hidden_size=HIDDEN, intermediate_size=64, head_dim=64).save_pretrained(path)
    make_processor_folder(path)
    return path


def tensors(value):
    """Of a nest of lists and dictionaries."""
    if isinstance(value, torch.Tensor):
        return [value]
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return [each for part in inner for each in tensors(part)]


@pytest.mark.slow
@pytest.mark.parametrize("also", [[], ["lm_head"]])
def test_rows_are_planned_as_a_run_keeps_them(folder, tmp_path, also):
    """Hidden states, or where the head is trained the likeliest outcomes."""
    options = {"last_n_layers": 1, "also_train": also}
    given = {"rows": ROWS, "replay": Replay(rows=4), "drift": True, "max_epochs": 1, "max_steps": 1}
    trainer = build_trainer(tmp_path / "run", Spider(), limit_val_batches=1, **given)
    trainer.fit(build_module(folder, **options), datamodule=TinyData())
    dowser = trainer.callbacks[0]
    other = build_trainer(tmp_path / "other", Spider(), **given)
    forms, run = plan_run(other, build_module(folder, **options), TinyData(), Placement(), None, None, True)
    replay, drift = forms["compact"].written
    for planned, kept in ((replay, dowser._replayer), (drift, dowser._meter)):
        state, rows = kept.state_dict(), kept.base.rows
        assert planned.count == pytest.approx(len(rows), rel=0.05)
        assert planned.checkpoint == pytest.approx(sum(each.nbytes for each in tensors(state)), rel=0.05)
        assert planned.outputs == pytest.approx(sum(each.nbytes for each in tensors(state["base"])), rel=0.05)
        images = sum(value.nbytes for row in rows for value in row.image.values())
        assert planned.pictures == pytest.approx(images, rel=0.05) and images
        held = sum(row.tokens.nbytes + row.is_text.nbytes for row in rows) + images
        assert planned.host == pytest.approx(held + planned.outputs, rel=0.05)
        assert run.disk[f"{planned.use} in checkpoints"] == 2 * planned.checkpoint
    lengths = [len(row.tokens) for row in dowser._replayer.base.rows]  # a few were written again, and are longer
    assert replay.step.rows == 4 and replay.step.tokens in (max(lengths), sorted(lengths)[int(0.9 * len(lengths))])
    assert drift.step is None


def test_each_use_has_lines_of_its_own(folder, tmp_path):
    def said(**options):
        trainer = build_trainer(tmp_path, Spider(), rows=ROWS, max_epochs=1, **options)
        forms, run = plan_run(trainer, build_module(folder), TinyData(), Placement(), None, None, True)
        shown = "\n".join(table(forms))
        assert all(line.strip() in shown for line in lines(forms["compact"])[2:] if " keeps " in line)
        return shown, run.disk

    neither, disk = said()
    assert "replay" not in neither and "drift" not in neither and not any("in checkpoints" in name for name in disk)
    drift, disk = said(drift=True)
    assert "replay" not in drift and "drift keeps 6 rows that the base writes: " in drift
    assert "drift in checkpoints" in disk and "replay in checkpoints" not in disk
    both, _ = said(drift=True, replay=Replay(rows=4, sources=["text"]))
    assert "replay keeps 18 rows that the base writes: " in both and "(0.00 MiB of it pictures)" in both
    assert "replay computes 4 x " in both


def test_data_that_are_not_here_are_planned_as_if_they_had_pictures(folder, tmp_path):
    trainer = build_trainer(tmp_path, Spider(), rows=ROWS, drift=True, max_epochs=1)
    forms, _ = plan_run(trainer, build_module(folder), None, Placement(), 64, None, True)
    (drift,) = forms["compact"].written
    assert drift.count == 6 and drift.pictures


def test_what_cannot_be_counted_is_said(tmp_path):
    tiny_llava().save_pretrained(tmp_path / "model")  # without a processor
    trainer = build_trainer(tmp_path, Spider(), rows=ROWS, drift=True, max_epochs=1)
    forms, run = plan_run(trainer, build_module(tmp_path / "model"), None, Placement(), 64, None, True)
    assert "replay and drift: what is kept of rows is not counted: " in "\n".join(table(forms))
    assert not any(name.endswith("in checkpoints") for name in run.disk)


@pytest.mark.slow
@pytest.mark.parametrize("method", [NullSpace(rank=8, tokens=60), Lora(NullSpaceSettings(rank=8, tokens=60)), Spider()])
def test_a_checkpoint_is_as_large_as_room_is_asked_for(folder, tmp_path, monkeypatch, method):
    """Offsets, sums and directions included, and what the base said."""
    told, sizes = [], room.disk_bytes
    monkeypatch.setattr(room, "disk_bytes", lambda *given: told.append(sizes(*given)) or told[-1])
    trainer = build_trainer(tmp_path, method, max_epochs=1, limit_val_batches=1, rows=ROWS, replay=Replay(), drift=True)
    adapters = LoraSettings(r=16) if isinstance(method, Lora) else None
    trainer.fit(build_module(folder, lora=adapters), datamodule=TinyData())
    (asked,) = told
    planned = sum(size for name, size in asked.items() if "checkpoints" in name)
    written = max(file.stat().st_size for file in (tmp_path / "checkpoints").iterdir())
    assert planned == pytest.approx(2 * written, rel=0.1)
