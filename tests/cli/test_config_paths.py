"""Short names of configurations, and what is said of wrong ones."""

from pathlib import Path

import pytest

from dowser_pl.cli.arguments import resolve_configs


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("modle/world", ", did you mean model/world?"),
        ("strategy/fdsp2", ", did you mean strategy/fsdp2?"),
        ("configs/method/model-dowser.yaml", ", did you mean method/model_dowser?"),
        ("spyder", ", did you mean method/spider?"),
        ("llava_json", ", did you mean data/llava_json?"),
        ("world", ", did you mean bench/world or data/world or model/world?"),
        ("method/homemad", ", did you mean method/homemade?"),
    ],
)
def test_a_wrong_name_is_told_with_the_nearest(name, meant, tmp_path, monkeypatch):
    (tmp_path / "configs" / "method").mkdir(parents=True)
    (tmp_path / "configs" / "method" / "homemade.yaml").touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError) as raised:
        resolve_configs(["fit", "-c", name])
    assert str(raised.value).endswith(f"shipped ones{meant}")


def test_nothing_is_guessed_where_nothing_is_near(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("xyzzy", "mine.yaml"):
        with pytest.raises(ValueError, match=rf"no configuration file '{name}'.*strategy/single\)$"):
            resolve_configs([f"--config={name}"])


def test_names_that_exist_become_paths(tmp_path, monkeypatch):
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "base.yaml").touch()
    monkeypatch.chdir(tmp_path)
    resolved = resolve_configs(["fit", "-c", "base", "--config=method/dare", "--data", "base"])
    assert resolved[2] == str(Path("configs/base.yaml"))
    assert Path(resolved[3].removeprefix("--config=")).is_file() and resolved[3].endswith("method/dare.yaml")
    assert resolved[4:] == ["--data", "base"]


@pytest.mark.parametrize("argument", ["-cbase", "-c=base"])
def test_a_name_may_stand_right_behind_the_option(argument):
    assert resolve_configs(["fit", argument]) == resolve_configs(["fit", "-c", "base"])


def test_what_a_file_includes_comes_before_it_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, text in {
        "low": "",
        "middle": "# include: low\n",
        "high": "# About it.\n# include: low, middle\n",
    }.items():
        (tmp_path / name).write_text(text)
    resolved = resolve_configs(["fit", "-c", "high", "--config=middle", "--data", "low"])
    assert resolved == ["fit", "-c", "low", "-c", "middle", "-c", "high", "--config=middle", "--data", "low"]
    assert resolve_configs(resolved) == resolved


def test_files_that_include_each_other_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "one").write_text("# include: two\n")
    (tmp_path / "two").write_text("# include: one\n")
    with pytest.raises(ValueError, match="include each other: one includes two includes one"):
        resolve_configs(["-c", "one"])
