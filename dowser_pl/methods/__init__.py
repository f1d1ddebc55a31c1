"""One file per method. A method is found by its class name in YAML; adding one is one line here."""

from dowser_pl.methods.base import Layer, Method, Reference
from dowser_pl.methods.full import Full
from dowser_pl.methods.magnitude import Magnitude
from dowser_pl.methods.model_dowser import ModelDowser
from dowser_pl.methods.random import Random

__all__ = ["Full", "Layer", "Magnitude", "Method", "ModelDowser", "Random", "Reference"]
