import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from dowser_pl import __version__
from dowser_pl.__main__ import OFFLINE_MODULES, OFFLINE_VERBS, VERBS, main, script
from tests.reporting.samples import report

HEAVY = ("torch", "lightning", "torchmetrics", "transformers", "matplotlib", "numpy", "PIL")


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"], ["help"]])
def test_overview_names_every_verb(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert all(f"\n  {verb} " in out for verb in VERBS)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"dowser_pl {__version__}\n"


def test_unknown_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reprot"]) == 2
    assert "Did you mean 'report'?" in capsys.readouterr().err


@pytest.mark.parametrize("status", [0, 1, 2, 143])
@pytest.mark.parametrize("raises", [False, True])
def test_only_a_process_that_was_asked_to_end_goes_at_once(
    status: int, raises: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def verb() -> int:
        if raises:
            raise SystemExit(status)
        return status

    gone: list[int] = []
    monkeypatch.setattr("dowser_pl.__main__.main", verb)
    monkeypatch.setattr("dowser_pl.__main__.os._exit", gone.append)
    with pytest.raises(SystemExit) as stop:
        script()
    assert stop.value.code == status and gone == [143] * (status == 143)


def test_each_offline_verb_has_a_module() -> None:
    assert set(OFFLINE_MODULES) == set(OFFLINE_VERBS)


@pytest.mark.parametrize("arguments", [["fit", "--config", "x.yaml"], ["--config", "x.yaml", "fit"]])
def test_other_verbs_go_to_the_training_command_line(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.yaml").write_text("model: {path: embedded:world}")
    received: list[list[str]] = []
    fake = ModuleType("dowser_pl.cli.main")
    fake.main = received.append  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "dowser_pl.cli.main", fake)
    assert main(arguments) == 0
    assert received == [arguments]


def loaded_after(code: str) -> list[str]:
    """Heavy modules in a fresh interpreter after some code."""
    script = f"import sys\n{code}\nprint([name for name in {HEAVY} if name in sys.modules], file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return eval(done.stderr.strip().splitlines()[-1])


def test_offline_code_imports_nothing_heavy() -> None:
    assert loaded_after("import dowser_pl.reporting, dowser_pl.commands.report") == []


def test_overview_imports_nothing_heavy() -> None:
    assert loaded_after("from dowser_pl.__main__ import main; main(['--help'])") == []


def test_report_imports_nothing_heavy(tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text(report().to_json())
    assert loaded_after(f"from dowser_pl.__main__ import main; main(['report', {str(tmp_path)!r}])") == []


def test_python_m(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "dowser_pl", "report", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: The folder")
