"""Pictures as NVILA sees them: cut into square tiles on the grid nearest in shape, then the whole picture once more.

VILA (github.com/NVlabs/VILA at b760c34, `llava/mm_utils.py`) has the rule from InternVL, and so has transformers' image
processor of GOT-OCR2, which does all of it here, on Pillow. Of the grids of at most `max_patches` tiles the one whose
width to height is nearest to the picture's is taken; of two that are as near, the later one by number of tiles, if the
picture has more than half of that grid's pixels. The picture is stretched to the grid and cut row by row; if there is
more than one tile, the picture stretched to one tile follows.
"""

from typing import Any

from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

__all__ = ["NVILAImageProcessor"]

_SIGLIP = {"size": {"height": 448, "width": 448}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}


class NVILAImageProcessor(GotOcr2ImageProcessorPil):
    """Image processor of NVILA, on Pillow alone: pictures to normalised tiles of shape (3, 448, 448).

    The settings are those of SigLIP's image processor and three for the tiles: `crop_to_patches`, whether pictures are
    cut at all or stretched to one tile, `min_patches` and `max_patches`, the smallest and largest number of tiles of a
    grid. What is returned has `pixel_values`, the tiles of all pictures in order, and `num_patches`, how many of
    them each picture has.
    """

    crop_to_patches = True

    def __init__(self, **settings: Any) -> None:
        super().__init__(**_SIGLIP | settings)
