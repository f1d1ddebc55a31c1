"""What the scaling note says of FSDP1, as a difference to FSDP2, against the collectives of two processes."""

import pytest

from tests.distributed.harness import run
from tests.distributed.test_fsdp2_scaling import OPTIONS
from tests.distributed.test_scaling import PROBE, counted, model_folder, scaling, sizes, told

__all__ = ["model_folder", "sizes"]  # fixtures


@pytest.mark.slow
def test_what_lies_beside_the_layers_is_gathered_once_for_both_directions(model_folder, sizes, tmp_path):
    rest = sizes.weights - sizes.tuned
    for batches, passes in run(counted, tmp_path, model_folder, **OPTIONS | {"strategy": "fsdp1"}):
        expected = scaling.fsdp2_step(sizes, 2, 4, 4)
        step = told(batches[1])
        gathers, handed = expected["all_gather"]
        assert step["all_gather"][0] == gathers - 1
        assert handed - 4 * rest / 2 <= step["all_gather"][1] <= 1.01 * handed - 4 * rest / 2  # filled up to 16 bytes
        messages, handed = expected["reduce_scatter"]
        assert step["reduce_scatter"][0] == messages
        assert handed <= step["reduce_scatter"][1] <= 1.01 * handed  # norms
        assert step["all_reduce"] == expected["all_reduce"]
        messages, _ = scaling.written(sizes, 2, 4, 64, PROBE.num_tokens)["all_gather"]
        assert passes["prompts"].messages["all_gather"] == messages + 2  # the prompts themselves, and their size
        (measured, _), (factors, _) = (
            each["all_gather"] for each in (scaling.probed(sizes, 2, 4, 64, 32), scaling.factors(sizes, 2, 64))
        )
        assert passes["factors"].messages == {"all_gather": measured - 1 + factors}
