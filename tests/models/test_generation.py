"""Where answers end, and that nothing of a model's own generation config reaches them unasked."""

import pytest
import torch
from transformers import GenerationConfig, LogitsProcessor

from dowser_pl.models.generation import Ending, greedy_answers, own_ends, write_tokens
from dowser_pl.models.layers import text_model
from tests.tiny_models import (
    EOS,
    FAMILIES,
    VOCABULARY,
    make_processor,
    tiny_instructblip,
    tiny_instructblip_t5,
    tiny_llava,
    tiny_tokenizer,
)
from tests.tiny_sizes import VISION_END, VISION_START

LEFT_BEHIND = [
    {"min_new_tokens": 8},
    {"min_length": 30},
    {"return_dict_in_generate": True, "output_scores": True, "output_logits": True},
    {"repetition_penalty": 5.0},
    {"encoder_repetition_penalty": 5.0},
    {"num_beams": 3, "length_penalty": 4.0},
    {"num_beams": 2, "num_return_sequences": 2},
    {"no_repeat_ngram_size": 1},
    {"bad_words_ids": [[token] for token in range(20, 96)]},
    {"suppress_tokens": list(range(20, 96))},
    {"begin_suppress_tokens": list(range(20, 96))},
    {"forced_bos_token_id": 50},
    {"forced_eos_token_id": 50},
    {"sequence_bias": [[[30], 50.0]]},
    {"exponential_decay_length_penalty": [0, 9.0]},
    {"max_length": 3},
    {"max_time": 1e-9},
    {"stop_strings": ["e"]},
    {"watermarking_config": {"bias": 30.0}},
    {"guidance_scale": 4.0},
    {"cache_implementation": "static"},
    {"use_cache": False},
    {"prompt_lookup_num_tokens": 3},
    {"do_sample": True, "temperature": 9.0, "min_p": 0.1, "typical_p": 0.5},
    {"penalty_alpha": 0.6, "top_k": 4},
    {"renormalize_logits": True, "remove_invalid_values": True},
]


def asked(rows=(("<s> user : what colour is it ?"), ("<s> user : is the dog red ?"))):
    return dict(tiny_tokenizer()(list(rows), return_tensors="pt", add_special_tokens=False))


@pytest.fixture(scope="module")
def model():
    return tiny_llava()


@pytest.mark.parametrize("settings", LEFT_BEHIND, ids=lambda settings: next(iter(settings)))
def test_settings_of_the_model_change_no_answer(model, settings):
    expected = greedy_answers(model, tiny_tokenizer(), asked(), 6)
    own, model.generation_config = model.generation_config, GenerationConfig(eos_token_id=EOS, **settings)
    try:
        assert greedy_answers(model, tiny_tokenizer(), asked(), 6) == expected
        name, value = next(iter(settings.items()))
        assert getattr(model.generation_config, name) is not None, value  # and it has them as before
    finally:
        model.generation_config = own


@pytest.mark.parametrize("build", [tiny_instructblip, tiny_instructblip_t5])
def test_nor_do_those_of_a_language_model_inside(build):
    model = build()
    inputs = {"input_ids": torch.tensor([[4, 4, 4, 4, 1, 20, 21]]), "pixel_values": torch.ones(1, 3, 16, 16)}
    inputs |= {name: torch.ones(1, 3, dtype=torch.int64) for name in ("qformer_input_ids", "qformer_attention_mask")}
    expected = greedy_answers(model, tiny_tokenizer(), inputs, 6)
    for settings in ({"repetition_penalty": 9.0, "min_new_tokens": 6}, {"return_dict_in_generate": True}):
        model.language_model.generation_config.update(**settings)
        assert greedy_answers(model, tiny_tokenizer(), inputs, 6) == expected


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_has_its_end(family):
    assert own_ends(FAMILIES[family](), tiny_tokenizer()) == (EOS,)


def test_all_who_name_an_end_are_heard():
    model, tokenizer = tiny_llava(), tiny_tokenizer()
    model.generation_config.eos_token_id = [VISION_END, 40, -1]  # what a file says is meant, whatever word it is
    model.generation_config._from_model_config = False
    tokenizer.eos_token = "moon"
    assert own_ends(model, tokenizer) == (VISION_END, 40, EOS, VOCABULARY.index("moon"))


@pytest.mark.parametrize("ids", ["</s>", [EOS, None]])
def test_an_end_token_that_is_no_id_is_named(ids):
    model = tiny_llava()
    model.generation_config.eos_token_id = ids
    with pytest.raises(
        ValueError, match=r"generation_config\.json has eos_token_id .*, expected the id .* Fix: correct"
    ):
        own_ends(model, tiny_tokenizer())


@pytest.mark.parametrize("place", ["generation_config", "config", "text_config"])
def test_a_default_that_is_an_ordinary_word_here_ends_nothing(place):
    """The class of a text config says 2, which is a word of many vocabularies."""
    model, tokenizer = tiny_llava(), tiny_tokenizer()
    owner = model.config if place == "config" else model.config.text_config
    owner.eos_token_id = VOCABULARY.index("red")
    if place == "generation_config":  # transformers makes one of the config where a folder has none
        model.generation_config = GenerationConfig(eos_token_id=owner.eos_token_id, _from_model_config=True)
    assert own_ends(model, tokenizer) == (EOS,)
    model.generation_config.eos_token_id = [EOS, VOCABULARY.index("red"), VOCABULARY.index("blue")]  # edited by hand
    expected = (EOS, VOCABULARY.index("blue"))
    assert own_ends(model, tokenizer) == expected
    model.generation_config._from_model_config = False
    assert own_ends(model, tokenizer) == (EOS, VOCABULARY.index("red"), VOCABULARY.index("blue"))


class Forced(LogitsProcessor):
    """Writes given words."""

    def __init__(self, start, *rows):
        self.start, self.rows = start, [tiny_tokenizer().convert_tokens_to_ids(row.split()) for row in rows]

    def __call__(self, input_ids, scores):
        chosen = torch.tensor([row[input_ids.shape[1] - self.start] for row in self.rows])
        return torch.full_like(scores, float("-inf")).scatter_(1, chosen[:, None], 0.0)


@pytest.mark.parametrize(
    ("ending", "said", "steps"),
    [
        (Ending((EOS, VISION_END)), ["red", "blue star"], 3),
        (Ending((VISION_START,)), ["red </s> sky day", "blue star <vision_end> night"], 4),
        (Ending((EOS,), "star <vision_end>"), ["red", "blue"], 3),
        (Ending((), "<vision_end> night"), ["red sky day", "blue star"], 4),
        (Ending(()), ["red sky day", "blue star <vision_end> night"], 4),
    ],
)
def test_answers_stop_at_their_end_and_are_cut_there(model, ending, said, steps):
    tokenizer, inputs = tiny_tokenizer(), asked()
    start = inputs["input_ids"].shape[1]
    forced = Forced(start, "red </s> sky day", "blue star <vision_end> night")
    tokens = write_tokens(model, tokenizer, inputs, 4, ending, forced)[:, start:]
    assert tokens.shape[1] == steps
    expected = [words.replace(" </s>", "") for words in said]  # special tokens are not words
    assert [ending.said(row, tokenizer) for row in tokens] == expected


def test_the_settings_of_the_model_on_request():
    model, tokenizer = tiny_llava(), tiny_tokenizer()
    greedy = greedy_answers(model, tokenizer, asked(), 8)
    model.generation_config.update(bad_words_ids=[tokenizer.convert_tokens_to_ids(greedy[0].split()[:1])])
    model.generation_config.update(return_dict_in_generate=True, output_scores=True, num_return_sequences=1)
    assert greedy_answers(model, tokenizer, asked(), 8) == greedy
    other = greedy_answers(model, tokenizer, asked(), 8, own_settings=True)
    assert len(other) == len(greedy)
    assert greedy[0].split()[0] not in other[0].split()


@pytest.mark.parametrize("several", [True, False])
def test_stop_strings_on_request(several):
    model, tokenizer = tiny_llava(), tiny_tokenizer()
    first, second = greedy_answers(model, tokenizer, asked(), 8)[0].split()[:2]
    model.generation_config.stop_strings = [second, "never"] if several else second
    one = {name: value[:1] for name, value in asked().items()}
    assert greedy_answers(model, tokenizer, one, 8, own_settings=True) == [f"{first} {second}"]


def test_what_is_drawn_on_request_is_the_same_every_time_and_moves_no_random_state():
    model = tiny_llava()
    model.generation_config.update(do_sample=True, temperature=2.0, max_length=3)
    torch.manual_seed(3)
    state = torch.get_rng_state()
    first = greedy_answers(model, tiny_tokenizer(), asked(), 8, own_settings=True)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(4)
    assert greedy_answers(model, tiny_tokenizer(), asked(), 8, own_settings=True) == first
    assert first != greedy_answers(model, tiny_tokenizer(), asked(), 8)


def test_an_encoder_decoder_that_starts_with_its_end_token_says_more():
    """BART and its kind start the decoder with the token that also ends it."""
    model = tiny_instructblip_t5()
    inputs = {"input_ids": torch.tensor([[4, 4, 4, 4, 1, 20, 21]]), "pixel_values": torch.ones(1, 3, 16, 16)}
    inputs |= {name: torch.ones(1, 3, dtype=torch.int64) for name in ("qformer_input_ids", "qformer_attention_mask")}
    model.language_model.generation_config.decoder_start_token_id = EOS
    assert len(greedy_answers(model, tiny_tokenizer(), inputs, 6)[0].split()) > 1


def test_a_processor_without_padding_pads_with_an_end():
    processor = make_processor()
    processor.tokenizer.pad_token = None
    assert len(greedy_answers(tiny_llava(), processor.tokenizer, asked(), 3)) == 2


def test_the_head_is_given_tensors_of_their_own():
    """Of a slice of the prompts' positions a CPU would copy a frozen head for each row of the batch."""
    model, packed = tiny_llava(), []
    head = text_model(model).get_output_embeddings()
    head.register_forward_hook(lambda _, inputs, __: packed.append(inputs[0].is_contiguous()))
    greedy_answers(model, tiny_tokenizer(), asked(), 3)
    assert len(packed) == 3
    assert all(packed)
    assert not head._forward_pre_hooks
