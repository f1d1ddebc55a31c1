"""A whole run on a tiny random LLaVA in a second or two: data module, module, callbacks, trainer."""

from pathlib import Path

import numpy as np
import torch
from lightning.pytorch import Callback
from PIL import Image

from dowser_pl.callbacks import Checkpoints, Dowser, EpochProgress, Export, Forgetting, PatchFile, RandomState
from dowser_pl.cli.trainer import DowserTrainer
from dowser_pl.data import Conversation, MultimodalData, Question, Task
from dowser_pl.importance import Probe, Rows
from dowser_pl.methods import ModelDowser
from dowser_pl.module import MultimodalModule

COLOURS = {"red": (250, 10, 10), "green": (10, 250, 10), "blue": (10, 10, 250)}
FEW_ROWS = Rows(per_source=20, num_tokens=8)
SMALL_PROBE = Probe(num_prompts=4, num_probes=2, num_tokens=12)


class TinyData(MultimodalData):
    """Colours of noisy squares to learn, and the same questions as text to keep."""

    def __init__(self, num_rows: int = 12, batch_size: int = 2) -> None:
        super().__init__(batch_size=batch_size, eval_batch_size=3)
        self.num_rows = num_rows

    def train_conversations(self) -> list[Conversation]:
        return [
            Conversation(f"row {i}", [turn("user", "what colour is it ?", True), turn("assistant", colour)], [image])
            for i, (colour, image) in enumerate(pictures(self.num_rows))
        ]

    def evaluation_tasks(self) -> list[Task]:
        seen = [
            Question(f"q {i}", [turn("user", "what colour is it ?", True)], [image], [colour])
            for i, (colour, image) in enumerate(pictures(4))
        ]
        text = [Question(f"t {i}", [turn("user", "is it red ?", False)], [], ["yes", "no"]) for i in range(4)]
        return [
            Task("colour", "downstream", "exact_match", seen, 3),
            Task("yesno", "upstream", "exact_match", text, 3),
        ]


class TinyTextData(TinyData):
    """Colours of things to learn, without pictures, and questions to keep."""

    def train_conversations(self) -> list[Conversation]:
        jobs = [("sky", "blue"), ("sun", "yellow"), ("night", "black"), ("tree", "green"), ("fish", "orange")]
        return [
            Conversation(
                f"row {i}", [turn("user", f"what colour is the {thing} ? {i % 10}"), turn("assistant", colour)]
            )
            for i, (thing, colour) in ((i, jobs[i % len(jobs)]) for i in range(self.num_rows))
        ]

    def evaluation_tasks(self) -> list[Task]:
        asked = [
            (row.id, row.messages[:1], row.messages[1]["content"][0]["text"]) for row in self.train_conversations()
        ]
        seen = [Question(name, question, [], [colour]) for name, question, colour in asked[:4]]
        return [Task("colour", "downstream", "exact_match", seen, 3), super().evaluation_tasks()[1]]


def turn(role: str, text: str, image: bool = False) -> dict:
    return {"role": role, "content": [{"type": "image"}] * image + [{"type": "text", "text": text}]}


def pictures(count: int) -> list[tuple[str, Image.Image]]:
    random = np.random.default_rng(0)
    rows = []
    for index in range(count):
        colour, rgb = list(COLOURS.items())[index % 3]
        pixels = np.clip(np.array(rgb) + random.integers(-40, 40, (36, 36, 3)), 0, 255).astype(np.uint8)
        rows.append((colour, Image.fromarray(pixels)))
    return rows


def build_module(model: Path, lr: float = 1e-2, weight_decay: float = 0.1, **options) -> MultimodalModule:
    return MultimodalModule(
        str(model), optimizer=lambda p: torch.optim.AdamW(p, lr=lr, weight_decay=weight_decay), **options
    )


def build_trainer(
    folder: Path,
    method=None,
    callbacks=(),
    cache_dir=None,
    evaluation_cache=None,
    update="compact",
    checkpoint="compact",
    export=False,
    every=1,
    keep="last",
    replay=None,
    kl_to_base=None,
    max_perplexity=None,
    drift=False,
    rows=FEW_ROWS,
    probe=SMALL_PROBE,
    **options,
) -> DowserTrainer:
    method = method or ModelDowser(0.1)
    forms = {"update": update, "checkpoint": checkpoint}
    held = {"replay": replay, "kl_to_base": kl_to_base, "max_perplexity": max_perplexity}
    dowser = Dowser(method, probe, cache_dir, **forms, rows=rows, **held, drift=drift)
    options = {
        "max_epochs": 2,
        "default_root_dir": folder,
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": -1,
        "accelerator": "cpu",
        **options,
    }
    checkpoints = Checkpoints(str(folder / "checkpoints"), every_n_steps=every, keep=keep)
    ending = [Export(enabled=export), Forgetting(evaluation_cache), PatchFile()]
    callbacks = [dowser, *ending, checkpoints, RandomState(), EpochProgress(), *callbacks]
    return DowserTrainer(callbacks=callbacks, **options)


class Killed(BaseException):
    """What nothing in a run catches."""


class KillAt(Callback):
    """Ends a run before the batch that follows so many steps."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer, *_) -> None:
        if trainer.global_step == self.step:
            raise Killed
