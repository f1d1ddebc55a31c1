"""NVILA, which transformers has no classes for."""
