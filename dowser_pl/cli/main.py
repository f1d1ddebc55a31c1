"""The command line: LightningCLI over one module, any data module and one method.

Importing the packages below is what makes short class names work in YAML.
"""

import logging
import sys
import warnings
from argparse import ArgumentError
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse import Namespace
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException, SIGTERMException

import dowser_pl.data
import dowser_pl.methods
import dowser_pl.strategies  # noqa: F401
from dowser_pl.callbacks import (
    AtomicCheckpointIO,
    Checkpoints,
    Curve,
    Dowser,
    EndOnSigterm,
    EpochProgress,
    Export,
    FailTogether,
    Forgetting,
    PatchFile,
    Predictions,
    Progress,
    RandomState,
    ScoreTable,
)
from dowser_pl.callbacks.end_on_sigterm import ENDED, ending_on_sigterm
from dowser_pl.cli.arguments import check_numbers, joined_numbers, resolve_configs
from dowser_pl.cli.ending import INTERRUPTED, TERMINATED, refuse
from dowser_pl.cli.options import CURVE, OVERWRITE, TRAINER_DEFAULTS, VERBS, verb_and_rest
from dowser_pl.cli.refusals import in_words
from dowser_pl.cli.trainer import DowserTrainer
from dowser_pl.distributed.checkpoint import is_folder
from dowser_pl.errors import DowserError, message_of
from dowser_pl.files.atomic import check_writable, write_atomically
from dowser_pl.methods import AfterFit
from dowser_pl.module import MultimodalModule
from dowser_pl.planning.verb import placement_of

__all__ = ["DowserCLI", "built", "ended_in_words", "main"]


class SaveConfig(SaveConfigCallback):
    """Writes the resolved configuration of `fit` to `<run>/config.yaml`; other verbs leave it as it was.

    Every logger gets it too, as the hyperparameters of the run.
    """

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:  # noqa: ARG002
        """On the first rank, before anything runs."""
        if stage != "fit" or trainer.limit_train_batches == 0:  # the latter is `probe`
            return
        config = self.config.clone()
        config["overwrite"] = False  # that was meant once, not for whoever runs this configuration again
        text = self.parser.dump(config, skip_none=False)
        write_atomically(Path(trainer.default_root_dir) / "config.yaml", text)
        for logger in trainer.loggers:
            logger.log_hyperparams(yaml.safe_load(text))


class Parser(LightningArgumentParser):
    """One whose default method lends its arguments to no other.

    A class that is named after another takes over those of its arguments that have the same name. That is meant for
    what a person set, and not for defaults: `--dowser.method my_package.Mine` begins with its own.
    """

    def get_defaults(self, *args: Any, **kwargs: Any) -> Namespace:
        """The class of the method alone; its arguments are filled in when all has been read."""
        defaults = super().get_defaults(*args, **kwargs)
        if method := defaults.get("dowser.method"):
            method.pop("init_args", None)
        return defaults


class DowserCLI(LightningCLI):
    """`fit | validate | test | predict | probe | plan`."""

    def __init__(self, *args: Any, verbs: Collection[str] = VERBS, **kwargs: Any) -> None:
        self._verbs = verbs  # reading the options of all six takes three times as long as of one
        super().__init__(*args, **kwargs)

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """The verbs whose options are read: of Lightning's, `probe` and `plan` those that were asked for."""
        ours = {"model", "datamodule"}
        skipped = {**LightningCLI.subcommands(), "probe": ours, "plan": ours}
        return {verb: skipped[verb] for verb in self._verbs}

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """What people set first comes first in `--help`: model, data, method; the Trainer's many options last."""
        parser.add_lightning_class_args(self._model_class, "model")
        parser.add_lightning_class_args(self._datamodule_class, "data", subclass_mode=True, required=False)
        parser.add_lightning_class_args(Dowser, "dowser")
        parser.add_argument("--curve", type=list[float], default=[], help=CURVE)
        parser.add_lightning_class_args(Curve, "budget")
        parser.add_lightning_class_args(Export, "export")  # before the report: a failure there loses no model
        parser.add_lightning_class_args(Forgetting, "report")
        parser.add_lightning_class_args(PatchFile, "patch")  # after it: the file tells its scores
        parser.add_lightning_class_args(Checkpoints, "checkpoint")
        parser.add_argument("--overwrite", type=bool, default=False, help=OVERWRITE)
        parser.add_lightning_class_args(self.trainer_class, "trainer")
        parser.set_defaults({f"trainer.{k}": v for k, v in self.trainer_defaults.items() if k != "callbacks"})
        parser.link_arguments("curve", "budget.ratios")
        parser.link_arguments("trainer.default_root_dir", "checkpoint.folder", _checkpoint_folder)

    def before_instantiate_classes(self) -> None:
        """Refuse numbers that mean nothing, wherever they were set."""
        check_numbers(self.config[self.subcommand].as_dict())

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """A Trainer that logs to CSV and TensorBoard under `<run>/logs` unless the user names loggers."""
        config = self._get(self.config_init, "trainer")
        if config.get("logger") in (None, True) and not config.get("fast_dev_run"):
            kwargs["logger"] = _loggers(config["default_root_dir"]) if self.subcommand == "fit" else False
        kwargs["callbacks"] = _with_progress(config)
        kwargs["plugins"] = [*(config.get("plugins") or []), AtomicCheckpointIO()]
        if self.subcommand == "plan":  # for devices that need not be here
            kwargs |= {"accelerator": "cpu", "strategy": "auto", "devices": 1, "num_nodes": 1}
        try:
            return super().instantiate_trainer(**kwargs)
        except (MisconfigurationException, ValueError, TypeError, ImportError) as error:
            if message_of(error) is not None:
                raise
            raise DowserError(
                f"the Trainer cannot be set up: {error} Got --trainer.accelerator {config.get('accelerator')}, "
                f"--trainer.devices {config.get('devices')} and --trainer.strategy {config.get('strategy')}; this "
                f"machine has {torch.cuda.device_count()} GPUs. Fix: set these to what is here, or to auto"
            ) from error

    def _parse_ckpt_path(self) -> None:
        """Nothing: Lightning would read the whole checkpoint here to look for settings, which ours do not hold."""

    def before_fit(self) -> None:
        """Refuse what nobody means: training without an end."""
        if self._get(self.config, "trainer.max_epochs") in (None, -1) and self.trainer.max_steps == -1:
            raise DowserError(
                "how long shall it train? Set --trainer.max_epochs (5 in the paper) or --trainer.max_steps"
            )
        self._check_inputs()
        self.trainer.overwrite = self._get(self.config, "overwrite")  # type: ignore[attr-defined]
        dowser = self._dowser()
        if dowser.method.needs and dowser.cache_dir is not None:
            check_writable(dowser.cache_dir, "--dowser.cache_dir")

    def _dowser(self) -> Dowser:
        return next(callback for callback in self.trainer.callbacks if isinstance(callback, Dowser))  # type: ignore[attr-defined]

    def before_probe(self) -> None:
        """Refuse a pass that would leave nothing behind."""
        dowser = self._dowser()
        measures = dowser.method.needs and not isinstance(dowser.method, AfterFit)
        if not measures or dowser.cache_dir is None or dowser.factors_file is not None:
            raise DowserError(
                "probe fills the cache of a method that measures the model: got "
                f"--dowser.method {type(dowser.method).__name__}, --dowser.cache_dir {dowser.cache_dir} and "
                f"--dowser.factors_file {dowser.factors_file}; set ModelDowser, a folder, and no file to read from"
            )
        check_writable(dowser.cache_dir, "--dowser.cache_dir")

    def before_plan(self) -> None:
        """Plan for the devices that were asked for, not for the ones that are here."""
        asked = self._get(self.config, "trainer")
        self.trainer.planned_for = placement_of(asked.strategy, asked.devices, asked.num_nodes)  # type: ignore[attr-defined]
        self.trainer.planned_on_cpu = "cpu" in str(asked.accelerator).lower()  # type: ignore[attr-defined]

    def _check_inputs(self) -> None:
        """Refuse what would fail late: no data, or a checkpoint that is not there."""
        if self.datamodule is None:
            raise DowserError("there is no data: set data.class_path, for example ConversationData with its train_file")
        if self.subcommand in ("fit", "predict"):
            check_writable(self.trainer.default_root_dir, "--trainer.default_root_dir")
        path = self._get(self.config, "ckpt_path")
        folder = Path(self.trainer.default_root_dir) / "checkpoints"
        if path == "last" and self.subcommand != "fit" and not list(folder.glob("last*.ckpt")):
            raise DowserError(
                f"--ckpt_path last: there is no checkpoint under {folder}, so the base model would be scored"
            )
        if path not in (None, "last", "hpc") and not (Path(path).is_file() or is_folder(path)):
            what = "is a folder (give one with --model.path)" if Path(path).is_dir() else "does not exist"
            raise DowserError(f"--ckpt_path {path} {what}; `last` takes the newest checkpoint under {folder}")

    before_validate = before_test = before_predict = _check_inputs


def _with_progress(config: Any) -> list[Callback]:
    """The callbacks of a person's own, and our progress bar where they have no other and want one."""
    own = config.get("callbacks") or []
    own = [*own] if isinstance(own, list) else [own]
    without = config.get("enable_progress_bar") is False or config.get("barebones")
    return own if without or any(isinstance(each, ProgressBar) for each in own) else [*own, Progress()]


def _checkpoint_folder(run: str) -> str:
    return str(Path(run) / "checkpoints")


def _loggers(root: str) -> list[Logger]:
    csv = CSVLogger(root, name="logs")
    return [csv, TensorBoardLogger(root, name="logs", version=csv.version)]


def main(args: list[str] | None = None) -> None:
    """Run one verb.

    Args:
        args: the command line without the program; None = `sys.argv[1:]`.

    Raises:
        SystemExit: if that fails, with one of `dowser_pl.cli.ending.STATUSES`; the reason is on stderr.
    """
    arguments = joined_numbers(sys.argv[1:] if args is None else args)
    try:
        arguments = resolve_configs(arguments)
    except DowserError as error:
        sys.exit(refuse(error))
    with ended_in_words(arguments):
        _run(arguments)


def built(arguments: list[str]) -> DowserCLI:
    """Module, data and trainer of a command line, which is checked but not run; within `ended_in_words`.

    Args:
        arguments: `validate` and what follows it, with paths of configurations.
    """
    return _run(arguments, _BuiltCLI)


class _BuiltCLI(DowserCLI):
    """One that ends when all is built."""

    def _run_subcommand(self, subcommand: str) -> None:  # noqa: ARG002
        self._check_inputs()


@contextmanager
def ended_in_words(arguments: list[str]) -> Iterator[None]:
    """Turn what ends a command into its exit status, with the reason on stderr.

    Args:
        arguments: the verb and what follows it, for what is said of an option.

    Raises:
        SystemExit: as `main`.
    """
    _quieten()
    try:
        with ending_on_sigterm():
            yield
    except ArgumentError as error:
        sys.exit(refuse(in_words(error, *verb_and_rest(arguments))))
    except (ValueError, OSError) as error:
        message = message_of(error)
        if message is None:
            raise
        sys.exit(f"\nerror: {message}")  # status 1
    except SIGTERMException as ended:  # a SystemExit that says success
        sys.exit(refuse(str(ended) or ENDED, TERMINATED))
    except SystemExit as stop:
        if isinstance(stop.__context__, KeyboardInterrupt):  # which the Trainer turns into a plain failure
            sys.exit(refuse("interrupted", INTERRUPTED))
        raise
    except KeyboardInterrupt:
        sys.exit(refuse("interrupted", INTERRUPTED))


def _run(arguments: list[str], kind: type[DowserCLI] | None = None) -> DowserCLI:
    strict = {"exit_on_error": False, "allow_abbrev": False}
    verbs = [each for each in VERBS if each in arguments[:1]] or VERBS
    return (kind or DowserCLI)(
        MultimodalModule,
        trainer_class=DowserTrainer,
        trainer_defaults=TRAINER_DEFAULTS
        | {"callbacks": [Predictions(), ScoreTable(), RandomState(), EpochProgress(), FailTogether(), EndOnSigterm()]},
        seed_everything_default=0,
        save_config_callback=SaveConfig,
        save_config_kwargs={"save_to_log_dir": False},
        auto_configure_optimizers=False,
        parser_class=Parser,
        parser_kwargs={"prog": "python -m dowser_pl"} | strict | dict.fromkeys(verbs, strict),
        args=arguments,
        verbs=verbs,
    )


def _quieten() -> None:
    """Silence messages of the libraries that ask nothing of the user."""
    for message in (
        ".*LightningCLI's args parameter.*",  # short names of configurations were resolved in them
        ".*does not have many workers.*",  # a choice
        ".*Checkpoint directory .* is not empty.*",  # a resumed run, or a fresh one that keeps `previous.ckpt`
        ".*sync_dist=True.*",  # metrics were computed over all processes
        ".*smaller than the logging interval.*",  # which a short run makes shorter, unless a person set it
        ".*treespec, LeafSpec.*",  # between Lightning 2.6 and torch 2.13
        ".*have no `val_dataloader`.*",  # `probe` needs no data
        ".*returned `None`, this fit will run with no optimizer.*",  # nor, on a quantized model, an optimizer
    ):
        warnings.filterwarnings("ignore", message)
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(
        lambda record: "litlogger" not in record.getMessage()
    )
