"""Prompts that several processes write are those of one process, each written once."""

from unittest.mock import patch

import pytest
import torch

from dowser_pl.distributed import collectives
from dowser_pl.importance import Probe, write_prompts
from dowser_pl.importance.prompts import noise_images
from tests.distributed.harness import alone, outcomes, run
from tests.tiny_models import make_processor, tiny_llava

TEXT = Probe(num_prompts=130, num_tokens=10)
IMAGES = Probe(num_prompts=7, num_tokens=10, batch_size=2, noise_images=True)


def written(settings, spoiled=None):
    """Prompts, and how many rows each `generate` of this rank had; in half precision, where a batch's size matters."""
    model, processor, sizes = tiny_llava().eval().bfloat16(), make_processor(), []
    for weight in model.parameters():
        if weight.dim() == 2:
            weight.data.mul_(6)
    generate = model.generate

    def counted(**inputs):
        sizes.append(len(inputs["input_ids"]))
        if spoiled == collectives.rank():
            raise ValueError("this rank cannot write")
        return generate(**inputs)

    images = (lambda batch: noise_images(processor, settings, batch)) if settings.noise_images else None
    with patch.object(model, "generate", counted):
        prompts = write_prompts(model, processor.tokenizer, settings, range(settings.num_prompts), images)
    return [(each.tokens, each.image) for each in prompts], sizes


@pytest.mark.slow
def test_ranks_share_the_batches_of_one_process():
    expected, sizes = alone(written, TEXT)
    assert sizes == [64, 64, 2] and len({tuple(tokens.tolist()) for tokens, _ in expected}) > 100
    ranks = run(written, TEXT)
    assert [sizes for _, sizes in ranks] == [[64, 2], [64]]
    for prompts, _ in ranks:
        assert all(torch.equal(mine[0], other[0]) for mine, other in zip(prompts, expected, strict=True))


@pytest.mark.slow
def test_so_they_do_with_images():
    expected, sizes = alone(written, IMAGES)
    assert sizes == [2, 2, 2, 1]
    ranks = run(written, IMAGES)
    assert [sizes for _, sizes in ranks] == [[2, 2], [2, 1]]
    for prompts, _ in ranks:
        for (tokens, image), (other, its) in zip(prompts, expected, strict=True):
            assert torch.equal(tokens, other) and image.keys() == its.keys() != set()
            assert all(torch.equal(image[name], its[name]) for name in image)


@pytest.mark.parametrize("rank", [0, 1])
def test_what_fails_on_one_rank_fails_on_all(rank):
    for outcome in outcomes(written, TEXT, rank):
        assert outcome.message == "ValueError: this rank cannot write"
