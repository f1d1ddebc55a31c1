"""What training takes in memory, computed before it runs."""

from dowser_pl.planning.memory import Kept
from dowser_pl.planning.model import kept_by, plan_of
from dowser_pl.planning.text import lines

__all__ = ["Kept", "kept_by", "lines", "plan_of"]
