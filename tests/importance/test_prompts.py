import pytest
import torch
from transformers import GenerationConfig

from dowser_pl.importance import Probe, write_prompts
from dowser_pl.importance.prompts import noise_images
from dowser_pl.models.generation import Ending
from dowser_pl.models.layers import text_model
from tests.tiny_models import BOS, EOS, IMAGE, make_processor, tiny_instructblip_t5, tiny_llava, tiny_qwen2_5_vl
from tests.tiny_sizes import SPECIAL_TOKENS, VISION_END

SETTINGS = Probe(num_prompts=12, num_tokens=24, batch_size=5, seed=3)


@pytest.fixture(scope="module")
def model():
    model = tiny_llava().eval()
    for parameter in model.parameters():
        if parameter.dim() == 2:
            parameter.data.mul_(6)
    return model


def write(model, settings=SETTINGS, images=None):
    return write_prompts(model, make_processor().tokenizer, settings, range(int(settings.num_prompts)), images)


def test_prompts_start_with_bos_and_a_random_prefix_and_hold_no_special_token(model):
    prompts = write(model)
    assert len(prompts) == 12
    for prompt in prompts:
        tokens = prompt.tokens.tolist()
        assert tokens[0] == BOS
        assert 3 <= len(tokens) <= 24
        assert tokens[-1] == EOS or len(tokens) == 24
        assert not set(tokens[1:-1]) & set(make_processor().tokenizer.all_special_ids)
    assert len({tuple(p.tokens.tolist()) for p in prompts}) == 12


@pytest.mark.parametrize("together", [1, 4, 12])
def test_a_prompt_belongs_to_its_index_not_to_its_batch(model, together, monkeypatch):
    expected = write(model)
    monkeypatch.setattr("dowser_pl.importance.prompts._WRITTEN_TOGETHER", together)
    for first, second in zip(expected, write(model), strict=True):
        assert torch.equal(first.tokens, second.tokens)
    some = write_prompts(model, make_processor().tokenizer, SETTINGS, range(5, 9))
    assert [p.tokens.tolist() for p in some] == [p.tokens.tolist() for p in expected[5:9]]


def test_a_prompt_is_sent_without_the_batch_it_was_written_in(model):
    """Views of one tensor would each travel with all of it."""
    settings = Probe(num_prompts=3, num_tokens=12, batch_size=2, noise_images=True)
    prompts = write(model, settings, lambda indices: noise_images(make_processor(), settings, indices))
    for tensor in (each for prompt in prompts for each in (prompt.tokens, *prompt.image.values())):
        assert tensor.untyped_storage().nbytes() == tensor.nbytes


def test_the_global_random_state_is_neither_used_nor_touched(model):
    torch.manual_seed(1)
    first, state = write(model), torch.get_rng_state()
    torch.manual_seed(2)
    second = write(model)
    assert all(torch.equal(a.tokens, b.tokens) for a, b in zip(first, second, strict=True))
    torch.manual_seed(1)
    assert torch.equal(state, torch.get_rng_state())


def test_another_seed_writes_another_text(model):
    other = write(model, Probe(num_prompts=12, num_tokens=24, seed=4))
    assert not any(torch.equal(a.tokens, b.tokens) for a, b in zip(write(model), other, strict=True))


def test_sampling_follows_the_model_distribution(model):
    """The second token of many prompts, given the same first: frequencies against the softmax."""
    settings = Probe(
        num_prompts=3000, num_tokens=4, min_prefix=1, max_prefix=1, batch_size=500,
        temperature=1.0, top_p=1.0, repetition_penalty=1.0,
    )  # fmt: skip
    prompts = write(model, settings)
    counts = torch.zeros(len(make_processor().tokenizer))
    expected = torch.zeros_like(counts)
    blocked = [i for i in range(len(SPECIAL_TOKENS)) if i != EOS]
    with torch.no_grad():
        logits = model(input_ids=torch.stack([p.tokens[:2] for p in prompts])).logits[:, -1]
    logits[:, blocked] = float("-inf")
    expected = logits.softmax(dim=-1).sum(dim=0)
    counts = torch.bincount(torch.stack([p.tokens[2] for p in prompts]), minlength=len(expected)).float()
    likely = expected > 30
    chi_square = ((counts - expected)[likely] ** 2 / expected[likely]).sum() / likely.sum()
    assert chi_square < 1.6


def test_noise_images_stand_before_the_text(model):
    settings = Probe(num_prompts=3, num_tokens=12, batch_size=2, noise_images=True)
    prompts = write(model, settings, lambda indices: noise_images(make_processor(), settings, indices))
    for prompt in prompts:
        image_tokens = int((prompt.tokens == IMAGE).sum())
        assert image_tokens > 1 and prompt.tokens[0] == BOS
        assert prompt.image["pixel_values"].shape[0] == 1
    assert not torch.equal(prompts[0].image["pixel_values"], prompts[1].image["pixel_values"])


class TestAsTheAuthorsHaveThem:
    """`generate` over embeddings returns new tokens alone, so that their code probes a text without its start."""

    settings = Probe(num_prompts=12, num_tokens=24, batch_size=5, seed=3, form="authors")

    def test_what_was_written_alone(self, model):
        for whole, written in zip(write(model), write(model, self.settings), strict=True):
            start = len(whole.tokens) - len(written.tokens)
            assert 2 <= start <= 6 and len(written.tokens) >= 1  # BOS and one to five tokens
            assert torch.equal(whole.tokens[start:], written.tokens)

    def test_token_1_begins_where_there_is_no_bos(self, model):
        tokenizer = make_processor().tokenizer
        assert tokenizer.bos_token_id == 1
        tokenizer.bos_token = None
        without = write_prompts(model, tokenizer, self.settings, range(12))
        expected = write(model, self.settings)
        assert all(torch.equal(a.tokens, b.tokens) for a, b in zip(expected, without, strict=True))

    def test_an_image_is_put_before_a_text_that_was_written_without_it(self, model):
        prompts = write(model, self.settings, lambda indices: noise_images(make_processor(), self.settings, indices))
        for prompt, text in zip(prompts, write(model, self.settings), strict=True):
            assert prompt.tokens.tolist() == [IMAGE] * 4 + text.tokens.tolist()
            assert prompt.image.keys() == {"pixel_values"}
        noise = torch.cat([prompt.image["pixel_values"] for prompt in prompts])
        assert noise.shape == (12, 3, 16, 16) and len(noise.unique()) > 9000
        assert abs(float(noise.mean())) < 0.03 and abs(float(noise.std()) - 1) < 0.03  # 9,216 draws

    def test_only_prompts_of_decoders(self):
        with pytest.raises(ValueError, match="probe.form is paper or authors, and of prompts alone, got authors with"):
            Probe(form="authors", inputs="rows")
        with pytest.raises(ValueError, match="probe.form is paper or authors.*got theirs"):
            Probe(form="theirs")
        model = text_model(tiny_instructblip_t5())
        with pytest.raises(ValueError, match="probe.form authors is of models that go on with a text"):
            write_prompts(model, make_processor().tokenizer, self.settings, range(2))

    def test_files_measured_with_the_papers_form_stay_valid(self):
        assert "form" not in Probe().identity() and self.settings.identity()["form"] == "authors"


def test_models_without_bos_start_with_a_random_word():
    tokenizer = make_processor().tokenizer
    tokenizer.bos_token = None
    model = tiny_qwen2_5_vl().eval()
    prompts = write_prompts(model, tokenizer, SETTINGS, range(12))
    assert all(int(p.tokens[0]) >= len(SPECIAL_TOKENS) for p in prompts)
    assert max(len(p.tokens) for p in prompts) <= 24


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_prompts": 0}, "num_prompts must be at least 1"),
        ({"min_prefix": 4, "max_prefix": 3}, "max_prefix"),
        ({"num_tokens": 6}, "num_tokens must leave room"),
        ({"temperature": 0.0}, "temperature"),
        ({"top_p": 1.1}, "top_p"),
        ({"target_overlap": 1.0}, "target_overlap"),
        ({"positions": "first"}, "positions is last or all"),
        ({"num_prompts": "many"}, "num_prompts must be at least 1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        Probe(**change)


def test_the_models_own_generation_settings_change_no_prompt(model):
    """They would ban or force tokens beside the sampling that is asked for."""
    expected = write(model)
    own = model.generation_config
    model.generation_config = GenerationConfig(no_repeat_ngram_size=1, min_new_tokens=20, suppress_tokens=[20, 21])
    try:
        again = write(model)
        assert model.generation_config.no_repeat_ngram_size == 1
    finally:
        model.generation_config = own
    assert [p.tokens.tolist() for p in again] == [p.tokens.tolist() for p in expected]


@pytest.mark.parametrize("ending", [Ending((EOS, VISION_END)), Ending((30, 31, 32)), Ending((), "moon")])
def test_a_prompt_ends_where_an_answer_would(model, ending):
    tokenizer = make_processor().tokenizer
    prompts = write_prompts(model, tokenizer, Probe(num_tokens=40, max_prefix=1), range(40), ending=ending)
    written = [prompt.tokens[2:] for prompt in prompts]
    done = [len(tokens) for tokens in written if len(tokens) < 38]
    assert done
    for tokens in written:
        assert ending.length(tokens, tokenizer) == len(tokens)
        assert not torch.isin(tokens[:-1], torch.tensor(ending.ids)).any()
    assert any(int(tokens[-1]) in ending.ids or tokenizer.decode(tokens).endswith("moon") for tokens in written)


def test_what_the_model_itself_ends_with_may_be_written(model):
    """An end that the tokenizer does not know: some model's turns end with a token of their own."""
    tokenizer = make_processor().tokenizer
    tokenizer.add_special_tokens({"extra_special_tokens": ["<vision_end>"]})
    own, model.generation_config = model.generation_config, GenerationConfig(eos_token_id=[VISION_END])
    try:
        prompts = write_prompts(model, tokenizer, Probe(num_tokens=40), range(40))
    finally:
        model.generation_config = own
    ends = {int(prompt.tokens[-1]) for prompt in prompts if len(prompt.tokens) < 40}
    assert VISION_END in ends
    assert ends <= {VISION_END, EOS}
