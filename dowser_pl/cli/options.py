"""The options of the training verbs as a table: which groups there are, whose arguments they are, and what is near.

The table is read from the source of the classes (`dowser_pl.cli.signatures`), so it needs no upkeep, and a test
compares it with the parser of the command line.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from functools import cache
from typing import Any

from dowser_pl.cli.signatures import (
    OPEN,
    Class,
    Kinds,
    ListOf,
    Literally,
    Option,
    class_at,
    classes_in,
    method_of,
    signature,
)
from dowser_pl.errors import DowserError

__all__ = [
    "CURVE",
    "DEFAULT_CLASSES",
    "GROUPS",
    "LEAST",
    "OVERWRITE",
    "REGISTERED",
    "ROOMS",
    "TRAINER_DEFAULTS",
    "VERBS",
    "Table",
    "class_signature",
    "near_class",
    "settings_of",
    "table",
    "usable",
    "verb_and_rest",
]

CURVE = """Smaller update ratios at which the tuned model is measured as well when training ends, such as
[0.02, 0.05]: one run gives the whole trade-off in its report"""

OVERWRITE = """Let `fit` replace another run, finished or not, in trainer.default_root_dir; without it such a folder is
refused, unless the run goes on from a checkpoint in it"""

# of ours, where Lightning has others
TRAINER_DEFAULTS: dict[str, Any] = {
    "default_root_dir": "runs/default",
    "num_sanity_val_steps": -1,
    "enable_model_summary": False,  # it counts frozen entries of tuned matrices as trainable
}
VERBS = ("fit", "validate", "test", "predict", "probe", "plan")
TRAINER = ("dowser_pl.cli.trainer", "DowserTrainer")
# group -> where its class is
GROUPS = {
    "model": ("dowser_pl.module", "MultimodalModule"),
    "dowser": ("dowser_pl.callbacks", "Dowser"),
    "budget": ("dowser_pl.callbacks", "Curve"),
    "export": ("dowser_pl.callbacks", "Export"),
    "report": ("dowser_pl.callbacks", "Forgetting"),
    "patch": ("dowser_pl.callbacks", "PatchFile"),
    "checkpoint": ("dowser_pl.callbacks", "Checkpoints"),
    "trainer": TRAINER,
}
# option that names a class -> where those lie that need no module in front, and what they derive from
ROOMS = {
    "data": ("dowser_pl.data", "LightningDataModule"),
    "dowser.method": ("dowser_pl.methods", "Method"),
    "model.optimizer": ("torch.optim", "Optimizer"),
    "model.scheduler": ("torch.optim.lr_scheduler", "LRScheduler"),
    "trainer.callbacks": ("lightning.pytorch.callbacks", "Callback"),
}
# option -> the least number it takes, where another ends in the midst of something or is passed over
LEAST = {
    "seed_everything": 0,
    "trainer.accumulate_grad_batches": 1,
    "trainer.check_val_every_n_epoch": 1,
    "trainer.gradient_clip_val": 0,
    "trainer.log_every_n_steps": 0,
    "trainer.num_sanity_val_steps": -1,
}
# option -> the names that Lightning and this package register for it, and those that are understood beside them
REGISTERED = {
    "trainer.accelerator": ("auto", "cpu", "gpu", "cuda", "mps", "tpu"),
    "trainer.strategy": (
        "auto",
        "ddp",
        *(f"ddp_{way}" for way in ("spawn", "fork", "notebook")),
        *(
            f"ddp_{way}find_unused_parameters_{choice}"
            for way in ("", "spawn_", "fork_", "notebook_")
            for choice in ("false", "true")
        ),
        *(f"deepspeed{stage}" for stage in ("", "_stage_1", "_stage_2", "_stage_3")),
        *(f"deepspeed_stage_{rest}" for rest in ("2_offload", "3_offload", "3_offload_nvme")),
        *(
            "fsdp",
            "fsdp1",
            "fsdp2",
            "fsdp_cpu_offload",
            "single_device",
            "single_tpu",
            "single_xla",
            "xla",
            "xla_debug",
        ),
    ),
}
_FREE = {
    "seed_everything": Option("seed_everything", ("int", "bool"), "int", "0", "Seed of all random numbers."),
    "curve": Option("curve", (ListOf(("float",)),), "list[float]", "[]", " ".join(CURVE.split())),
    "overwrite": Option("overwrite", ("bool",), "bool", "False", " ".join(OVERWRITE.split())),
}
_LINKED = {"budget.ratios", "checkpoint.folder"}  # set from other options
_BARE = {"config", "print_config", "help", *GROUPS}  # no value of ours, or a file of options
_CALLED = {"learning_rate": "lr", "epochs": "max_epochs", "output_dir": "default_root_dir", "ratio": "update_ratio"}
_BESIDE = {"model", "train_dataloaders", "val_dataloaders", "dataloaders", "datamodule"}
DEFAULT_CLASSES = {"dowser.method": "ModelDowser", "model.optimizer": "torch.optim.AdamW"}


class Table:
    """The options of one verb.

    Attributes:
        options: by dotted name.
    """

    def __init__(self, verb: str) -> None:
        self.options: dict[str, Option] = dict(_FREE)
        self.options["data"] = Option("data", (OPEN,), "LightningDataModule", "None", "Your data, or the world's.")
        for group, (module, name) in GROUPS.items():
            self._add(group, class_at(module, name))
        for name, default in TRAINER_DEFAULTS.items():
            dotted = f"trainer.{name}"
            self.options[dotted] = replace(self.options[dotted], default=repr(default))
        trainer = class_at(*TRAINER)
        arguments = method_of(trainer, "fit" if verb == "probe" else verb) if trainer else None
        if verb != "probe":
            self.options |= {name: each for name, each in (arguments or {}).items() if name not in _BESIDE}

    def _add(self, prefix: str, owner: Class | None) -> None:
        for name, option in signature(owner).options.items() if owner else ():
            dotted = f"{prefix}.{name}"
            settings = [kind for kind in option.kinds if isinstance(kind, Class)]
            if dotted not in _LINKED:
                self.options[dotted] = option
            if option.kinds == tuple(settings) and dotted not in ROOMS:  # always there, so its own are options too
                del self.options[dotted]
                self._add(dotted, settings[0])

    def knows(self, name: str, chosen: Mapping[str, set[str]]) -> bool:
        """Whether there is such an option, or nobody can say without importing what it belongs to.

        Args:
            name: dotted.
            chosen: classes that were named, by the option that takes them.
        """
        if name in self.options or name in _BARE or any(each.startswith(f"{name}.") for each in self.options):
            return True
        owner = self._owner(name)
        if owner is None:
            return False
        return _inside(name[len(owner) + 1 :].split("."), self.classes(owner, chosen))

    def kinds(self, name: str, chosen: Mapping[str, set[str]]) -> Kinds:
        """The kinds of values of an option; of one that nobody knows, anything."""
        if name in self.options:
            return (OPEN,) if name in ROOMS else self.options[name].kinds
        owner = self._owner(name)
        inner = [part for part in name[len(owner or "") + 1 :].split(".") if part != "init_args"]
        classes = self.classes(owner, chosen) if owner else None
        if not classes or len(inner) != 1:
            return (OPEN,)
        found = [signature(each).options.get(inner[0]) for each in classes]
        return tuple(kind for each in found for kind in (each.kinds if each else (OPEN,)))

    def classes(self, owner: str, chosen: Mapping[str, set[str]]) -> list[Class] | None:
        """The classes that an option's own options may belong to; None = one that cannot be read."""
        if owner in ROOMS:
            names = chosen.get(owner) or {DEFAULT_CLASSES.get(owner, "")}
            found = [class_signature(owner, name) for name in names]
            return None if None in found else [each for each in found if each]
        return settings_of(self.options[owner].kinds)

    def texts(self, owner: str) -> list[str]:
        """What an option that names a class takes beside classes: the names of schedules."""
        kinds = self.options[owner].kinds if owner in self.options else ()
        return [kind.text for kind in kinds if isinstance(kind, Literally)]

    def meant(self, name: str, chosen: Mapping[str, set[str]]) -> list[str]:
        """The nearest names: those of the same last part where the group was left out, else the one most alike."""
        names = {*self.options, *GROUPS, *self._of_classes(chosen)}
        plain = re.sub(r"\.(init_args|dict_kwargs)(?=\.)", "", name)
        last = _CALLED.get(plain.rpartition(".")[2], plain.rpartition(".")[2])
        same = sorted(each for each in names if each.rpartition(".")[2] == last)
        if same and "." not in plain:
            return same[:3]
        beside = [each for each in names if each.rpartition(".")[0] == plain.rpartition(".")[0]]
        ends = {each.rpartition(".")[2]: each for each in beside}
        ends |= {called: ends[each] for called, each in _CALLED.items() if each in ends}
        near = [ends[each] for each in get_close_matches(plain.rpartition(".")[2], ends, n=1, cutoff=0.65)]
        return near or same[:3] or get_close_matches(plain, names, n=1, cutoff=0.8)

    def _owner(self, name: str) -> str | None:
        """The longest option that a name begins with."""
        owners = [each for each in self.options if name.startswith(f"{each}.")]
        return max(owners, key=len, default=None)

    def _of_classes(self, chosen: Mapping[str, set[str]]) -> Iterator[str]:
        for owner in {*self.options, *ROOMS}:
            for each in self.classes(owner, chosen) or ():
                yield from (f"{owner}.{name}" for name in signature(each).options)


def settings_of(kinds: Kinds) -> list[Class] | None:
    """The classes of an option whose arguments are all of it; None if others may derive from one of them."""
    flat = [each for kind in kinds for each in (kind.kinds if isinstance(kind, ListOf) else (kind,))]
    classes = [each for each in flat if isinstance(each, Class)]
    return None if OPEN in flat or not all(each.is_settings for each in classes) else classes


def _inside(parts: list[str], classes: list[Class] | None) -> bool:
    """Whether one of these classes has the option that the parts of a name lead to."""
    parts = [part for part in parts if part not in ("init_args", "dict_kwargs")]
    if classes is None or not parts or parts[0] in ("class_path", "help"):
        return True
    for each in classes:
        found = signature(each)
        if not found.closed and parts[0] not in found.options:
            return True
        if parts[0] in found.options:
            inner = settings_of(found.options[parts[0]].kinds)
            return len(parts) == 1 or inner is None or (bool(inner) and _inside(parts[1:], inner))
    return False


def class_signature(owner: str, name: str) -> Class | None:
    """A class by its path, or by its name alone where it lies in the room that the option takes classes from."""
    module, _, last = name.rpartition(".")
    return class_at(module or ROOMS[owner][0], last)


def usable(owner: str) -> list[Class]:
    """The classes that an option takes by their name alone; those that others derive from lie in modules `base`."""
    found = [class_signature(owner, name) for name in classes_in(*ROOMS[owner])]
    return [each for each in found if each and not each.module.endswith(".base")]


def near_class(owner: str, name: str) -> list[str]:
    """The class that was probably meant by a name that is none, if one is alike."""
    return get_close_matches(name.rpartition(".")[2], [each.name for each in usable(owner)], n=1)


@cache
def table(verb: str) -> Table:
    """The options of a verb."""
    return Table(verb)


def verb_and_rest(arguments: Sequence[str]) -> tuple[str, Sequence[str]]:
    """The training verb of a command line and what follows it.

    Raises:
        DowserError: if there is none.
    """
    begin = next((place for place, each in enumerate(arguments) if each in VERBS), None)
    if begin is None:
        raise DowserError(f"there is no verb, expected one of: {', '.join(VERBS)}. See python -m dowser_pl --help")
    return arguments[begin], arguments[begin + 1 :]
