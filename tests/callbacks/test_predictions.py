from types import SimpleNamespace

import pytest

from dowser_pl.callbacks import Predictions


def test_several_processes_are_refused():
    """Each would write its own share over the others'."""
    with pytest.raises(ValueError, match="predict runs in one process, got 2"):
        Predictions().setup(SimpleNamespace(world_size=2), None, "predict")
    Predictions().setup(SimpleNamespace(world_size=2), None, "fit")
