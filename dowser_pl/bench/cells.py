"""A cell: one method with one setting and one seed on one split of one task of one world, tuned to one depth."""

from dataclasses import dataclass
from typing import Any, Literal

from dowser_pl.bench.settings import Setting

__all__ = ["Cell", "Group", "Split", "setting_text"]

Split = Literal["validation", "test", "cost"]


@dataclass(frozen=True)
class Group:
    """What methods are compared on.

    Attributes:
        world: name of the base model.
        task: name of what is learnt.
        depth: how many of the last decoder layers are tuned; None = all.
    """

    world: str
    task: str
    depth: int | None

    @property
    def slug(self) -> str:
        """Part of a folder name."""
        return f"{self.world}-{self.task}-{'all' if self.depth is None else f'last{self.depth}'}"

    @property
    def text(self) -> str:
        """The group in words, for people."""
        return f"{self.world}, {self.task}, {'all layers' if self.depth is None else f'last {self.depth} layers'}"


@dataclass(frozen=True)
class Cell:
    """One process of a bench: what it runs and with what settings."""

    group: Group
    method: str
    setting: Setting
    seed: int
    split: Split

    @property
    def slug(self) -> str:
        """Name of its folder, different for different cells."""
        values = "-".join(f"{name}_{value:g}" for name, value in self.setting)
        return f"{self.group.slug}-{self.method}-{values}-seed_{self.seed}-{self.split}"

    @property
    def text(self) -> str:
        """For people, without its group: "ModelDowser lr 0.003 seed 1 test"."""
        return f"{self.method} {setting_text(self.setting)} seed {self.seed} {self.split}"

    @property
    def rate(self) -> float:
        """The learning rate of the cell."""
        return dict(self.setting)["lr"]

    def to_dict(self) -> dict[str, Any]:
        """The cell as plain values, ready for JSON."""
        return {**vars(self.group), "method": self.method, "setting": dict(self.setting)} | {
            "seed": self.seed,
            "split": self.split,
        }


def setting_text(setting: Setting) -> str:
    """Such as `lr 0.0002 alpha 0.5`."""
    return " ".join(f"{name} {value:g}" for name, value in setting)
