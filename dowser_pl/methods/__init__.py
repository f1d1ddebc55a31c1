"""One file per method. A method of this package is found by its class name in YAML, any other by its class path."""

from dowser_pl.methods.agreement import Agreement, magnitude_overlap, rank_correlation, sample_rows, split_half
from dowser_pl.methods.anchor import Anchor
from dowser_pl.methods.base import AfterFit, BeforeFit, EachStep, Layer, Method, Ranking, Reference, Scored
from dowser_pl.methods.build_masks import build_masks
from dowser_pl.methods.dare import Dare
from dowser_pl.methods.fapm import FAPM
from dowser_pl.methods.full import Full
from dowser_pl.methods.grafting import Grafting
from dowser_pl.methods.half_fine_tuning import HalfFineTuning
from dowser_pl.methods.highest_importance import HighestImportance
from dowser_pl.methods.l2sp import L2SP
from dowser_pl.methods.lora import Lora, LoraStart
from dowser_pl.methods.magnitude import Magnitude
from dowser_pl.methods.model_dowser import ModelDowser
from dowser_pl.methods.model_tailor import ModelTailor
from dowser_pl.methods.mofo import MoFO
from dowser_pl.methods.null_space import NullSpace, NullSpaceSettings
from dowser_pl.methods.osf import OSF
from dowser_pl.methods.random import Random
from dowser_pl.methods.soft_dowser import SoftDowser
from dowser_pl.methods.spider import Spider
from dowser_pl.methods.ties import Ties
from dowser_pl.methods.wanda_like import WandaLike
from dowser_pl.methods.wise import Wise

__all__ = [
    "FAPM",
    "L2SP",
    "OSF",
    "AfterFit",
    "Agreement",
    "Anchor",
    "BeforeFit",
    "Dare",
    "EachStep",
    "Full",
    "Grafting",
    "HalfFineTuning",
    "HighestImportance",
    "Layer",
    "Lora",
    "LoraStart",
    "Magnitude",
    "Method",
    "MoFO",
    "ModelDowser",
    "ModelTailor",
    "NullSpace",
    "NullSpaceSettings",
    "Random",
    "Ranking",
    "Reference",
    "Scored",
    "SoftDowser",
    "Spider",
    "Ties",
    "WandaLike",
    "Wise",
    "build_masks",
    "magnitude_overlap",
    "rank_correlation",
    "sample_rows",
    "split_half",
]
