"""What a run takes beside memory: rows as they are, steps, hours, disk, the command."""

import json
import sys

import pytest

from dowser_pl.callbacks import room
from dowser_pl.cli.main import main
from dowser_pl.methods import Magnitude
from dowser_pl.planning.memory import Placement
from dowser_pl.planning.model import batch_of
from dowser_pl.planning.run import Rows, _fit_command, _taken, duration, rate_of, rows_of
from dowser_pl.planning.verb import plan_run
from tests.tiny_models import FAMILIES, save_tiny_llava
from tests.tiny_run import TinyData, build_module, build_trainer


def planned(monkeypatch, tmp_path, options):
    """The run of `plan.json`."""
    monkeypatch.chdir(tmp_path)
    words = ["plan", *options.split(), "--json=plan.json"]
    monkeypatch.setattr(sys, "argv", ["dowser_pl", *words])
    main(words)
    return json.loads((tmp_path / "plan.json").read_text())


WORLD = "-c base -c model/world -c data/world -c method/random --data.num_train 50 --data.batch_size 8"


def test_rows_are_as_long_as_they_are(monkeypatch, tmp_path, capsys):
    content = planned(monkeypatch, tmp_path, f"{WORLD} --trainer.max_epochs 3 --tokens_per_second 100")
    run, batch = content["run"], content["rows"]["compact"]["batch"]
    lengths = run["rows"]["lengths"]
    assert run["rows"]["count"] == len(lengths) == 50 and batch["tokens"] == run["rows"]["longest"] == max(lengths) < 40
    assert (run["seen"], run["steps"]) == (150, 3 * 7)
    assert run["tokens"][0] == pytest.approx(3 * sum(lengths)) and run["tokens"][0] <= run["tokens"][1] <= 150 * max(
        lengths
    )
    low, high = run["seconds"]["compact"]
    assert low == pytest.approx(run["tokens"][0] / 110) and high == pytest.approx(run["tokens"][1] / 90)
    printed = capsys.readouterr().out
    out = " ".join(printed.split())
    assert f"rows: 50, of {min(lengths)} to {max(lengths)} tokens" in out and "an assumption" not in out
    assert f"time: {duration(low)} to {duration(high)} at 90 to 110 tokens a second" in out
    assert "learning rate: 2e-05; masks did best at about ten times" in out and "disk: " in out
    command = f"next: python -m dowser_pl fit {WORLD} --trainer.max_epochs 3\n"
    assert printed.endswith(command), "without the options of plan alone"


def test_stated_lengths_are_not_measured_and_a_small_model_has_no_hours(monkeypatch, tmp_path, capsys):
    run = planned(monkeypatch, tmp_path, f"{WORLD} --tokens 100 --trainer.max_steps 4")["run"]
    assert run["rows"]["lengths"] == [100] and run["rows"]["count"] == 50
    assert run["steps"] == 4 and run["tokens"] == [3200, 3200] and run["seconds"]["compact"] is None
    out = " ".join(capsys.readouterr().out.split())
    assert "no rate was measured for this model and device; state --tokens_per_second" in out


def test_rows_of_stated_length_are_counted_without_a_processor(tmp_path):
    class Without:
        @property
        def processor(self):
            raise AssertionError("asked for")

    data = TinyData(num_rows=9)
    assert rows_of(Without(), data, 64) == Rows(9, (64,), 64)
    assert data.processor is None
    data.processor = build_module(save_tiny_llava(tmp_path / "model")).processor
    measured = rows_of(Without(), data, None)
    assert measured.count == len(measured.lengths) == 9 and len(set(measured.lengths)) == 1
    assert rows_of(Without(), None, None).unknown == "no data were named"


def test_data_that_are_not_here_are_told_and_assumed(monkeypatch, tmp_path, capsys):
    options = "-c base -c model/world -c data/llava_json -c method/random"
    run = planned(monkeypatch, tmp_path, options)["run"]
    out = " ".join(capsys.readouterr().out.split())
    assert run["rows"]["count"] is None and run["steps"] is None and run["tokens"] is None
    assert "rows: not measured: No data file at " in out and "tokens a row is an assumption" in out


@pytest.mark.parametrize("rate", ["0", "-3"])
def test_a_rate_is_above_nothing(rate, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="tokens_per_second"):
        main(["plan", "-c", "model/world", f"--tokens_per_second={rate}"])


@pytest.mark.slow
def test_the_disk_is_what_a_run_asks_room_for(monkeypatch, tmp_path):
    model, found = save_tiny_llava(tmp_path / "model"), []
    needed = room.disk_bytes
    monkeypatch.setattr(room, "disk_bytes", lambda *given: found.append(needed(*given)) or found[-1])
    trainer = build_trainer(tmp_path / "run", Magnitude(0.1), max_steps=1, export=True)
    trainer.fit(build_module(model), datamodule=TinyData())
    again = build_trainer(tmp_path / "other", Magnitude(0.1), max_steps=1, export=True)
    _, run = plan_run(again, build_module(model), TinyData(), Placement(), None, None, True)
    assert found == [run.disk] and set(run.disk) == {"the exported model", "checkpoints", "the patch"}


def test_a_batch_is_filled_up_to_its_longest_row():
    rows = Rows(10, (10, 10, 10, 50), 50)
    assert rows.tokens(1) == (20, 20)
    assert rows.tokens(3) == (20, 20) and rows.tokens(8) == (20, 50)


def test_rates_are_of_one_card_scaled_or_as_stated():
    rate = rate_of("compact", 6.756e9, 1, None, False)
    assert (rate.low, rate.high) == (1456.2, 2912.4) and "H200" in rate.source
    assert rate_of("compact", 13.512e9, 4, None, False).high == pytest.approx(2 * 2912.4)
    for unknown in (
        ("compact", 6e9, 1, None, True),
        ("compact", 1e8, 1, None, False),
        ("each step", 6e9, 1, None, False),
    ):
        assert rate_of(*unknown) is None
    stated = rate_of("each step", 1e6, 8, 1000.0, True)
    assert (stated.low, stated.high) == (900, pytest.approx(1100)) and "stated" in stated.source


class Limits:
    def __init__(self, max_epochs=None, max_steps=-1, accumulate_grad_batches=1):
        vars(self).update(locals())


@pytest.mark.parametrize(
    ("limits", "count", "expected"),
    [
        (Limits(2), 100, (200, 2 * 13)),
        (Limits(2, accumulate_grad_batches=4), 100, (200, 2 * 4)),
        (Limits(2, max_steps=5), 100, (40, 5)),
        (Limits(-1, max_steps=5), None, (40, 5)),
        (Limits(2), None, (None, None)),
        (Limits(), 100, (None, None)),
    ],
)
def test_rows_and_steps_of_a_run(limits, count, expected):
    assert _taken(limits, count, 8) == expected


def test_the_command_is_that_of_plan_without_its_own_options():
    words = ["-c", "base", "--tokens", "512", "--json=x.json", "--trainer.max_epochs", "2", "--tokens_per_second", "9"]
    assert _fit_command(words)[3:] == ["fit", "-c", "base", "--trainer.max_epochs", "2"]


@pytest.mark.parametrize("family", ["llava", "internvl", "idefics3"])
def test_images_have_the_tokens_of_the_model(family):
    """Four of a 16 x 16 image, whatever its patches are merged to."""
    model = FAMILIES[family]()
    model.config.get_text_config(decoder=True).max_position_embeddings = 4096
    assert batch_of(model, None, False).tokens == 4 + 512
