"""A batch of the importance pass that is too much for one of two processes that hold a model together."""

import re
from unittest.mock import patch

import pytest
import torch

from dowser_pl.importance import probe, prompts
from tests.distributed.fits import fit
from tests.distributed.harness import outcomes
from tests.tiny_models import save_tiny_llava

PLACES = {
    "measured": (probe, "_measure_batch", "2 prompts .* lower --dowser.probe.batch_size"),
    "written": (prompts._Writer, "continue_prefixes", "4 prompts .* lower --dowser.probe.num_tokens"),
}


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    return save_tiny_llava(tmp_path_factory.mktemp("model"))


def full(folder, model, place):
    """The memory of the second rank is full; the first is in the middle of its batch then."""
    owner, name, _ = PLACES[place]
    called = getattr(owner, name)

    def run(*arguments):
        if torch.distributed.get_rank() == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return called(*arguments)

    with patch.object(owner, name, run):
        fit(folder, model, strategy="fsdp2", patience=5.0)


@pytest.mark.parametrize("place", ["measured", pytest.param("written", marks=pytest.mark.slow)])
def test_a_full_device_ends_all_with_the_option_to_lower(model_folder, tmp_path, place):
    first, second = outcomes(full, tmp_path, model_folder, place)
    assert first.status == second.status == 1
    said = PLACES[place][2]
    for outcome in (first, second):
        assert re.search(said, outcome.message), outcome.message
    assert second.message.startswith("DowserError: ") and "process 1 failed" in first.message
