"""What the parser of the command line says, in words; what is spelt wrong is told as it is without the parser."""

import pytest

from dowser_pl.cli.main import main

CASES = {
    "an abbreviation": ("--trainer.max_epoch 1", "there is no option --trainer.max_epoch; did you mean "),
    "a class that is nowhere": (
        "--dowser.method tests.cli.Missing",
        "--dowser.method: tests.cli has no 'Missing', expected a subclass of dowser_pl's Method",
    ),
    "a class of no known name": ("--trainer.callbacks+=Xyzzy", "--trainer.callbacks: there is no class Xyzzy that is"),
    "a list": ("--curve x", "--curve: got x, expected list"),
    "an item of a list": ("--model.also_train [atn]", "--model.also_train: "),
    "a word too many": ("extra", "not understood: extra. Help: python -m dowser_pl fit --help"),
    "a file of a group": ("--model nofile.yaml", "--model: "),
    "an option of another method": ("--dowser.method Random --dowser.method.group_size 4", "group_size"),
    "a kind of strategy": ("--trainer.accelerator.foo 3", "--trainer.accelerator: "),
    "a value": ("--data.init_args.batch_size [1]", "--data.batch_size: got "),
}


@pytest.mark.parametrize("case", CASES)
def test_refusals_are_one_line(case, capsys):
    line, said = CASES[case]
    with pytest.raises(SystemExit) as stop:
        main(["fit", "-c", "quickstart", *line.split()])
    error = capsys.readouterr().err.splitlines()[-1]
    assert stop.value.code == 2
    assert error.startswith("error: ") and said in error, error
    assert not any(noise in error for noise in ("usage:", "Namespace(", "<class", "NestedArg"))


def test_a_place_in_a_file_is_told(tmp_path, capsys):
    (tmp_path / "my.yaml").write_text("model:\n  path: embedded:world\n  also_train: [atn]\n")
    with pytest.raises(SystemExit):
        main(["fit", "-c", str(tmp_path / "my.yaml")])
    assert f"error: {tmp_path}/my.yaml:3: model.also_train: " in capsys.readouterr().err


def test_no_model(capsys):
    with pytest.raises(SystemExit):
        main(["fit", "--trainer.max_epochs", "1"])
    assert "--model.path is required" in capsys.readouterr().err


@pytest.mark.parametrize("trainer", [True, False])
def test_an_interruption_has_its_status(trainer, monkeypatch, capsys):
    def interrupted(*_, **__):
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            if trainer:
                raise SystemExit(1)  # noqa: B904 - as the Trainer does
            raise

    monkeypatch.setattr("dowser_pl.cli.main.DowserCLI", interrupted)
    with pytest.raises(SystemExit) as stop:
        main(["fit"])
    assert stop.value.code == 130 and "error: interrupted" in capsys.readouterr().err
