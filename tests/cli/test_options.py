"""The table of options that is read from source, compared with the parser and with the classes themselves."""

import inspect
import subprocess
import sys
from importlib import import_module

import pytest
from lightning.pytorch.accelerators import AcceleratorRegistry
from lightning.pytorch.strategies import StrategyRegistry

from dowser_pl.cli.main import DowserCLI
from dowser_pl.cli.options import (
    GROUPS,
    LEAST,
    REGISTERED,
    ROOMS,
    TRAINER_DEFAULTS,
    VERBS,
    class_signature,
    table,
    usable,
)
from dowser_pl.cli.signatures import classes_in, signature
from dowser_pl.cli.trainer import DowserTrainer
from dowser_pl.module import MultimodalModule


class Parsers(DowserCLI):
    """Stops as soon as the parsers stand."""

    def parse_arguments(self, parser, args):
        raise StopIteration(parser._subcommands_action._name_parser_map)


@pytest.fixture(scope="module")
def parsers():
    with pytest.raises(StopIteration) as stop:
        Parsers(
            MultimodalModule, trainer_class=DowserTrainer, trainer_defaults=TRAINER_DEFAULTS, seed_everything_default=0,
            auto_configure_optimizers=False,
            args=[],
        )  # fmt: skip
    return stop.value.value


def actions(parser):
    return {
        action.dest: action
        for action in parser._actions
        if any(name.startswith("--") for name in action.option_strings) and not action.dest.endswith("help")
    }


@pytest.mark.parametrize("verb", VERBS)
def test_the_table_has_the_options_of_the_parser(parsers, verb):
    beside = {"config", "print_config", *GROUPS, "dowser.probe", "dowser.rows"}
    assert set(parsers) == set(VERBS)
    assert set(actions(parsers[verb])) - beside == set(table(verb).options)


def test_defaults_are_those_of_the_parser(parsers):
    compared = 0
    for name, action in actions(parsers["fit"]).items():
        if name in table("fit").options and name not in ROOMS:
            option = table("fit").options[name]
            text = "None" if option.default is None else option.default  # an option that is required has none
            assert text == repr(action.default) or eval(text) == action.default, name
            compared += 1
    assert compared > 70


def live(owner, name):
    return getattr(import_module(ROOMS[owner][0]), name)


SHORT = [(owner, name) for owner in ROOMS for name in classes_in(*ROOMS[owner])]


@pytest.mark.parametrize(("owner", "name"), SHORT)
def test_arguments_are_those_of_the_class(owner, name):
    given = inspect.signature(live(owner, name)).parameters.values()
    read = signature(class_signature(owner, name))
    named = [each.name for each in given if each.kind not in (each.VAR_KEYWORD, each.VAR_POSITIONAL)]
    assert set(named) <= set(read.options)
    assert not read.closed or set(named) == set(read.options)


@pytest.mark.parametrize("owner", ROOMS)
def test_every_room_has_classes_that_a_typo_can_be_near_to(owner):
    names = [each.name for each in usable(owner)]
    assert len(names) > 1 and not any(inspect.isabstract(live(owner, name)) for name in names)


def test_reading_imports_nothing_heavy():
    code = (
        "import sys; from dowser_pl.cli.options import table\n"
        "for verb in ('fit', 'plan'): table(verb)\n"
        "heavy = {'torch', 'lightning', 'transformers', 'jsonargparse'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_all_names_that_are_registered_are_known():
    """One that is missing would be refused for the one it resembles."""
    assert set(REGISTERED["trainer.strategy"]) == {"auto", *StrategyRegistry.available_strategies()}
    assert set(REGISTERED["trainer.accelerator"]) >= set(AcceleratorRegistry.available_accelerators())


def test_least_numbers_are_of_options_that_are_there():
    assert set(LEAST) <= set(table("fit").options)
