"""The embedded world: pictures and questions drawn as they are needed, and the tasks a small model learnt."""

from dowser_pl.data.world.datamodule import WorldData

__all__ = ["WorldData"]
