"""Chat templates: which one, and the assistant's characters in its text."""

import pytest

from dowser_pl.data.labels import close_turns
from dowser_pl.data.templates import ChatTemplate
from tests.data.builders import build_llava, chat_template, many_images, one_image

EOS_AT_THE_END_ONLY = (
    "{% for m in messages %}{{ m['role'] + ':' }}{% for p in m['content'] if p['type'] == 'text' %}{{ p['text'] }}"
    "{% endfor %}{% if loop.last %}{{ '</s>' }}{% else %}{{ '\n' }}{% endif %}{% endfor %}"
)


@pytest.mark.parametrize("generation", [True, False])
def test_spans_are_the_assistants_words(generation):
    template = ChatTemplate(build_llava(chat_template(generation)))
    row = many_images()
    text, spans = template.render_spans(row.messages, row.id)
    assert text == template.render(row.messages)
    assert [text[a:b] for a, b in spans] == [" green</s>", " blue red</s>"]


def test_whitespace_control_in_the_tags():
    tight = (
        chat_template()
        .replace("{% generation %}", "{%- generation -%}")
        .replace("endgeneration %}", "endgeneration -%}")
    )
    processor = build_llava(tight)
    row = one_image()
    text, spans = ChatTemplate(processor).render_spans(row.messages, row.id)
    assert text == processor.apply_chat_template(row.messages)
    assert [text[a:b] for a, b in spans] == [" red</s>"]


def test_parts_of_one_turn_are_one_span():
    source = (
        "{% for m in messages %}{% for p in m['content'] if p['type'] == 'text' %}{% if m['role'] == 'assistant' %}"
        "{% generation %}{{ p['text'] }}{% endgeneration %}{% else %}{{ p['text'] }}{% endif %}{% endfor %}{% endfor %}"
    )
    row = one_image()
    row.messages[-1]["content"].append({"type": "text", "text": " or green"})
    text, spans = ChatTemplate(build_llava(), source).render_spans(row.messages, row.id)
    assert [text[a:b] for a, b in spans] == ["red or green"]


def test_a_template_without_the_prefix_property_is_refused():
    template = ChatTemplate(build_llava(EOS_AT_THE_END_ONLY))
    with pytest.raises(ValueError, match=r"many: cannot tell which characters.*generation.*chat_template"):
        template.render_spans(many_images().messages, "many")


def test_a_template_that_marks_nothing_is_refused():
    source = "{% for m in messages if m['role'] == 'tool' %}{% generation %}x{% endgeneration %}{% endfor %}hi"
    with pytest.raises(ValueError, match="row 3: the chat template marks no assistant turn"):
        ChatTemplate(build_llava(), source).render_spans(one_image().messages, "row 3")


def test_where_the_template_comes_from(tmp_path):
    path = tmp_path / "chat.jinja"
    path.write_text("from a file {{ messages | length }}")
    bare = build_llava()
    bare.tokenizer.chat_template = {"default": "of the tokenizer"}
    messages = one_image().messages
    for template, expected in [
        (ChatTemplate(build_llava("own")), "own"),
        (ChatTemplate(build_llava("own"), str(path)), "from a file 2"),
        (ChatTemplate(build_llava("own"), "given {{ messages | length }}"), "given 2"),
        (ChatTemplate(bare), "of the tokenizer"),
        (ChatTemplate(build_llava({"default": "own", "tools": "named"}), "tools"), "named"),
    ]:
        assert template.render(messages) == expected


def test_errors_say_how_to_set_a_template():
    with pytest.raises(ValueError, match=r"LlavaProcessor has no chat template. Set `chat_template`"):
        ChatTemplate(build_llava())
    with pytest.raises(ValueError, match=r"chat_template: expected Jinja text, the path.*nowhere.jinja"):
        ChatTemplate(build_llava(), "nowhere.jinja")


def test_the_plain_template():
    template = ChatTemplate(build_llava(), "plain")
    text, spans = template.render_spans(many_images().messages, "row 1")
    assert text == "be brief\n<image>what?<image>\ngreen</s>and<image>?\nblue red</s>"
    assert [text[a:b] for a, b in spans] == ["green</s>", "blue red</s>"]


def test_a_template_for_plain_strings_is_refused():
    template = ChatTemplate(build_llava(), "{% for m in messages %}{{ m['content'] }}{% endfor %}")
    with pytest.raises(ValueError, match="prints the message parts as Python objects"):
        template.render(one_image().messages)


def test_a_template_that_raises_is_a_clear_error():
    for source in ("{{ raise_exception('no system role') }}", "{% if %}"):
        with pytest.raises(ValueError, match=r"chat template cannot write a conversation of \['user', 'assistant'\]"):
            ChatTemplate(build_llava(), source).render(one_image().messages)


TEXTS = "{% for p in m['content'] %}{% if p['type'] == 'text' %}{{ p['text'] }}{% else %}<image>{% endif %}{% endfor %}"
PUBLISHED = {  # the shapes of published templates, and what their assistants write in `many_images`
    "chatml": (
        "{% for m in messages %}{% if loop.first and m['role'] != 'system' %}<|im_start|>system\nHelp.<|im_end|>\n"
        "{% endif %}<|im_start|>{{ m['role'] }}\n" + TEXTS + "<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
        ["green<|im_end|>", "blue red<|im_end|>"],
    ),
    "llava 1.5": (
        "{% for m in messages %}{{ m['role'].upper() + ': ' }}{% if m['role'] != 'assistant' %}" + TEXTS + "{{ ' ' }}"
        "{% else %}{% for p in m['content'] %}{% generation %}{{ p['text'] + ' ' }}{% endgeneration %}{% endfor %}"
        "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}",
        ["green</s>", "blue red</s>"],
    ),
    "idefics3": (
        "<|im_start|>{% for m in messages %}{{ m['role'] | capitalize }}{% if m['content'][0]['type'] == 'image' %}:"
        "{% else %}{{ ': ' }}{% endif %}" + TEXTS + "<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}",
        [" green<|im_end|>", " blue red<|im_end|>"],
    ),
    "gemma": (
        "<s>{% for m in messages %}{% set role = 'model' if m['role'] == 'assistant' else m['role'] %}"
        "<start_of_turn>{{ role }}\n{% for p in m['content'] %}{% if p['type'] == 'text' %}{{ p['text'] | trim }}"
        "{% endif %}{% endfor %}<end_of_turn>\n{% endfor %}"
        "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}",
        ["green<end_of_turn>", "blue red<end_of_turn>"],
    ),
}


@pytest.mark.parametrize(("source", "said"), PUBLISHED.values(), ids=PUBLISHED)
def test_published_templates(source, said):
    row, processor = many_images(), build_llava()
    text, spans = ChatTemplate(processor, source).render_spans(row.messages, row.id)
    text, spans = close_turns(text, spans, "blue red", "</s>")
    assert [text[a:b] for a, b in spans] == said


def test_openers_are_found_around_words():
    user, assistant, picture = ChatTemplate(build_llava(chat_template())).openers()
    row = one_image()
    words = row.messages[0]["content"][-1]["text"]
    text = ChatTemplate(build_llava(chat_template())).render(row.messages)
    assert text.startswith(picture + words + assistant)
    assert (user, assistant, picture) == ("<s>USER: ", "\nASSISTANT: ", "<s>USER: <image>\n")


def test_templates_that_write_other_words_have_no_openers():
    assert ChatTemplate(build_llava(), "{{ messages[0]['role'] }}").openers() is None
    no_pictures = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] }}{% endfor %}"
    assert ChatTemplate(build_llava(), no_pictures).openers() == ("user: ", "assistant: ", None)
