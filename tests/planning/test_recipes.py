"""The memory that a recipe of `configs/model` says is what `plan` says of the published shapes; no weight is read."""

import json
import re
from pathlib import Path

import pytest

from dowser_pl.cli.main import main
from dowser_pl.models.loading import skeleton
from tests.published_models import PUBLISHED

FOLDER = Path(__file__).parents[2] / "configs" / "model"
PAGE = Path(__file__).parents[2] / "docs" / "reference" / "models.md"
RECIPES = sorted(path.stem for path in FOLDER.glob("*.yaml"))
HERE = {"world", "real"}  # what is shipped, and what a tool of the repository makes
UNKNOWN = {"minicpm_v_4_6"}  # `plan` says it with its config.json
SAYS = re.compile(r"# ([\d.]+) GiB of a device: (python -m dowser_pl (plan .*))")


QUICK = "smolvlm2_2b"
PLANNED = [pytest.param(name, marks=[] if name == QUICK else pytest.mark.slow) for name in sorted(PUBLISHED)]


def test_every_recipe_says_what_it_takes_or_that_it_is_not_planned():
    assert set(RECIPES) == PUBLISHED.keys() | HERE | UNKNOWN | {"molmo2_8b"}
    table = dict(re.findall(r"\| `(\w+)` \| ([\d.]+|not planned) \|", PAGE.read_text()))
    said = {name: SAYS.search((FOLDER / f"{name}.yaml").read_text()) for name in RECIPES if name not in HERE}
    assert table == {name: "not planned" if words is None else words[1] for name, words in said.items()}
    for name in UNKNOWN:
        assert "not planned" in (FOLDER / f"{name}.yaml").read_text()


@pytest.mark.parametrize("name", sorted(name for name, known in PUBLISHED.items() if known.weights is not None))
def test_shapes_have_as_many_weights_as_are_published(name, tmp_path):
    PUBLISHED[name].config.save_pretrained(tmp_path)
    model = skeleton(str(tmp_path))
    assert sum(weight.numel() for weight in model.parameters()) == PUBLISHED[name].weights


@pytest.mark.parametrize("name", PLANNED)
def test_memory_is_what_plan_says(name, tmp_path, monkeypatch):
    PUBLISHED[name].config.save_pretrained(tmp_path)
    monkeypatch.chdir(tmp_path)
    says = SAYS.search((FOLDER / f"{name}.yaml").read_text())
    assert says is not None and f"-c model/{name} " in says[3]
    main([*says[3].split(), "--model.path", str(tmp_path), "--trainer.devices", "1", "--json", "plan.json"])
    held = json.loads((tmp_path / "plan.json").read_text())["rows"]["compact"]["bytes"]["total"]
    assert f"{held / 2**30:.1f}" == says[1]
