"""Likelihoods of given texts, against sums by hand in float64, decoder-only and encoder-decoder."""

import inspect

import numpy as np
import pytest
import torch

from dowser_pl.data import Conversation
from dowser_pl.data.encoders import build_encoder
from dowser_pl.models.likelihood import logits_at, measured_likelihoods, target_likelihoods
from tests.tiny_models import make_processor, tiny_blip2_gpt2, tiny_instructblip_t5, tiny_llava
from tests.tiny_run import pictures, turn


def rows(with_image=True):
    image = pictures(1)[0][1]
    return [
        Conversation(
            "short", [turn("user", "what is it ?", with_image), turn("assistant", "red")], [image] * with_image
        ),
        Conversation(
            "long",
            [turn("user", "how many of this ?", with_image), turn("assistant", "two small big stars on it")],
            [image] * with_image,
        ),
    ]


def by_hand(model, batch, shift):
    """Token by token, in numpy."""
    with torch.no_grad():
        logits = model.double()(
            **{key: each.double() if each.is_floating_point() else each for key, each in batch.items()}
        )
    logits, labels = logits.logits.numpy(), batch["labels"].numpy()
    found = []
    for row in range(len(labels)):
        nats, count = 0.0, 0
        for place in range(shift, labels.shape[1]):
            if labels[row, place] != -100:
                scores = logits[row, place - shift].astype(np.float64)
                largest = scores.max()
                nats += largest + np.log(np.exp(scores - largest).sum()) - scores[labels[row, place]]
                count += 1
        found.append((nats, count))
    return found


@pytest.mark.parametrize("with_image", [True, False])
def test_sums_are_those_by_hand(with_image):
    batch = build_encoder(make_processor()).encode(rows(with_image))
    batch = {key: value for key, value in batch.items() if torch.is_tensor(value)}
    expected = by_hand(tiny_llava(), batch, shift=1)
    with torch.no_grad():
        nats, tokens = target_likelihoods(tiny_llava(), batch)
    assert nats.dtype == torch.float64
    assert nats.tolist() == pytest.approx([each for each, _ in expected], rel=1e-5)
    assert tokens.tolist() == [count for _, count in expected] == [2, 7]  # words, and the end of the turn


def test_an_encoder_decoder_has_no_place_to_shift():
    model = tiny_instructblip_t5()
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(8, 90, (2, 6), generator=generator)
    labels = torch.tensor([[9, 10, 11], [12, 2, -100]])
    ids = torch.cat([torch.full((2, 4), model.config.image_token_index or model.config.image_token_id), ids], 1)
    batch = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "qformer_input_ids": ids[:, -3:],
        "pixel_values": torch.randn(2, 3, 16, 16, generator=generator),
        "labels": labels,
    }
    with torch.no_grad():
        nats, tokens = target_likelihoods(model, batch)
        loss = model(**batch).loss
    assert tokens.tolist() == [3, 2]
    assert float(nats.sum() / 5) == pytest.approx(float(loss), rel=1e-5)


def test_padding_and_the_company_of_other_rows_change_nothing():
    encoder, model = build_encoder(make_processor()), tiny_llava()
    batches = [encoder.encode([row]) for row in rows()]
    with torch.no_grad():
        alone = measured_likelihoods(model, batches)
        together = measured_likelihoods(model, [encoder.encode(rows())])
    assert together[0] == pytest.approx(alone[0], rel=1e-5)
    assert together[1] == alone[1]


def test_logits_are_made_where_there_are_targets_alone():
    """Of a prompt with its picture they would fill the memory: a vocabulary for each token."""
    model = tiny_llava()
    batch = build_encoder(make_processor()).encode(rows())
    widths = []
    model.lm_head.register_forward_hook(lambda _, __, output: widths.append(output.shape[1]))
    with torch.no_grad():
        target_likelihoods(model, batch)
    columns = int((batch["labels"][:, 1:] != -100).any(0).sum())
    assert widths == [columns]
    assert columns < batch["labels"].shape[1] // 2


@pytest.mark.parametrize("build", [tiny_llava, tiny_blip2_gpt2])
def test_and_elsewhere_where_a_model_cannot_leave_them_out(build):
    model = build()
    kept = "logits_to_keep" in inspect.signature(model.forward).parameters
    assert kept == (build is tiny_llava)
    inputs = {"input_ids": torch.arange(20, 30).view(2, 5)}
    if not kept:
        inputs["pixel_values"] = torch.ones(2, 3, 16, 16)
        inputs["input_ids"][:, :2] = model.config.image_token_index
    columns = torch.tensor([1, 4])
    with torch.no_grad():
        torch.testing.assert_close(logits_at(model, inputs, columns), model(**inputs).logits[:, columns])
