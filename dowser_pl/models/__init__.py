"""Hugging Face models and processors: how they are loaded, and which of their parts may be trained."""

from dowser_pl.models.layers import find_layers, text_inputs, text_model
from dowser_pl.models.loading import load_model, load_processor
from dowser_pl.models.parts import named_part

__all__ = ["find_layers", "load_model", "load_processor", "named_part", "text_inputs", "text_model"]
