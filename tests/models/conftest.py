"""A whole LLaVA folder, and a copy of it for each test that damages one."""

import shutil
from pathlib import Path

import pytest

from tests.tiny_models import save_tiny_llava


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole LLaVA folder; tests copy it before they change it."""
    return save_tiny_llava(tmp_path_factory.mktemp("llava"))


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy that may be damaged."""
    return Path(shutil.copytree(saved, tmp_path / "model"))
