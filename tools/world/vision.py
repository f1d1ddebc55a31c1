"""First stage of the embedded world's pretraining: the vision tower alone, taught what is in every cell."""

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from transformers import LlavaForConditionalGeneration

from dowser_pl.data.world.scenes import Scene, Small, place_large, place_small
from dowser_pl.data.world.tasks import Rng, one_of
from dowser_pl.data.world.text import COLOURS, SHAPES, SIGNS
from world.model import NUM_IMAGE_TOKENS
from world.rows import pixel_values

NOTHING = ("",)
LABELS = {"shape": (*NOTHING, *SHAPES), "sign": (*NOTHING, *SIGNS), "colour": (*NOTHING, *COLOURS)}


class CellHeads(nn.Module):
    """Linear readers of one patch, and one reader of the whole picture for large signs; thrown away later."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.cells = nn.ModuleDict({name: nn.Linear(width, len(words)) for name, words in LABELS.items()})
        self.whole = nn.Linear(width * NUM_IMAGE_TOKENS, len(SIGNS))

    def loss(self, patches: torch.Tensor, cells: dict[str, torch.Tensor], large: torch.Tensor) -> torch.Tensor:
        """Sum of cross entropies: patches (n, 9, width), labels (n, 9) each, large (n) with -100 = none."""
        losses = [cross_entropy(self.cells[k](patches).flatten(0, 1), v.flatten()) for k, v in cells.items()]
        return sum(losses) + cross_entropy(self.whole(patches.flatten(1)), large)


def crowd(rng: Rng) -> Scene:
    """Shapes and signs at random in all cells."""
    kinds = rng.integers(3, size=9)
    glyphs = {cell: SHAPES if kind == 1 else SIGNS for cell, kind in enumerate(kinds) if kind}
    drawn = (place_small(rng, one_of(rng, words), one_of(rng, tuple(COLOURS)), c) for c, words in glyphs.items())
    return Scene(tuple(drawn), int(rng.integers(2**31)))


def labelled(rng: Rng, num_scenes: int) -> tuple[torch.Tensor, dict[str, torch.Tensor], torch.Tensor]:
    """Pixel values, labels per cell and the large sign; one picture in two shows a large sign alone."""
    cells = {name: torch.zeros(num_scenes, NUM_IMAGE_TOKENS, dtype=torch.long) for name in LABELS}
    large = torch.full((num_scenes,), -100)
    pictures = []
    for index in range(num_scenes):
        if index % 2:
            glyph = one_of(rng, SIGNS)
            colour = one_of(rng, tuple(COLOURS))
            scene = Scene((place_large(rng, glyph, colour),), int(rng.integers(2**31)))
            large[index] = SIGNS.index(glyph)
            for name in LABELS:
                cells[name][index] = -100
            cells["colour"][index, 4] = LABELS["colour"].index(colour)
        else:
            scene = crowd(rng)
            _label_cells({name: labels[index] for name, labels in cells.items()}, scene)
        pictures.append(scene.pixels())
    return pixel_values(pictures), cells, large


def _label_cells(cells: dict[str, torch.Tensor], scene: Scene) -> None:
    for item in scene.items:
        assert isinstance(item, Small)
        kind = "shape" if item.glyph in SHAPES else "sign"
        cells[kind][item.cell] = LABELS[kind].index(item.glyph)
        cells["colour"][item.cell] = LABELS["colour"].index(item.colour)


def train_vision(model: LlavaForConditionalGeneration, num_steps: int, batch_size: int, seed: int) -> None:
    """Train the vision tower in place: AdamW, peak rate 2e-3, cosine to zero after a warm-up."""
    tower = model.model.vision_tower
    heads = CellHeads(model.config.vision_config.hidden_size)
    parameters = [*tower.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=2e-3, betas=(0.9, 0.98), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, num_steps, pct_start=0.1, cycle_momentum=False)
    rng = np.random.default_rng([seed, 1])
    for step in range(num_steps):
        pixels, cells, large = labelled(rng, batch_size)
        patches = tower(pixel_values=pixels).last_hidden_state[:, 1:]
        loss = heads.loss(patches, cells, large)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 99:
            print(f"vision {step + 1}/{num_steps}: loss {loss.item():.3f}", flush=True)
