"""Tests of dowser_pl.models."""
