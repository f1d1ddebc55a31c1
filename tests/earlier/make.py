"""Makes the files of `made` anew, with the code that is here; a minute.

    python -m tests.earlier.make

Every file comes from the command line of the package, as a person's would.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, equal

from tests.distributed.harness import command_line, run
from tests.tiny_models import make_processor_folder, tiny_llava
from tests.tiny_run import COLOURS

HERE = Path(__file__).parent
MIDDLE = "epoch=3-step=14.ckpt"  # of 32 steps, four an epoch
SINGLE = ["-c", "settings.yaml", "--checkpoint.every_n_steps=14", "--checkpoint.keep_all=true"]
OTHERS = ("spider", "soft_dowser", "lora")  # methods that train every entry of three matrices
ONE_MLP = ["--model.last_n_layers=1", "--model.targets=[mlp]", "--dowser.cache_dir=null"]
SHARDED = [*SINGLE, "-c", "strategy/fsdp2", "--trainer.devices=2", "--model.last_n_layers=1", "--export.enabled=false"]
SHARDED += ["--trainer.strategy.init_args.save_distributed_checkpoint=true", "--dowser.cache_dir=null"]
SETTINGS = """\
# Of every run here; paths are relative to this folder.
seed_everything: 0
trainer: {accelerator: cpu, max_epochs: 8, log_every_n_steps: 1, gradient_clip_val: 1.0}
model:
  path: base
  dtype: float32
  optimizer: {class_path: torch.optim.AdamW, init_args: {lr: 5.0e-2, weight_decay: 0.1}}
data:
  class_path: ConversationData
  init_args:
    train_file: train.json
    batch_size: 4
    split_batches: true
    tasks:
      - {name: seen, file: seen.json, role: downstream, max_new_tokens: 3}
      - {name: text, file: text.json, role: upstream, max_new_tokens: 3}
dowser:
  method: {class_path: ModelDowser, init_args: {update_ratio: 0.2}}
  probe: {num_prompts: 4, num_probes: 2, num_tokens: 12}
"""
BENCH = """\
folder: bench
fit: [settings.yaml]
set: {dowser.cache_dir: null}
validation: {data.seed: 1}
test: {data.seed: 2}
seeds: [3]
worlds: {tiny: base}
tasks: {colour: {}}
smallest_grid: 1
methods:
  ModelDowser: {grid: [5.0e-2]}
  Full: {options: {dowser.method: Full}, grid: [5.0e-3]}
  Wise: {after: Full, merge: Wise, grid: {alpha: [0.5]}}
"""


def main() -> None:
    """In a folder of its own, which takes the place of `made` when all is there."""
    line = ["git", "log", "-1", "--format=%H", "--", "dowser_pl"]
    commit = subprocess.run(line, cwd=HERE.parents[1], check=True, capture_output=True, text=True)
    with TemporaryDirectory() as temporary:
        os.chdir(temporary)
        write_inputs(Path())
        verb("fit", *SINGLE, "--dowser.cache_dir=cache", "--trainer.default_root_dir=run", "--curve=[0.05]")
        run(command_line, "fit", *SHARDED, "--trainer.default_root_dir=sharded")
        for name in OTHERS:
            verb("fit", *SINGLE, "-c", f"method/{name}", *ONE_MLP, f"--trainer.default_root_dir={name}")
            save_file(changed(f"{name}/model/model.safetensors"), f"{name}/end.safetensors")
        for folder in ("run", "sharded", *OTHERS):
            keep_the_middle(Path(folder))
        for folder in ("run", "sharded"):
            verb("patch", "export", folder, "--out", f"{folder}.safetensors")
        verb("patch", "apply", "base", "run/patch.safetensors", "--out", "applied")
        verb("bench", "-c", "bench.yaml")
        recorded = {
            "commit": commit.stdout.strip(),
            "applied": digests("applied/model.safetensors"),
            "exported": {folder: digests(f"{folder}.safetensors") for folder in ("run", "sharded")},
        }
        Path("recorded.json").write_text(json.dumps(recorded, indent=1) + "\n")
        made = [*Path().glob("*.safetensors"), *(path for path in Path("applied").iterdir() if path.is_file())]
        for path in (*made, *Path().rglob("logs"), *Path().rglob("log.txt"), *Path().glob("*/model")):
            remove(path)
        for picture in {*Path().rglob("*.png")} - {*Path().glob("*.png")}:
            remove(picture)
        shutil.rmtree(HERE / "made", ignore_errors=True)
        shutil.copytree(temporary, HERE / "made")


def digests(path: str | Path) -> dict[str, str]:
    """Name -> digest of type, shape and bytes, by none of the package's own code."""
    found = {}
    for name, tensor in sorted(load_file(path).items()):
        content = f"{tensor.dtype} {list(tensor.shape)} ".encode() + tensor.contiguous().numpy().tobytes()
        found[name] = hashlib.sha256(content).hexdigest()[:16]
    return found


def changed(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a model that are not as in the base."""
    base = load_file("base/model.safetensors")
    return {name: tensor for name, tensor in load_file(path).items() if not equal(tensor, base[name])}


def verb(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "dowser_pl", *arguments], check=True)


def write_inputs(folder: Path) -> None:
    """A base model of two decoder layers and its processor; rows to learn, and to be asked."""
    (folder / "settings.yaml").write_text(SETTINGS)
    (folder / "bench.yaml").write_text(BENCH)
    tiny_llava(num_hidden_layers=2, hidden_size=16, intermediate_size=24).save_pretrained(folder / "base")
    make_processor_folder(folder / "base")
    text = [{"question": f"is {word} a number ?", "answer": "yes"} for word in ("one", "two", "three", "four")]
    seen = []
    for index in range(12):
        colour, rgb = list(COLOURS.items())[index % 3]
        Image.new("RGB", (16, 16), tuple(max(0, value - index) for value in rgb)).save(folder / f"{index}.png")
        seen.append({"image": f"{index}.png", "question": "what colour is it ?", "answer": colour})
    for name, content in {"train": [row(each) for each in seen + text], "seen": seen[:4], "text": text}.items():
        (folder / f"{name}.json").write_text("\n".join(["[", ",\n".join(map(json.dumps, content)), "]\n"]))


def row(asked: dict[str, str]) -> dict[str, object]:
    """A question as a conversation to learn."""
    question = ("<image>\n" if "image" in asked else "") + asked["question"]
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": asked["answer"]}]
    return {"image": asked["image"], "conversations": turns} if "image" in asked else {"conversations": turns}


def keep_the_middle(run: Path) -> None:
    """Of the checkpoints the one in mid-training, as if the run had been stopped there."""
    checkpoints = run / "checkpoints"
    (checkpoints / MIDDLE).rename(checkpoints / "middle")
    for path in checkpoints.iterdir():
        if path.name != "middle":
            remove(path)
    (checkpoints / "middle").rename(checkpoints / "last.ckpt")


def remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()


if __name__ == "__main__":
    main()
