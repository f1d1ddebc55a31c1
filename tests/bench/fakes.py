"""A bench without training: a runner that writes the files which the commands would have written."""

import json
from collections.abc import Sequence
from pathlib import Path

import yaml

from dowser_pl.bench import Settings, read_settings
from dowser_pl.bench.processes import Ended

MERGES = ("Dare", "Wise")
TEXT = """\
folder: {folder}
fit: [model/world]
set: {{trainer.max_epochs: 1}}
seeded: [seed_everything, data.seed]
validation: {{data.split: validation}}
test: {{data.split: test}}
seeds: [1, 2]
tuning_seed: 0
worlds: {{shipped: "embedded:world"}}
tasks: {{digits: {{data.downstream: digits}}}}
depths: [null]
methods:
  ModelDowser: {{config: [method/model_dowser], grid: [1.0e-3, 2e-3, 4.0e-3, 8.0e-3]}}
  Full: {{config: [method/full], grid: [1.0e-4, 2.0e-4, 4.0e-4, 8.0e-4]}}
  Dare: {{after: Full, merge: Dare, seeded: [seed], grid: {{update_ratio: [0.1, 0.2, 0.4, 0.8]}}}}
  ModelTailor: {{after: Full, config: [method/model_tailor], grid: {{update_ratio: [0.1, 0.2, 0.4, 0.8]}}}}
"""


def write_settings(folder: Path, /, **changes) -> Path:
    """The file of a small bench; ``a__b=value`` changes ``a: {b: value}``, None in place of a mapping deletes it."""
    content = yaml.safe_load(TEXT.format(folder=folder / "out"))
    for key, value in changes.items():
        node, (*path, last) = content, key.split("__")
        for step in path:
            node = node[step]
        if value is None:
            del node[last]
        else:
            node[last] = value
    (folder / "bench.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    return folder / "bench.yaml"


def settings_of(folder: Path, /, **changes) -> Settings:
    return read_settings(write_settings(folder, **changes), MERGES)


class FakeRunner:
    """Remembers which cells ran, in order.

    Args:
        fails: parts of folder names of cells that fail.
        stop_at: the number of the cell in which somebody presses Ctrl-C, or kills the bench.
    """

    def __init__(self, fails: Sequence[str] = (), stop_at: int | None = None) -> None:
        self.ran: list[str] = []
        self.lines: dict[str, list[list[str]]] = {}
        self.fails, self.stop_at = fails, stop_at

    def __call__(self, lines, folder: Path) -> Ended:
        assert list(folder.iterdir()) == [], "a cell starts in an empty folder"
        self.ran.append(folder.name)
        self.lines[folder.name] = [list(line) for line in lines]
        (folder / "log.txt").write_text("first line\nValueError: the last line\n")
        if len(self.ran) == self.stop_at:
            (folder / "run").mkdir()
            (folder / "run" / "half").write_text("written")
            raise KeyboardInterrupt
        if any(part in folder.name for part in self.fails):
            return Ended(1, [], 1.0, None)
        for verb, *rest in lines:
            words = [word for word in rest if word != "--cast"]  # the one option without a value
            getattr(self, verb)(dict(zip(words[::2], words[1::2], strict=True)), folder)
        return Ended(0, [2.0] * len(lines), 5.0, 2000)

    def fit(self, options: dict[str, str], folder: Path) -> None:
        run = Path(options["--trainer.default_root_dir"])
        rate = float(options["--model.optimizer.lr"])
        ratio = float(options.get("--dowser.method.update_ratio", 1))
        downstream, upstream = scores(folder.name, rate, ratio)
        write_report(run, downstream, upstream)
        for name in ("model/model.safetensors", "checkpoints/last.ckpt", "patch.safetensors"):
            (run / name).parent.mkdir(exist_ok=True)
            (run / name).write_bytes(b"." * (30 if "patch" in name else 100))

    def merge(self, options: dict[str, str], folder: Path) -> None:
        assert (Path(options["--tuned"]) / "model.safetensors").is_file(), "the tuned model is still there"
        out = Path(options["--out"])
        if out.suffix:
            out.write_bytes(b"." * 20)
            return
        out.mkdir(parents=True)
        (out / "model.safetensors").write_bytes(b"." * 100)
        merged = {"tensors": 2, "entries": 200, "changed": 50}
        Path(options["--json"]).write_text(json.dumps({"merge": {"tensors": {"matrices, merged": merged}}}))

    def validate(self, options: dict[str, str], folder: Path) -> None:
        log = Path(options["--trainer.logger.save_dir"]) / options["--trainer.logger.name"] / "version_0"
        log.mkdir(parents=True)
        (log / "metrics.csv").write_text(
            "step,val/digits/exact_match,val/colour/exact_match,val/sum/exact_match\n0,0.5,0.90000001,0.7\n"
        )


def scores(name: str, rate: float, ratio: float) -> tuple[float, float]:
    """Best at learning rate 2e-3 (a tenth of it after ``Full``) and, for what has one, at ratio 0.8."""
    best = 2e-3 if "ModelDowser" in name else 2e-4
    lost = abs(rate - best) / best / 10 + 0.1 * abs(ratio - 0.8) * ("ModelTailor" in name)
    return max(0.0, 0.8 - lost + 0.01 * ("seed_2" in name)), max(0.0, 0.9 - lost)


def write_report(run: Path, downstream: float, upstream: float) -> None:
    tasks = {
        "digits": ("downstream", 0.0, downstream),
        "colour": ("upstream", 1.0, upstream + 0.05),
        "sum": ("upstream", 0.9, upstream - 0.05),
    }
    rows = {
        name: {"role": role, "metric": "exact_match", "before": before, "after": after}
        for name, (role, before, after) in tasks.items()
    }
    report = {
        "method": "Fake", "update_ratio": 0.1, "seed": 0, "tasks": rows, "steps": 7,
        "frozen": {"entries": 90, "changed": 0}, "trainable": {"entries": 10, "changed": 10},
        "seconds": {"probe": 1.0, "fit": 3.0, "evaluate": 2.0}, "peak_memory_bytes": 1000, "versions": {},
        "drift": {"sources": {"text": {"kl": 2 * (1 - upstream) ** 2, "agreement": upstream, "positions": 100}}},
    }  # fmt: skip
    run.mkdir(parents=True, exist_ok=True)
    (run / "report.json").write_text(json.dumps(report))
