"""The formulas of the scaling note for FSDP2 against the collectives of two processes, counted one by one."""

import pytest

from tests.distributed.harness import run
from tests.distributed.test_scaling import PROBE, Traffic, counted, model_folder, scaling, sizes, told

__all__ = ["model_folder", "sizes"]  # fixtures

OPTIONS = {"strategy": "fsdp2", "gradient_clip_val": 1.0, "num_rows": 16, "accumulate_grad_batches": 2}


@pytest.mark.slow
def test_steps_and_pass_under_fsdp2_are_what_the_note_says(model_folder, sizes, tmp_path):
    for batches, passes in run(counted, tmp_path, model_folder, **OPTIONS):
        expected = scaling.fsdp2_step(sizes, 2, 4, 4, micro_batches=2)
        for first in (0, 2):
            step = told(sum(batches[first : first + 2], Traffic()))
            gathers, handed = expected.pop("all_gather"), step.pop("all_gather")
            assert handed[0] == gathers[0]
            assert gathers[1] <= handed[1] <= 1.01 * gathers[1]  # five rows are six for two
            assert step == expected
            expected["all_gather"] = gathers
        written = scaling.written(sizes, 2, 4, 64, PROBE.num_tokens)
        (gathers, handed), sent = written["all_gather"], told(passes["prompts"])
        assert sent["all_reduce"] == written["all_reduce"]
        assert sent["all_gather"][0] == gathers + 2  # the prompts themselves, and their size
        assert 0.99 * handed <= sent["all_gather"][1]
        (measured, weights), (messages, handed) = (
            each["all_gather"] for each in (scaling.probed(sizes, 2, 4, 64, 32), scaling.factors(sizes, 2, 64))
        )
        assert passes["factors"].messages == {"all_gather": measured + messages}
        assert weights + handed <= passes["factors"].bytes["all_gather"] <= weights + handed + 600 * len(sizes.matrices)
        picked = passes["all"] - passes["factors"] - passes["prompts"]
        messages, handed = scaling.selection(sizes, "cpu")["all_reduce"]
        # where entries tie at the threshold, processes also tell each other how many
        assert messages <= picked.messages["all_reduce"] <= messages + len(sizes.matrices)
        assert handed <= picked.bytes["all_reduce"] <= handed + 16 * len(sizes.matrices)
