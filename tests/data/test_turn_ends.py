"""What chat templates close an assistant's turn with."""

import pytest
from transformers import T5Tokenizer

from dowser_pl.data.encoders import turn_ends
from tests.data.builders import build_llava, chat_template
from tests.data.test_templates import EOS_AT_THE_END_ONLY, PUBLISHED

TEXT = "{% for p in m['content'] if p['type'] == 'text' %}{{ p['text'] }}{% endfor %}"
START = "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
TEMPLATES = {  # what is set apart in the vocabulary; the template; the tokens and the words that end a turn
    "marked, inside": ([], chat_template(), ["</s>"], ""),
    "marked, outside": ([], chat_template(inside=False), ["</s>"], ""),
    "unmarked": ([], chat_template(generation=False), ["</s>"], ""),
    "its own token": (["<|eot|>"], chat_template(end="<|eot|>"), ["<|eot|>"], ""),
    "its own token, unmarked": (["<|eot|>"], chat_template(False, end="<|eot|>"), ["<|eot|>"], ""),
    "space before and behind": (["<|eot|>"], chat_template(end=" \n<|eot|>\n\n"), ["<|eot|>"], ""),
    "two in a row": (["<|end|>"], chat_template(end="<|end|></s>"), ["<|end|>"], ""),
    "words before a token": (["<|eot|>"], chat_template(end="\nover<|eot|>"), ["<|eot|>"], ""),
    "words": ([], chat_template(end="\n### END"), [], "### END"),
    "a token that the vocabulary lacks": ([], chat_template(end="<|eot|>"), [], "<|eot|>"),
    "nothing": ([], chat_template(end=""), [], ""),
    "white space": ([], chat_template(end="\n\n"), [], ""),
    "the next speaker": (
        ["<|user|>", "<|bot|>"],
        "{% for m in messages %}{{ '<|user|>' if m['role'] == 'user' else '<|bot|>' }}\n" + TEXT + "{% endfor %}",
        ["<|user|>"],
        "",
    ),
    "another one at the very end": (
        ["<|end|>"],
        "{% for m in messages %}" + TEXT + "{{ '</s>' if loop.last else '<|end|>' }}\n{% endfor %}",
        ["</s>", "<|end|>"],
        "",
    ),
    "at the very end only": ([], EOS_AT_THE_END_ONLY, ["</s>"], ""),
    "one question only": (
        ["<|end|>"],
        "{% for m in messages %}{% if loop.index > 2 %}{{ raise_exception('one question') }}{% endif %}"
        + TEXT
        + "<|end|>{% endfor %}",
        ["<|end|>"],
        "",
    ),
    "for text alone": (
        ["<|eot|>"],
        "<s>{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '<|eot|>' }}{% endfor %}",
        ["<|eot|>"],
        "",
    ),
    "prints what it is given": (
        ["<|eot|>"],
        "{% for m in messages %}{{ m['content'] }}<|eot|>{% endfor %}",
        ["<|eot|>"],
        "",
    ),
    "other words": ([], "<s>{% for m in messages %}{{ m['role'] }}: hello</s>{% endfor %}", [], ""),
    "never": ([], "<s>{{ raise_exception('no') }}</s>", [], ""),
    "upper case": ([], "<s>{% for m in messages %}{{ m['content'][0]['text'] | upper }}</s>{% endfor %}", [], ""),
    "chatml": (["<|im_start|>", "<|im_end|>"], PUBLISHED["chatml"][0], ["<|im_end|>"], ""),
    "gemma": (["<start_of_turn>", "<end_of_turn>"], PUBLISHED["gemma"][0], ["<end_of_turn>"], ""),
    "llava 1.5": ([], PUBLISHED["llava 1.5"][0], [], ""),
    "plain": ([], "plain", ["</s>"], ""),
}


@pytest.mark.parametrize(("apart", "template", "tokens", "words"), TEMPLATES.values(), ids=TEMPLATES)
@pytest.mark.parametrize("special", [True, False])
def test_what_closes_a_turn(apart, template, tokens, words, special):
    processor = build_llava()
    processor.tokenizer.add_tokens(apart, special_tokens=special)
    ids = tuple(processor.tokenizer.convert_tokens_to_ids(tokens))
    assert turn_ends(processor, template) == (ids, words)


def test_a_template_of_the_processor_counts_and_none_ends_nothing():
    assert turn_ends(build_llava(chat_template())) == ((build_llava().tokenizer.eos_token_id,), "")
    assert turn_ends(build_llava()) == ((), "")


def test_models_that_take_the_answer_apart_close_it_themselves():
    processor = build_llava(chat_template())
    processor.tokenizer = T5Tokenizer([("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)])
    assert turn_ends(processor) == ((), "")
    assert turn_ends(processor, chat_template()) == ((), "")


def test_a_wrong_path_is_an_error():
    with pytest.raises(ValueError, match="nowhere.jinja"):
        turn_ends(build_llava(), "nowhere.jinja")
