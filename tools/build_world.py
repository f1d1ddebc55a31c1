"""Build the embedded world's model: `python tools/build_world.py` (about half an hour on two busy CPU cores).

Two stages, deterministic from the seed on one machine: the vision tower alone; then projector and decoder on
conversations and running text, the vision tower frozen. What was tried on the way: everything at once stays on
a plateau; without levelling the image tokens (`level_image_tokens`) the decoder hears only them.
"""

import argparse
import json
import platform
import sys
import time
from pathlib import Path

import numpy as np
import torch
import transformers
from torch.nn.functional import cross_entropy
from transformers import LlavaForConditionalGeneration

from dowser_pl.data.world.tasks import UPSTREAM, Split, examples
from dowser_pl.data.world.text import BOS
from world.model import EMBEDDING_NORM, WORD_ID, initial_model, save
from world.rows import Row, batch, picture_row, text_row
from world.vision import train_vision

NUM_PICTURE_ROWS, NUM_TEXT_ROWS = 64, 8  # per step
TEXT_SHARE = 0.15  # weight of the running text's loss beside that of the rows with pictures


def main() -> None:
    """Train, measure on held-out questions, save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("dowser_pl/assets/world"))
    parser.add_argument("--json", type=Path, help="write the accuracies there")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, nargs=2, default=(900, 1500), help="per stage")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    started = time.time()
    model = initial_model(options.seed)
    train_vision(model, options.steps[0], batch_size=192, seed=options.seed)
    level_image_tokens(model)
    train_decoder(model, options.steps[1], rate=2e-3, seed=options.seed + 1)
    save(model, options.out)
    seconds = time.time() - started
    exact = accuracies(model, "test", num_questions=150)
    result = {
        "exact_match": exact,
        "mean": float(np.mean(list(exact.values()))),
        "seconds": seconds,
        "command": sys.argv,
        "machine": f"{platform.machine()}, {options.threads} threads",
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    }
    print(json.dumps(result, indent=1))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


@torch.no_grad()
def level_image_tokens(model: LlavaForConditionalGeneration) -> None:
    """Scale the projector's last layer so that image tokens have the norm of words; else words go unheard."""
    rng = np.random.default_rng(0)
    inputs, _ = batch([picture_row(rng) for _ in range(64)])
    features = model.model.vision_tower(pixel_values=inputs["pixel_values"]).last_hidden_state[:, 1:]
    tokens = model.model.multi_modal_projector(features)
    model.model.multi_modal_projector.linear_2.weight.mul_(EMBEDDING_NORM / tokens.norm(dim=-1).mean())


def train_decoder(model: LlavaForConditionalGeneration, num_steps: int, rate: float, seed: int) -> None:
    """Train projector, decoder and head in place: AdamW, cosine to zero after a warm-up of 100 steps."""
    model.model.vision_tower.requires_grad_(False)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=rate, betas=(0.9, 0.98), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, rate, num_steps, pct_start=min(0.5, 100 / num_steps), cycle_momentum=False
    )
    rng = np.random.default_rng([seed, 2])
    started = time.time()
    for step in range(num_steps):
        optimizer.zero_grad()
        pictures = loss_of(model, [picture_row(rng) for _ in range(NUM_PICTURE_ROWS)])
        pictures.backward()
        text = loss_of(model, [text_row(rng) for _ in range(NUM_TEXT_ROWS)])
        (TEXT_SHARE * text).backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 49:
            seconds = (time.time() - started) / (step + 1)
            losses = f"{pictures.item():.3f} with pictures, {text.item():.3f} text"
            print(f"decoder {step + 1}/{num_steps}: {losses}, {seconds:.2f} s/step", flush=True)
        if step % 200 == 199:
            print(accuracies(model, "validation", num_questions=40), flush=True)


def loss_of(model: LlavaForConditionalGeneration, rows: list[Row]) -> torch.Tensor:
    """Weighted cross entropy of the next token, summed and divided by the sum of the weights."""
    inputs, weights = batch(rows)
    logits = model(**inputs, use_cache=False).logits[:, :-1]
    losses = cross_entropy(logits.flatten(0, 1), inputs["input_ids"][:, 1:].flatten(), reduction="none")
    weights = weights[:, 1:].flatten()
    return (losses * weights).sum() / weights.sum()


@torch.no_grad()
def accuracies(model: LlavaForConditionalGeneration, split: Split, num_questions: int) -> dict[str, float]:
    """Share of answers whose every token is the most likely one, per upstream task."""
    model.eval()
    exact = {}
    for task in UPSTREAM:
        rows = []
        for example, _ in zip(examples(task, split, seed=1), range(num_questions), strict=False):
            row = Row([WORD_ID[BOS]], [0.0], example.scene.pixels() if example.scene else None)
            row.ask(example.question, example.answer, with_picture=example.scene is not None)
            rows.append(row)
        inputs, weights = batch(rows)
        right = model(**inputs, use_cache=False).logits[:, :-1].argmax(-1) == inputs["input_ids"][:, 1:]
        exact[task] = round((right | (weights[:, 1:] < 1)).all(dim=1).float().mean().item(), 3)
    model.train()
    return exact


if __name__ == "__main__":
    main()
