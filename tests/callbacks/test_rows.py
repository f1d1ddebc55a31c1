"""The rows of a run: which there are, that they are written once, kept, and the same again after a kill."""

import json
from dataclasses import replace

import pytest
import torch
from PIL import Image

from dowser_pl.callbacks import Dowser
from dowser_pl.callbacks.dowser import importance
from dowser_pl.data import Conversation
from dowser_pl.errors import DowserError
from dowser_pl.importance import FACTORS, Probe, Rows, digest, load_factors, measure, probing_mode, read_head
from dowser_pl.importance.replay import Replay
from dowser_pl.importance.writing import RowWriter
from dowser_pl.methods import Magnitude, ModelDowser, NullSpace
from tests.tiny_models import save_tiny_llava
from tests.tiny_run import TinyData, build_module, build_trainer, turn

FEW = Rows(per_source=10, num_tokens=6)


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    return save_tiny_llava(tmp_path_factory.mktemp("model"))


class TextAlone(TinyData):
    def train_conversations(self):
        return [Conversation(f"row {n}", [turn("user", "is it red ?"), turn("assistant", "yes")]) for n in range(8)]


def fit(folder, model_folder, method=None, data=None, rows=FEW, ckpt_path=None, **options):
    options = {"drift": True, "replay": Replay(), "max_epochs": 1, **options}
    trainer = build_trainer(folder, method or Magnitude(0.2), rows=rows, **options)
    trainer.fit(build_module(model_folder), datamodule=data or TinyData(), ckpt_path=ckpt_path)
    return next(each for each in trainer.callbacks if isinstance(each, Dowser))


def told(rows):
    return [(row.kind, row.number, row.tokens.tolist(), str(row.image)) for row in rows]


@pytest.fixture
def written(monkeypatch):
    """How many starts the base is asked to continue."""
    counts = []
    original = RowWriter.write

    def counting(self, starts, streams, num_new):
        counts.append(len(starts))
        return original(self, starts, streams, num_new)

    monkeypatch.setattr(RowWriter, "write", counting)
    return counts


@pytest.mark.slow
def test_all_sources_are_mixed_and_none_is_both_used_and_held_out(tmp_path, model_folder):
    dowser = fit(tmp_path, model_folder)
    used, held_out = dowser._replayer.base.rows, dowser._meter.base.rows
    every = ["text", "chat", "turn", "noise", "train", "shuffle", "mosaic"]
    assert [row.kind for row in used[:7]] == every == [row.kind for row in held_out]
    assert not {(row.kind, row.number) for row in used} & {(row.kind, row.number) for row in held_out}
    assert set(json.loads((tmp_path / "report.json").read_text())["drift"]["sources"]) == set(every)


@pytest.mark.slow
@pytest.mark.parametrize(("num_rows", "used", "held_out"), [(24, 21, 3), (9, 7, 2), (2, 1, 1)])
def test_held_out_rows_have_pictures_of_their_own(tmp_path, model_folder, num_rows, used, held_out):
    data = TinyData(num_rows=num_rows)
    dowser = fit(tmp_path, model_folder, data=data, rows=Rows(["train"], per_source=80, num_tokens=4))
    pictures = [
        {row.image["pixel_values"].sum().item() for row in rows}
        for rows in (dowser._replayer.base.rows, dowser._meter.base.rows)
    ]
    assert not pictures[0] & pictures[1]
    assert used / 2 < len(pictures[0]) <= used and 1 <= len(pictures[1]) <= held_out


def test_without_training_pictures_it_says_what_is_not_looked_at(tmp_path, model_folder, caplog, monkeypatch):
    said = []
    monkeypatch.setattr("dowser_pl.callbacks.dowser.rows.rank_zero_info", said.append)
    dowser = fit(tmp_path, model_folder, data=TextAlone())
    assert {row.kind for row in dowser._meter.base.rows} == {"text", "chat", "turn", "noise"}
    assert all("pictures such as yours is not looked at" in line for line in said) and len(said) == 2


@pytest.mark.slow
def test_rows_of_the_cache_say_it_too(tmp_path, model_folder, monkeypatch):
    said = []
    monkeypatch.setattr("dowser_pl.callbacks.dowser.rows.rank_zero_info", said.append)
    for name in ("a", "b"):
        fit(tmp_path / name, model_folder, data=TextAlone(), cache_dir=str(tmp_path / "cache"), replay=None)
    first, again = said
    assert first == again.replace("wrote before:", "writes") != again and "is not looked at" in again


def test_pictures_of_questions_are_in_no_row(tmp_path, model_folder):
    """The data's questions show other pictures than its training rows, and rows after `train` show only the latter."""
    asked = set()

    class Asked(TinyData):
        def training_pictures(self, number, seed):
            found = super().training_pictures(number, seed)
            asked.update(each.tobytes() for each in found)
            return found

        def evaluation_tasks(self):
            tasks = super().evaluation_tasks()
            for question in tasks[0].questions:
                question.images[:] = [Image.new("RGB", (36, 36), (1, 2, 3))]
            return tasks

    data = Asked()
    fit(tmp_path, model_folder, data=data, replay=None)
    assert asked == {row.images[0].tobytes() for row in data.train_conversations()}


def test_replay_and_the_null_space_share_rows_that_are_written_once(tmp_path, model_folder, written):
    with pytest.warns(UserWarning, match=r"fewer than the 8,192 that inputs"):
        fit(tmp_path, model_folder, NullSpace(), rows=Rows(["text"], per_source=10, num_tokens=6), drift=False)
    assert written[0] == 9 and all(count == 0 for count in written[1:])


def test_what_nothing_asks_for_is_not_written(tmp_path, model_folder, written):
    fit(tmp_path, model_folder, replay=None, drift=False)
    assert not written
    fit(tmp_path / "b", model_folder, replay=None, rows=Rows(["text"], per_source=10, num_tokens=6))
    assert written[0] == 1  # the row that is held out


@pytest.mark.slow
def test_a_cache_gives_the_same_rows_back(tmp_path, model_folder, written):
    cache = str(tmp_path / "cache")
    first = fit(tmp_path / "a", model_folder, cache_dir=cache)
    assert sum(written)
    written.clear()
    again = fit(tmp_path / "b", model_folder, cache_dir=cache)
    assert not written
    assert told(again._replayer.base.rows) == told(first._replayer.base.rows)
    fit(tmp_path / "c", model_folder, cache_dir=cache, rows=Rows(per_source=10, num_tokens=6, seed=1))
    assert sum(written)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("place", "told_so"),
    [((0, -1), "is damaged: its rows are written anew"), ((3, 1), "places pictures otherwise than")],
)
def test_rows_of_a_cache_that_are_not_those_of_now_are_written_anew(tmp_path, model_folder, written, place, told_so):
    cache = tmp_path / "cache"
    first = fit(tmp_path / "a", model_folder, cache_dir=str(cache), drift=False)
    (file,) = cache.glob("*-rows-*.json")
    content = json.loads(file.read_text())
    row, token = place
    content["rows"][row][2][token] += 1
    if row:  # a row with a picture, as a processor with other placeholders would have had it written
        content["digest"] = digest(content["rows"])
    file.write_text(json.dumps(content))
    written.clear()
    with pytest.warns(UserWarning, match=told_so):
        again = fit(tmp_path / "b", model_folder, cache_dir=str(cache), drift=False)
    assert sum(written) and told(again._replayer.base.rows) == told(first._replayer.base.rows)


@pytest.mark.slow
def test_a_resumed_run_has_the_rows_of_its_checkpoint_and_refuses_other_pictures(tmp_path, model_folder, written):
    first = fit(tmp_path, model_folder, max_epochs=2, max_steps=3)
    last = str(tmp_path / "checkpoints" / "last.ckpt")
    state = torch.load(last, weights_only=True)["callbacks"]
    kept = next(each for name, each in state.items() if "Dowser" in name)
    assert all(set(row) == {"kind", "number", "tokens", "image"} for row in kept["replay"]["rows"])
    written.clear()
    resumed = fit(tmp_path, model_folder, max_epochs=2, max_steps=4, ckpt_path=last)
    assert not written
    assert told(resumed._replayer.base.rows) == told(first._replayer.base.rows)
    assert told(resumed._meter.base.rows) == told(first._meter.base.rows)

    class Repainted(TinyData):
        def training_pictures(self, number, seed):
            return [Image.new("RGB", (30, 30), (n, 5, 5)) for n in range(4)]

    class Blind(TinyData):
        training_pictures = None

    for data in (Repainted(), Blind()):
        with pytest.raises(DowserError, match="the training pictures or the processor have changed"):
            fit(tmp_path, model_folder, max_epochs=2, data=data, ckpt_path=last)


def test_a_processor_that_fails_on_pictures_is_told_and_words_are_written(tmp_path, model_folder, monkeypatch):
    """What runs by default must not end a run; sources that were asked for do."""

    def fails(self, picture, text):
        raise TypeError("no such argument")

    monkeypatch.setattr(RowWriter, "start_with", fails)
    with pytest.warns(UserWarning, match="no rows are written after 'mosaic': LlavaFor.*TypeError: no such argument"):
        dowser = fit(tmp_path / "a", model_folder, replay=None)
    assert {row.kind for row in dowser._meter.base.rows} == {"text", "chat", "turn"}
    with pytest.raises(TypeError, match="no such argument"):
        fit(tmp_path / "b", model_folder, replay=None, rows=Rows(["text", "noise"], per_source=10))


@pytest.mark.slow
def test_what_failed_is_not_kept_in_the_cache(tmp_path, model_folder, monkeypatch):
    def fails(self, picture, text):
        raise TypeError("this once")

    cache = str(tmp_path / "cache")
    with monkeypatch.context() as patch:
        patch.setattr(RowWriter, "start_with", fails)
        with pytest.warns(UserWarning, match="this once"):
            fit(tmp_path / "a", model_folder, replay=None, cache_dir=cache)
    again = fit(tmp_path / "b", model_folder, replay=None, cache_dir=cache)
    assert "train" in {row.kind for row in again._meter.base.rows}


def test_too_little_memory_is_not_taken_for_a_model_that_cannot_see(tmp_path, model_folder, monkeypatch):
    original = RowWriter._continue

    def full(self, starts, uniforms):
        if starts[0].image:
            raise torch.OutOfMemoryError("full")
        return original(self, starts, uniforms)

    monkeypatch.setattr(RowWriter, "_continue", full)
    with pytest.raises(DowserError, match="too little free memory for one prompt"):
        fit(tmp_path, model_folder, replay=None)


@pytest.mark.slow
def test_other_pictures_end_the_meter_and_not_the_run(tmp_path, model_folder):
    fit(tmp_path, model_folder, replay=None, max_epochs=2, max_steps=3)
    last = str(tmp_path / "checkpoints" / "last.ckpt")

    class Repainted(TinyData):
        def training_pictures(self, number, seed):
            return [Image.new("RGB", (30, 30), (n, 5, 5)) for n in range(4)]

    with pytest.warns(UserWarning, match="drift is not measured any more: .*have changed"):
        dowser = fit(tmp_path, model_folder, replay=None, max_epochs=2, data=Repainted(), ckpt_path=last)
    assert dowser.drift == {} and json.loads((tmp_path / "report.json").read_text())["drift"] is None


ROWS_ASKED = Probe(inputs="rows", num_prompts=21, num_probes=2, batch_size=8)


def measured(folder, model_folder, monkeypatch, probe=ROWS_ASKED, rows=FEW, data=None):
    """A run whose mask is made on rows; its callback, and each row that was asked, in order."""
    asked = []

    def spy(model, layers, prompts, *rest):
        asked.extend(prompts)
        return measure(model, layers, prompts, *rest)

    monkeypatch.setattr(importance, "measure", spy)
    options = {"probe": probe, "cache_dir": str(folder / "cache"), "replay": None, "drift": False}
    return fit(folder, model_folder, ModelDowser(0.1), data, rows, **options), asked


@pytest.mark.slow
def test_importance_is_measured_on_rows_of_every_kind_as_on_one_after_the_other(tmp_path, model_folder, monkeypatch):
    _, asked = measured(tmp_path, model_folder, monkeypatch)
    assert [row.kind for row in asked[:7]] == ["text", "chat", "turn", "noise", "train", "shuffle", "mosaic"]
    (file,) = (tmp_path / "cache").glob("*.safetensors")
    module = build_module(model_folder)
    module.configure_model()
    layers = module.tuned_layers()
    with probing_mode(module.network):
        alone = [measure(module.network, layers, [row], ROWS_ASKED, first=n) for n, row in enumerate(asked)]
    names = set()
    kept = load_factors(file, read_head(file)["identity"], list(layers), FACTORS)
    for name, statistics in kept.layers.items():
        for statistic, value in statistics.items():
            expected = torch.cat([each.layers[name][statistic] for each in alone])
            torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-6)
            names.add(statistic)
    assert {"activation", "abs_gradient"} <= names


@pytest.mark.slow
def test_importance_on_rows_is_kept_by_what_the_rows_depend_on(tmp_path, model_folder, monkeypatch):
    first, asked = measured(tmp_path, model_folder, monkeypatch)
    again, nothing = measured(tmp_path, model_folder, monkeypatch)
    assert asked and not nothing
    assert first.frozen_digest["before"] == again.frozen_digest["before"]
    assert measured(tmp_path, model_folder, monkeypatch, rows=replace(FEW, seed=1))[1]
    assert measured(tmp_path, model_folder, monkeypatch, data=TinyData(num_rows=9))[1]
    assert measured(tmp_path, model_folder, monkeypatch, replace(ROWS_ASKED, inputs="prompts", num_tokens=8))[1]


@pytest.mark.parametrize(
    ("probe", "told"),
    [
        (replace(ROWS_ASKED, num_prompts=99), r"and 99 of them to ask, expected no more than the 63 .*rows.per_source"),
        ({"inputs": "rows", "noise_images": True}, r"rows with noise_images True; .*rows.sources has noise"),
        ({"inputs": "row"}, "probe.inputs is prompts or rows, got row "),
    ],
)
def test_rows_that_cannot_be_asked_are_refused(tmp_path, model_folder, monkeypatch, probe, told):
    with pytest.raises(DowserError, match=told):
        measured(tmp_path, model_folder, monkeypatch, Probe(**probe) if isinstance(probe, dict) else probe)
