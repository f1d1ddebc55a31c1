"""A wheel or an sdist that lacks something, or holds what it should not, is told so."""

import io
import tarfile
import zipfile

import pytest

from check_wheel import ROOT, files, main, problems

INFO = "dowser_pl-0.dist-info/"
METADATA = """\
Metadata-Version: 2.4
Name: dowser_pl
License-Expression: Apache-2.0
Classifier: Programming Language :: Python :: 3.10
Classifier: Programming Language :: Python :: 3.11
Requires-Dist: numpy>=3.2
Requires-Python: <3.12,>=3.10
"""


@pytest.fixture
def checkout(tmp_path):
    """One file of each kind, and what Python leaves behind."""
    names = (
        "dowser_pl/__init__.py dowser_pl/py.typed dowser_pl/assets/a.json dowser_pl/__pycache__/a.pyc configs/b.yaml"
    )
    for name in names.split():
        path = tmp_path / "checkout" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return tmp_path / "checkout"


def built(folder, checkout, wheel=(), sdist=(), without=(), metadata=METADATA):
    """A wheel and an sdist of the checkout; more names, or fewer."""
    expected = files(checkout)
    contents = dict.fromkeys((*expected.values(), f"{INFO}licenses/LICENSE", *wheel), "") | {
        f"{INFO}METADATA": metadata
    }
    with zipfile.ZipFile(folder / "dowser_pl-0.whl", "w") as archive:
        for name in contents.keys() - set(without):
            archive.writestr(name, contents[name])
    with tarfile.open(folder / "dowser_pl-0.tar.gz", "w:gz") as archive:
        for name in {*expected, "LICENSE", "README.md", "pyproject.toml", *sdist} - set(without):
            archive.addfile(tarfile.TarInfo(f"dowser_pl-0/{name}"), io.BytesIO())
    return problems(checkout, folder / "dowser_pl-0.whl", folder / "dowser_pl-0.tar.gz")


def test_what_holds_all_is_whole(tmp_path, checkout):
    assert built(tmp_path, checkout, sdist=("tests/test_a.py", ".ci/run")) == []


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("dowser_pl/py.typed", ["the wheel lacks dowser_pl/py.typed", "the sdist lacks dowser_pl/py.typed"]),
        (
            "dowser_pl/assets/a.json",
            ["the wheel lacks dowser_pl/assets/a.json", "the sdist lacks dowser_pl/assets/a.json"],
        ),
        ("dowser_pl/configs/b.yaml", ["the wheel lacks dowser_pl/configs/b.yaml"]),
        ("configs/b.yaml", ["the sdist lacks configs/b.yaml"]),
        (f"{INFO}licenses/LICENSE", ["the wheel lacks its license"]),
        ("LICENSE", ["the sdist lacks LICENSE"]),
    ],
)
def test_what_is_missing_is_named(tmp_path, checkout, name, told):
    assert built(tmp_path, checkout, without=(name,)) == told


def test_what_is_too_much_is_named(tmp_path, checkout):
    assert built(tmp_path, checkout, wheel=("tests/test_a.py",)) == [
        "the wheel holds tests/test_a.py, which no one needs"
    ]


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        (":: 3.11", ":: 3.12", ["the metadata lack 'Programming Language :: Python :: 3.11'", "3.12', which"]),
        ("<3.12,", "<3.13,", ["the metadata lack 'Programming Language :: Python :: 3.12'"]),
        ("Apache-2.0", "MIT", ["the metadata call the license MIT, expected Apache-2.0"]),
    ],
)
def test_metadata_that_are_not_true_are_told(tmp_path, checkout, before, after, told):
    found = built(tmp_path, checkout, metadata=METADATA.replace(before, after))
    assert len(found) == len(told) and all(part in line for part, line in zip(told, found, strict=True)), found


def test_the_checkout_has_what_a_wheel_is_made_of():
    names = files(ROOT)
    assert names["configs/quickstart.yaml"] == "dowser_pl/configs/quickstart.yaml"
    assert {"dowser_pl/py.typed", "dowser_pl/assets/world/model.safetensors"} <= set(names)
    assert not any("__pycache__" in name for name in names)


def test_a_folder_without_either_is_refused(tmp_path, capsys):
    assert main([str(tmp_path)]) == 1
    assert "expected one wheel and one sdist" in capsys.readouterr().err
