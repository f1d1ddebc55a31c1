"""Where progress goes: to stderr, so that stdout holds what was asked for and `fit > report.txt` keeps the report."""

import sys
from contextlib import redirect_stdout
from typing import Any

from lightning.pytorch.callbacks import TQDMProgressBar

__all__ = ["Progress"]


class Progress(TQDMProgressBar):
    """Lightning's progress bars, on stderr."""

    def init_sanity_tqdm(self) -> Any:
        """The bar of the evaluation before training."""
        with redirect_stdout(sys.stderr):
            return super().init_sanity_tqdm()

    def init_train_tqdm(self) -> Any:
        """The bar of an epoch."""
        with redirect_stdout(sys.stderr):
            return super().init_train_tqdm()

    def init_validation_tqdm(self) -> Any:
        """The bar of an evaluation."""
        with redirect_stdout(sys.stderr):
            return super().init_validation_tqdm()

    def init_test_tqdm(self) -> Any:
        """The bar of `test`."""
        with redirect_stdout(sys.stderr):
            return super().init_test_tqdm()

    def init_predict_tqdm(self) -> Any:
        """The bar of `predict`."""
        with redirect_stdout(sys.stderr):
            return super().init_predict_tqdm()
