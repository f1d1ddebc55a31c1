"""What the pages print is run: the tutorial's files as they stand, and every command without a mark, shortened."""

import json
import subprocess
import sys

import pytest
from PIL import Image

from dowser_pl.cli.main import main
from tests.docs.pages import PAGES, ROOT, blocks, commands, write_files

# that every `fit` of the pages takes here instead of minutes
SHORT = ["--trainer.max_steps=2", "--data.num_train=64", "--data.num_eval=2", "--dowser.probe.num_prompts=8"]
ELSEWHERE = {
    "pip": "by .ci/run",
    "pytest": "is this",
    "ruff": "by .ci/run",
    "mypy": "by .ci/run",
    "mkdocs": "by .ci/run",
}
ORDER = ["docs/tutorials/quickstart.md", "docs/", "README.md"]  # later pages use runs of earlier ones


@pytest.mark.slow
def test_the_tutorials_files_are_trained_on(tmp_path, monkeypatch):
    monkeypatch.chdir(write_files(tmp_path))
    train, test = (b.text for b in blocks(ROOT / "docs" / "tutorials" / "own_data.md") if b.language == "json")
    for path, text in {"my/train.json": train, "my/test.jsonl": test, "vqa/val.jsonl": test}.items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text(text)
    for name in ("my/images/cat.png", "my/images/dog.png", "vqa/images/dog.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (32, 32), "brown").save(tmp_path / name)
    small = ["--model.path", "embedded:world", "--model.last_n_layers", "null", "--trainer.accelerator", "cpu"]
    main(["fit", "--config", "mine.yaml", *small, "--trainer.max_epochs", "1", "--dowser.probe.num_prompts", "8"])
    frozen = json.loads((tmp_path / "runs" / "mine" / "report.json").read_text())["frozen"]
    assert frozen["entries"] > 0
    assert frozen["changed"] == 0
    assert {"report.md", "patch.safetensors", "model"} <= {path.name for path in (tmp_path / "runs" / "mine").iterdir()}


def to_run() -> list[list[str]]:
    """Commands of blocks without a mark, shortened, each once."""
    found: list[list[str]] = []
    for page in dict.fromkeys(page for part in ORDER for page in PAGES if str(page.relative_to(ROOT)).startswith(part)):
        for block in blocks(page):
            for words in commands(block.text) if block.language == "sh" and block.mark is None else ():
                short = shortened(words)
                if words[0] not in ELSEWHERE and short not in found:
                    found.append(short)
    return found


def shortened(words: list[str]) -> list[str]:
    if words[:3] != ["python", "-m", "dowser_pl"]:
        return words
    resumed = "--ckpt_path" in words
    if words[3] == "bench":
        return [*words, "--list"]
    return words + SHORT + ([] if resumed else ["--overwrite=true"]) if words[3] == "fit" else words


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_commands_run(tmp_path):
    write_files(tmp_path)
    for name in ("tools", "benchmarks"):
        (tmp_path / name).symlink_to(ROOT / name)
    run = to_run()
    assert len([words for words in run if "fit" in words]) > 8
    for words in run:
        assert words[0] == "python", f"{' '.join(words)}: mark it with a reason, or teach this test"
        done = subprocess.run([sys.executable, *words[1:]], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{' '.join(words)}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
