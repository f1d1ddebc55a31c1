"""The importance pass: prompts the model writes itself, probes of its logits, two thin factors per matrix."""

from dowser_pl.probing.factors import Factors, load_factors, save_factors
from dowser_pl.probing.fingerprint import fingerprint
from dowser_pl.probing.probe import measure, probing_mode
from dowser_pl.probing.prompts import Prompt, write_prompts
from dowser_pl.probing.settings import Probe

__all__ = [
    "Factors",
    "Probe",
    "Prompt",
    "fingerprint",
    "load_factors",
    "measure",
    "probing_mode",
    "save_factors",
    "write_prompts",
]
