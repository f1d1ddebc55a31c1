"""From patches of SigLIP to embeddings of Qwen2: neighbours side by side, then linear layers.

Fold and layers are those of `llava/model/multimodal_projector/base_projector.py` of VILA (github.com/NVlabs/VILA at
b760c34): `mlp_downsample_3x3_fix`, and `mlp_downsample_2x2_fix`, which `mlp_downsample` equals.

Legend: B tiles, G patches in a row and in a column, C width of a patch, f patches side by side, H width of a word.
"""

from math import isqrt

from torch import Tensor, nn
from torch.nn.functional import pad

from dowser_pl.models.nvila.config import NVILAConfig

__all__ = ["NVILAProjector"]


class Fold(nn.Module):
    """Puts f x f neighbours side by side, row by row: (B, G*G, C) to (B, ceil(G/f)**2, f*f*C).

    Where f does not divide G, zeros are added at the bottom and on the right.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, patches: Tensor) -> Tensor:
        """Fold (B, G*G, C)."""
        f, (tiles, count, width) = self.size, patches.shape
        side = isqrt(count)
        missing = -side % f
        grid = pad(patches.view(tiles, side, side, width), (0, 0, 0, missing, 0, missing))
        blocks = grid.unflatten(2, (-1, f)).unflatten(1, (-1, f)).transpose(2, 3)
        return blocks.reshape(tiles, -1, f * f * width)


class NVILAProjector(nn.Module):
    """Makes ceil(G/f)**2 embeddings (B, ., H) of the (B, G*G, C) patches of each tile.

    Args:
        config: its `downsample` is f: 3 has two hidden widths, 3 C and H, and a norm before each but the last layer; 2
            has one, H, and one norm.
    """

    def __init__(self, config: NVILAConfig) -> None:
        super().__init__()
        f, width, out = config.downsample, config.vision_config.hidden_size, config.text_config.hidden_size
        between = [nn.Linear(9 * width, 3 * width), nn.GELU(), nn.LayerNorm(3 * width)] if f == 3 else []
        last = 3 * width if f == 3 else f * f * width
        self.layers = nn.Sequential(
            Fold(f),
            nn.LayerNorm(f * f * width),
            *between,
            nn.Linear(last, out),
            nn.GELU(),
            nn.Linear(out, out),
        )

    def forward(self, patches: Tensor) -> Tensor:
        """Project (B, G*G, C)."""
        projected: Tensor = self.layers(patches)
        return projected
