"""Runs whose weights are sharded over the ranks, by either strategy that does so."""

from typing import Any

import pytest

from dowser_pl.strategies.fsdp1 import FSDP1Strategy
from dowser_pl.strategies.fsdp2 import FSDP2Strategy
from tests.distributed.fits import Ended, UnevenData, fit

SHARDED = {"fsdp1": FSDP1Strategy, "fsdp2": FSDP2Strategy}

both = pytest.mark.parametrize("kind", SHARDED)
one_fast = pytest.mark.parametrize("kind", [pytest.param("fsdp1", marks=pytest.mark.slow), "fsdp2"])
"""FSDP1 only where time does not matter."""


def fit_sharded(
    folder: Any, model: Any, kind: str, *, strategy: dict[str, Any] | None = None, uneven: int = 0, **options: Any
) -> Ended:
    """As `fit`; alone, in one process without a strategy.

    Args:
        folder: of the run.
        model: folder of the base model.
        kind: key of ``SHARDED``.
        strategy: its options.
        uneven: rows of `UnevenData`; 0 = the usual data.
        **options: of `fit`.
    """
    options |= {"data": UnevenData(uneven)} if uneven else {}
    return fit(folder, model, strategy=SHARDED[kind](**(strategy or {})), **options)
