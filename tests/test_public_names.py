"""What a notebook imports from the package itself: there, documented, and loaded when it is asked for."""

import ast
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import dowser_pl
from dowser_pl import methods

PACKAGE = Path(dowser_pl.__file__).parent
NAMES = sorted(set(dowser_pl.__all__) - {"__version__"})


def test_the_package_alone_loads_nothing_heavy_and_a_name_what_it_needs():
    code = (
        "import sys, dowser_pl\n"
        "heavy = {'torch', 'lightning', 'transformers', 'matplotlib'}\n"
        "assert 'Dowser' in dir(dowser_pl) and not heavy & set(sys.modules)\n"
        "from dowser_pl import Report, read_report\n"
        "assert not heavy & set(sys.modules)\n"
        "from dowser_pl import Layer\n"
        "assert heavy & set(sys.modules) == {'torch'}\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr


@pytest.mark.parametrize("name", NAMES)
def test_a_public_name_is_what_it_is_at_home_and_says_what_it_is_for(name):
    found = getattr(dowser_pl, name)
    assert found.__name__ == name and found.__module__.startswith("dowser_pl.")
    words = vars(found).get("__doc__") if inspect.isclass(found) else found.__doc__  # of its own, not inherited
    assert words and words.split("\n")[0].rstrip().endswith((".", ":")), words
    assert not words.startswith(f"{name}("), "written by dataclass, not by us"


def test_every_line_of_the_stub_is_a_name():
    """A line that is written otherwise would be seen by type checkers alone."""
    version, *imports = ast.parse((PACKAGE / "__init__.pyi").read_text()).body
    assert ast.unparse(version) == "__version__: str"
    lines = [ast.unparse(line) for line in imports]
    homes = {name: getattr(dowser_pl, name) for name in NAMES}
    assert [line.split(" as ")[1] for line in lines] == [name for name in dowser_pl.__all__ if name in homes]
    assert all(line.split()[3] == line.split()[5] for line in lines)


def test_no_name_hides_a_module_of_the_package():
    assert not set(NAMES) & {path.stem for path in PACKAGE.iterdir()}


def test_all_methods_can_be_had():
    kinds = {name for name in methods.__all__ if inspect.isclass(getattr(methods, name))}
    assert {name for name in kinds if issubclass(getattr(methods, name), methods.Method)} <= set(NAMES)


def test_what_the_page_of_the_api_shows_can_be_had():
    shown = re.findall(
        r"^::: dowser_pl\.([\w.]+)$", (PACKAGE.parent / "docs/reference/api.md").read_text(), re.MULTILINE
    )
    assert len(shown) > 20
    assert {path for path in shown if path.rpartition(".")[2] not in NAMES} == {"functional.scores"}


def test_a_name_that_is_not_there_is_told():
    with pytest.raises(AttributeError, match="'dowser_pl' has no attribute 'Dauser'"):
        dowser_pl.Dauser  # noqa: B018


PARAMETERS = {
    "measure_importance": "model processor probe method cache_dir targets last_n_layers autocast",
    "Importance.scores": "self name method",
    "Importance.save": "self path",
    "Importance.load": "path model processor",
    "Importance.plot": "self path method",
    "choose_masks": "importance method",
    "Masks.save": "self path",
    "Masks.load": "path",
    "train_only": "model masks",
    "Trained.parameters": "self",
    "Trained.state_dict": "self",
    "Trained.load_state_dict": "self state",
    "Trained.save_patch": "self path",
    "Trained.verify": "self",
    "evaluate": "model processor tasks batch_size chat_template",
    "Answers.to_json": "self",
    "drift": "model processor base per_source seed batch_size pictures moved chat_template",
    "DriftFromBase.to_json": "self",
    "apply_to_model": "model patch",
    "save_difference": "path base tuned",
    "Protectable": "network processor targets last_n_layers chat_template also_train",
    "DowserCallback": "method processor probe cache_dir targets last_n_layers update",
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_what_scripts_call_stays_what_it_is(name):
    """Scripts of others name these: what goes or is renamed breaks them; what is added goes behind, and here."""
    found = dowser_pl
    for part in name.split("."):
        found = getattr(found, part)
    assert list(inspect.signature(found).parameters) == PARAMETERS[name].split()
