"""One file per method. A method is found by its class name in YAML; adding one is one line here."""

from dowser_pl.methods.base import Layer, Method, Reference, Scored
from dowser_pl.methods.budget import build_masks
from dowser_pl.methods.convergence import Agreement, magnitude_overlap, rank_correlation, sample_rows, split_half
from dowser_pl.methods.full import Full
from dowser_pl.methods.magnitude import Magnitude
from dowser_pl.methods.model_dowser import ModelDowser
from dowser_pl.methods.random import Random

__all__ = [
    "Agreement",
    "Full",
    "Layer",
    "Magnitude",
    "Method",
    "ModelDowser",
    "Random",
    "Reference",
    "Scored",
    "build_masks",
    "magnitude_overlap",
    "rank_correlation",
    "sample_rows",
    "split_half",
]
