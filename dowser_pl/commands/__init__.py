"""Verbs that need no trainer; they start without importing torch or lightning."""
