"""Fine-tune multimodal LLMs without forgetting what they already know."""

__version__ = "0.1.0"
