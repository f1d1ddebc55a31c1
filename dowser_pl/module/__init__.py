"""The LightningModule around a Hugging Face model: training steps, evaluation, and what a checkpoint holds."""

from dowser_pl.module.multimodal import MultimodalModule

__all__ = ["MultimodalModule"]
