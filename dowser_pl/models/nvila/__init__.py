"""NVILA, which transformers has no classes for; to import it is to register them with the Auto classes."""

from dowser_pl.models.nvila.config import NVILAConfig
from dowser_pl.models.nvila.model import NVILAForConditionalGeneration
from dowser_pl.models.nvila.processing import NVILAProcessor
from dowser_pl.models.nvila.published import is_nvila
from dowser_pl.models.nvila.tiles import NVILAImageProcessor

__all__ = ["NVILAConfig", "NVILAForConditionalGeneration", "NVILAImageProcessor", "NVILAProcessor", "is_nvila"]
