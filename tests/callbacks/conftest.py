"""Runs without pictures, which would take a third of their time; tests of pictures and of whole runs draw them."""

import pytest


@pytest.fixture(autouse=True)
def undrawn(monkeypatch):
    for name in ("plot_report", "plot_curve", "write_html"):
        monkeypatch.setattr(f"dowser_pl.reporting.folder.{name}", lambda report, path: None)
