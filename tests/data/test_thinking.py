"""Chat templates of models that reason leave words out; what is learnt must be what the row says."""

import pytest

from dowser_pl.data import Conversation
from dowser_pl.data.encoders import build_encoder
from tests.data.builders import build_llava, chat_template, one_image, turn

# Reasoning in front of the last answer only, which the question's end opens; as Qwen3's thinking models.
QWEN = (
    "{% set ns = namespace(last=0) %}{% for m in messages %}{% if m['role'] == 'user' %}{% set ns.last = loop.index0 %}"
    "{% endif %}{% endfor %}{% for m in messages %}{% set words %}{% for p in m['content'] if p['type'] == 'text' %}"
    "{{ p['text'] }}{% endfor %}{% endset %}{{ '<|' + m['role'] + '|>' }}{% if m['role'] == 'assistant' %}"
    "{% set reason = '' %}{% set rest = words %}{% if '</think>' in words %}"
    "{% set reason = words.split('</think>')[0].split('<think>')[-1].strip() %}"
    "{% set rest = words.split('</think>')[-1].strip() %}{% endif %}START"
    "{% if loop.index0 > ns.last %}{{ '<think>\n' + reason + '\n</think>\n\n' + rest }}{% else %}{{ rest }}{% endif %}"
    "{{ '</s>' }}STOP{% else %}{{ words }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}OPEN{% endif %}"
)
MARKED = QWEN.replace("START", "{% generation %}").replace("STOP", "{% endgeneration %}")
OPENS, WAITS = "{{ '<think>\n' }}", ""
# No reasoning at all, as DeepSeek's.
DEEPSEEK = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' }}{% for p in m['content'] if p['type'] == 'text' %}"
    "{% if m['role'] == 'assistant' %}{% generation %}{{ p['text'].split('</think>')[-1] + '</s>' }}"
    "{% endgeneration %}{% else %}{{ p['text'] }}{% endif %}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
PLAIN = QWEN.replace("START", "").replace("STOP", "")


def conversation(*answers):
    turns = [part for answer in answers for part in (turn("user", "what?"), turn("assistant", answer))]
    return Conversation("row 7", turns, [])


def learnt(template, row):
    processor = build_llava(template)
    batch, _ = build_encoder(processor).training_batch([row])
    return processor.tokenizer.decode(batch["labels"][0][batch["labels"][0] != -100])


@pytest.mark.parametrize(
    "template", [MARKED.replace("OPEN", OPENS), PLAIN.replace("OPEN", OPENS)], ids=["marks", "none"]
)
@pytest.mark.parametrize("answer", ["red", "<think>as it is</think>red", "<think>\nas it is\n</think>\n\nred"])
def test_one_answer_is_learnt_with_its_reasoning(template, answer):
    found = learnt(template, conversation(answer))
    assert found.endswith("</think>\n\nred</s>")
    assert ("as it is" in found) == ("as it is" in answer)


@pytest.mark.parametrize(
    ("template", "answers"),
    [
        (MARKED.replace("OPEN", WAITS), ("<think>first</think>red", "<think>then</think>blue")),
        (MARKED.replace("OPEN", OPENS), ("<think>first</think>red", "blue")),
        (DEEPSEEK, ("<think>first</think>red",)),
        (DEEPSEEK, ("red", "<think>then</think>blue")),
        (
            chat_template().replace("{{ p['text'] }}{% endfor %}</s>", "{{ p['text'] | upper }}{% endfor %}</s>"),
            ("red",),
        ),
    ],
    ids=["earlier reasoning", "earlier reasoning, opened", "all reasoning", "last reasoning", "other letters"],
)
def test_words_that_a_template_leaves_out_are_missed(template, answers):
    with pytest.raises(
        ValueError, match=r"row 7: the chat template does not write what the assistant says.*Fix: give"
    ) as e:
        learnt(template, conversation(*answers))
    assert ("a model that reasons" in str(e.value)) == ("think" in template)


def test_turns_that_a_template_without_marks_writes_in_two_ways():
    for answers in (("red", "blue"), ("<think>first</think>red", "blue")):
        with pytest.raises(ValueError, match=r"row 7: cannot tell which characters.*one question and one answer"):
            learnt(PLAIN.replace("OPEN", OPENS), conversation(*answers))


def test_an_earlier_answer_that_is_not_learnt_may_lose_its_reasoning():
    row = conversation("<think>first</think>red", "<think>then</think>blue")
    row.messages[1]["loss"] = False
    assert learnt(MARKED.replace("OPEN", OPENS), row) == "<think>\nthen\n</think>\n\nblue</s>"


def test_a_question_that_ends_in_another_way_than_what_is_learnt():
    template = chat_template().replace("{{ 'ASSISTANT:' }}{% endif %}", "{{ 'ASSISTANT: <think>' }}{% endif %}")
    assert template != chat_template()
    with pytest.raises(
        ValueError, match=r"one: the chat template ends a question with .*<think>.*a model that reasons"
    ):
        learnt(template, one_image())


@pytest.mark.parametrize("generation", [True, False])
def test_white_space_is_the_business_of_the_template(generation):
    trims = chat_template(generation).replace(
        "{{ p['text'] }}{% endfor %}</s>", "{{ p['text'] | trim }}{% endfor %}</s>"
    )
    assert learnt(trims, conversation("  red\n or  blue ")).endswith("red\n or  blue</s>")
