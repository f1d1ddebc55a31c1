"""What tells a stranger what this is and who may use it: license, citation, metadata, forms of the repository."""

import hashlib
import re
from pathlib import Path

import pytest
import yaml

import dowser_pl
from dowser_pl.methods import ModelDowser, Spider

ROOT = Path(__file__).parents[1]
PYPROJECT = (ROOT / "pyproject.toml").read_text()
CITATION = yaml.safe_load((ROOT / "CITATION.cff").read_text())


def test_the_license_is_the_text_of_apache_to_the_letter():
    digest = hashlib.sha256((ROOT / "LICENSE").read_bytes()).hexdigest()
    assert digest == "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30"
    assert 'license = "Apache-2.0"' in PYPROJECT and CITATION["license"] == "Apache-2.0"


def test_the_citation_is_of_this_version():
    assert {"cff-version", "message", "title", "authors"} <= CITATION.keys()  # without which it is not one
    assert CITATION["title"] == dowser_pl.__name__ and CITATION["version"] == dowser_pl.__version__
    assert f'version = "{dowser_pl.__version__}"' in PYPROJECT


@pytest.mark.parametrize("method", [ModelDowser, Spider])
def test_papers_are_cited_as_the_methods_name_them(method):
    told = method.reference
    (paper,) = (each for each in CITATION["references"] if told.arxiv in each["url"])
    assert ", ".join(author["family-names"] for author in paper["authors"]) == told.authors
    assert paper["year"] == told.year and paper["title"].startswith(told.title.removesuffix("MLLMs"))


def test_versions_of_python_are_those_that_may_install_it():
    lowest, beyond = map(int, re.search(r'requires-python = ">=3\.(\d+),<3\.(\d+)"', PYPROJECT).groups())
    listed = re.findall(r'"Programming Language :: Python :: 3\.(\d+)"', PYPROJECT)
    assert [int(minor) for minor in listed] == list(range(lowest, beyond))
