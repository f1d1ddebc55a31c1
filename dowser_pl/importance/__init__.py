"""The importance pass: prompts the model writes itself, probes of its logits, two thin factors per matrix."""

from dowser_pl.importance.cache import Cache, Request, digest, fingerprint, load_factors, read_head, save_factors
from dowser_pl.importance.factors import Factors
from dowser_pl.importance.gram import InputGrams, grouped
from dowser_pl.importance.input_directions import GRAM_BYTES, first_tokens, input_directions, input_moments
from dowser_pl.importance.probe import measure, probing_mode
from dowser_pl.importance.prompts import Prompt, write_prompts
from dowser_pl.importance.recorder import FACTORS, PRODUCTS
from dowser_pl.importance.rows import Writers
from dowser_pl.importance.settings import Probe, Rows
from dowser_pl.importance.writing import Openers

__all__ = [
    "FACTORS",
    "GRAM_BYTES",
    "PRODUCTS",
    "Cache",
    "Factors",
    "InputGrams",
    "Openers",
    "Probe",
    "Prompt",
    "Request",
    "Rows",
    "Writers",
    "digest",
    "fingerprint",
    "first_tokens",
    "grouped",
    "input_directions",
    "input_moments",
    "load_factors",
    "measure",
    "probing_mode",
    "read_head",
    "save_factors",
    "write_prompts",
]
