"""The examples of training code that is not ours run as they are, and the docs print them."""

import importlib.util
from pathlib import Path

import pytest

from dowser_pl import (
    ModelDowser,
    Probe,
    choose_masks,
    load_model,
    load_processor,
    measure_importance,
    train_only,
)
from dowser_pl.patches import Patch
from dowser_pl.patches.loaded import apply_to_model
from tests.tiny_models import save_text_model, save_tiny_llava

ROOT = Path(__file__).parents[2]
NAMES = {
    "plain_loop": save_tiny_llava,
    "own_module": save_tiny_llava,
    "hf_trainer": save_tiny_llava,
    "trl_sft": save_text_model,
    "text_only": save_text_model,
}


def example(name):
    if name == "trl_sft":
        pytest.importorskip("trl")
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_an_example_trains_and_all_else_keeps_its_bits(name, tmp_path, capsys):
    folder = NAMES[name](tmp_path / "model")
    digest = example(name).main(str(folder), str(tmp_path / "run"))
    assert capsys.readouterr().out
    base, processor = load_model(str(folder), dtype="float32"), load_processor(str(folder))
    masks = choose_masks(
        measure_importance(base, processor, probe=Probe(num_prompts=16)), ModelDowser(update_ratio=0.1)
    )
    with train_only(base, masks) as trained:
        assert digest == trained.frozen_digest, "all of them freeze the same, and know it by the same digest"
    before = {key: each.clone() for key, each in base.state_dict().items()}
    with Patch.open(tmp_path / "run" / "patch.safetensors") as patch:
        apply_to_model(base, patch)
    moved = {key for key, each in base.state_dict().items() if not each.equal(before[key])}
    assert moved and all(".layers." in key and "_proj." in key for key in moved)
    for key in moved:
        mask = masks[key.removesuffix(".weight")]
        assert base.state_dict()[key][~mask].equal(before[key][~mask])


@pytest.mark.parametrize("name", NAMES)
def test_the_docs_print_it(name):
    text, page = (ROOT / "examples" / f"{name}.py").read_text(), ROOT / "docs" / "how-to" / "own_training_code.md"
    assert f"<!-- part of a file: examples/{name}.py -->\n```python\n{text.rstrip()}\n```" in page.read_text()
    assert len(text.splitlines()) < 60
