"""A class by its path, and what is said where there is none."""

import sys
from collections import OrderedDict

import pytest

from dowser_pl.files.class_path import class_named

KNOWN = {"ordered": OrderedDict}


@pytest.fixture(autouse=True)
def package(tmp_path, monkeypatch):
    (tmp_path / "pack_of_mine").mkdir()
    (tmp_path / "pack_of_mine" / "__init__.py").write_text("")
    (tmp_path / "pack_of_mine" / "inner.py").write_text("class Mine(dict): ...\nclass Other: ...\nnumber = 3\n")
    (tmp_path / "pack_of_mine" / "broken.py").write_text("1 / 0")
    (tmp_path / "pack_of_mine" / "needy.py").write_text("import a_library_that_nobody_has")
    monkeypatch.syspath_prepend(tmp_path)
    yield
    for name in [name for name in sys.modules if name.startswith("pack_of_mine")]:
        del sys.modules[name]


def test_a_class_is_found_by_its_path_and_a_known_one_by_its_name():
    found = class_named("pack_of_mine.inner.Mine", dict, "setting", KNOWN)
    assert found.__module__ == "pack_of_mine.inner"
    assert issubclass(found, dict)
    assert class_named("ordered", dict, "setting", KNOWN) is OrderedDict


@pytest.mark.parametrize(
    ("path", "message"),
    {
        "orderd": r"^setting: got 'orderd', expected one of: ordered, the path of a subclass of dict.*mean ordered\?$",
        "pack_of_mine.inner.": "got 'pack_of_mine.inner.', expected one of",
        "two words.Mine": "got 'two words.Mine', expected one of",
        "pack_of_mime.inner.Mine": "no module 'pack_of_mime', neither in the working folder .*mean pack_of_mine",
        "pack_of_mine.iner.Mine": r"no module 'pack_of_mine.iner'.*did you mean pack_of_mine.inner\?$",
        "pack_of_mine.inner.Mine.Mine": "no module 'pack_of_mine.inner.Mine', neither",
        "pack_of_mine.inner.Mien": "pack_of_mine.inner has no 'Mien', expected a subclass of.*pack_of_mine.inner.Mine",
        "pack_of_mine.inner.Other": "pack_of_mine.inner.Other is the class Other, expected a subclass of",
        "pack_of_mine.inner.number": "pack_of_mine.inner.number is no class but int, expected a subclass of",
        "pack_of_mine.broken.Mine": "pack_of_mine.broken.Mine cannot be imported: ZeroDivisionError: division by zero",
        "pack_of_mine.needy.Mine": "cannot be imported: No module named 'a_library_that_nobody_has'. Fix: install",
    }.items(),
)
def test_what_there_is_not_is_told_with_the_nearest(path, message):
    with pytest.raises(ValueError, match=message):
        class_named(path, dict, "setting", KNOWN)
