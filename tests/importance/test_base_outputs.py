from dataclasses import replace

import pytest
import torch

from dowser_pl.errors import DowserError
from dowser_pl.functional.divergence import TopOutcomes, kl_divergence
from dowser_pl.importance import Probe, Prompt, write_prompts
from dowser_pl.importance.base_outputs import BaseOutputs, current_logits, record_base
from dowser_pl.importance.prompts import alike, counted, noise_images
from dowser_pl.models.layers import text_model
from tests.tiny_models import BOS, FAMILIES, IMAGE, make_processor, tiny_llava, tiny_paligemma

SETTINGS = Probe(num_prompts=5, num_tokens=12, batch_size=2, seed=1)


def text_rows(lengths: list[int]) -> list[Prompt]:
    random = torch.Generator().manual_seed(0)
    return [Prompt(torch.cat([torch.tensor([BOS]), torch.randint(8, 80, (n - 1,), generator=random)])) for n in lengths]


def noise_rows(model) -> list[Prompt]:
    processor = make_processor()
    rows = write_prompts(
        model, processor.tokenizer, SETTINGS, range(3), lambda part: noise_images(processor, SETTINGS, part)
    )
    return [replace(row, kind="noise", is_text=row.tokens != IMAGE) for row in rows]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("is_text_model", [False, True])
def test_the_head_makes_the_logits_of_the_base_again_bit_for_bit(dtype, is_text_model):
    network = tiny_llava().to(dtype)
    rows = text_rows([9, 4, 7, 9])
    if is_text_model:
        network = FAMILIES["instructblip"]().to(dtype).language_model
    else:
        rows += noise_rows(network)
    base = record_base(network, rows, 2)
    assert base.hidden is not None
    for number, row in enumerate(rows):
        assert base.hidden[number].dtype == dtype and base.hidden[number].device.type == "cpu"
        assert base.hidden[number].shape == (int(counted(row).sum()), 32)
    for numbers in alike(rows, 2):
        with torch.no_grad():
            logits = current_logits(network, [rows[number] for number in numbers])
        assert torch.equal(base.of(network, numbers), logits)


def test_logits_are_those_of_each_row_by_itself():
    """An oracle without batches, padding and hooks: the whole model, one row at a time, in float64."""
    network = tiny_llava().double()
    rows = [*text_rows([9, 4]), *noise_rows(network)]
    rows = [replace(r, image={name: value.double() for name, value in r.image.items()}) for r in rows]
    base = record_base(network, rows, 5)
    for number, row in enumerate(rows):
        tokens = row.tokens.tolist()
        at = [t for t in range(len(tokens) - 1) if tokens[t + 1] != IMAGE]
        with torch.no_grad():
            expected = network(input_ids=row.tokens[None], **row.image).logits[0, at]
        torch.testing.assert_close(base.of(network, [number]), expected, rtol=1e-10, atol=1e-10)


def test_positions_count_where_the_next_token_is_text():
    assert counted(Prompt(torch.tensor([1, 9, 9]))).tolist() == [True, True, False]
    with_image = Prompt(torch.tensor([1, 4, 4, 9, 9]), is_text=torch.tensor([True, False, False, True, True]))
    assert counted(with_image).tolist() == [False, False, True, True, False]


@pytest.mark.parametrize("family", sorted(set(FAMILIES) - {"instructblip_t5"}))
def test_every_family_gives_its_logits_back(family):
    network, rows = FAMILIES[family](), text_rows([8, 5, 8])
    base = record_base(network, rows, 3)
    assert (base.hidden is None) == (family in ("gemma2", "paligemma2")), "which cap their logits"
    with torch.no_grad():
        said, now = base.of(network, range(3)), current_logits(network, rows)
        assert torch.equal(said, now) if base.hidden is not None else kl_divergence(said, now).abs().max() < 1e-6


def test_a_model_that_caps_its_logits_keeps_outcomes_instead():
    network, rows = tiny_paligemma(), text_rows([8, 5])
    network.config.text_config.final_logit_softcapping = 2.0
    with torch.no_grad():
        if torch.equal(network(**text_inputs_of(network, rows)).logits, capped_off(network, rows)):
            pytest.skip("this transformers does not cap the logits of PaliGemma")
    base = record_base(network, rows, 2)
    assert base.hidden is None
    with torch.no_grad():
        assert kl_divergence(base.of(network, [0, 1]), current_logits(network, rows)).abs().max() == 0


def text_inputs_of(network, rows):
    tokens = rows[0].tokens[None]
    return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "token_type_ids": torch.ones_like(tokens)}


def capped_off(network, rows):
    kept, network.config.text_config.final_logit_softcapping = network.config.text_config.final_logit_softcapping, None
    logits = network(**text_inputs_of(network, rows)).logits
    network.config.text_config.final_logit_softcapping = kept
    return logits


def test_a_head_that_trains_is_not_asked_for_what_the_base_said():
    network, rows = tiny_llava(), text_rows([8, 5])
    base = record_base(network, rows, 2, head_is_trained=True)
    said = base.of(network, [1, 0])
    assert base.hidden is None and isinstance(said, TopOutcomes) and len(said.rest) == 4 + 7
    network.get_output_embeddings().weight.data.mul_(3)
    assert all(torch.equal(was, now) for was, now in zip(said, base.of(network, [1, 0]), strict=True))


def test_rows_are_read_together_where_their_images_have_one_shape():
    rows = text_rows([4, 5, 6])
    image = replace(rows[0], image={"pixel_values": torch.zeros(1, 3, 16, 16)})
    other = replace(rows[0], image={"pixel_values": torch.zeros(1, 3, 16, 32)})
    assert list(alike([rows[0], image, rows[1], other, rows[2], image], 2)) == [[0, 2], [4], [1, 5], [3]]


def test_rows_keep_their_own_memory():
    base = record_base(tiny_llava(), text_rows([9, 4]), 2)
    assert all(each.untyped_storage().nbytes() == each.nbytes for each in base.hidden)


def test_encoder_decoders_and_rows_that_say_nothing_are_refused():
    with pytest.raises(DowserError, match=r"encoder-decoder.*Fix"):
        record_base(FAMILIES["instructblip_t5"](), text_rows([4]), 2)
    with pytest.raises(DowserError, match=r"1 rows of which 1 predict no token.*Fix"):
        record_base(tiny_llava(), text_rows([1]), 2)
    with pytest.raises(DowserError, match="0 rows"):
        record_base(tiny_llava(), [], 2)


def test_recording_leaves_the_model_alone():
    network = tiny_llava()
    hooks = len(network.get_output_embeddings()._forward_pre_hooks)
    assert isinstance(record_base(network, text_rows([4]), 2), BaseOutputs)
    assert len(network.get_output_embeddings()._forward_pre_hooks) == hooks
    assert text_model(network) is network
