"""Words that look like control tokens are read as words, whatever the tokenizer is made of."""

import json
import pickle
import warnings

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import InstructBlipProcessor, PaliGemmaProcessor, PreTrainedTokenizerFast
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from dowser_pl.data import Conversation, ConversationData, Question, TaskFile
from dowser_pl.data.encoders import DecoderEncoder, build_encoder
from dowser_pl.data.literal import LiteralWords, renamed
from dowser_pl.data.templates import ChatTemplate
from tests.data.builders import IMAGE, build_llava, build_tokenizer, chat_template, one_image, picture, turn
from tests.data.test_families import FAMILIES, SIZE

WORDS = ["USER: what is it?\nASSISTANT: red", " the </s> tag <image> of [SEP] svg <s> and <unk> ends", "</s>", "s>"]
TEXT = ["<pad>", "<s>", "</s>", "<unk>", "<image>"]


def finished(tokenizer, special=TEXT):
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    bos = tokenizer.token_to_id("<s>")
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", "<s> $A $B", [("<s>", bos)])
    return tokenizer


def trained(model, trainer, pre=None, normalizer=None, decoder=None):
    tokenizer = Tokenizer(model)
    for name, part in {"normalizer": normalizer, "pre_tokenizer": pre, "decoder": decoder}.items():
        if part is not None:
            setattr(tokenizer, name, part)
    tokenizer.train_from_iterator(WORDS * 20, trainer)
    return tokenizer


def byte_level():
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    pre = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return trained(models.BPE(), bpe, pre, None, decoders.ByteLevel())


def whole_words_first():
    """As Llama-3: a word that is in the vocabulary is a token, whatever the merges say."""
    parts = json.loads(byte_level().to_str())
    parts["model"]["ignore_merges"] = True
    parts["model"]["vocab"] |= {token: len(parts["model"]["vocab"]) + i for i, token in enumerate(["</s>", "<s>"])}
    parts["pre_tokenizer"]["use_regex"] = False
    return finished(Tokenizer.from_str(json.dumps(parts)))


def like_llama(scheme):
    """Byte-pair pieces of SentencePiece: control tokens in the vocabulary, and merges that lead to them."""
    bpe = trainers.BpeTrainer(vocab_size=150, show_progress=False, special_tokens=["<unk>"])
    spaces = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    pre = scheme and pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    decoder = decoders.Metaspace()
    parts = json.loads(trained(models.BPE(unk_token="<unk>"), bpe, pre, None if pre else spaces, decoder).to_str())
    vocab, merges = parts["model"]["vocab"], parts["model"]["merges"]
    for piece in ("</", "s>", "</s>", "<s>", "<pad>", "<image>"):
        vocab.setdefault(piece, len(vocab))
    merges[:0] = [["<", "/"], ["s", ">"], ["</", "s>"], ["<", "s>"]]
    parts["model"]["merges"] = [pair for i, pair in enumerate(merges) if pair not in merges[:i]]
    return finished(Tokenizer.from_str(json.dumps(parts)))


def like_t5():
    trainer = trainers.UnigramTrainer(vocab_size=120, show_progress=False, special_tokens=TEXT, unk_token="<unk>")
    pre = pre_tokenizers.Metaspace()
    return finished(trained(models.Unigram(), trainer, pre, normalizers.NFKC(), decoders.Metaspace()))


def like_bert():
    trainer = trainers.WordPieceTrainer(vocab_size=200, show_progress=False, special_tokens=[*TEXT, "[SEP]"])
    model, pre = models.WordPiece(unk_token="<unk>"), pre_tokenizers.BertPreTokenizer()
    words = trained(model, trainer, pre, normalizers.BertNormalizer(), decoders.WordPiece())
    return finished(words, [*TEXT, "[SEP]"])


def by_words():
    trainer = trainers.WordLevelTrainer(show_progress=False, special_tokens=TEXT)
    return finished(trained(models.WordLevel(unk_token="<unk>"), trainer, pre_tokenizers.WhitespaceSplit()))


KINDS = {
    "byte level": lambda: finished(byte_level()),
    "whole words": whole_words_first,
    "llama": lambda: like_llama(None),
    "metaspace": lambda: like_llama("first"),
    "metaspace always": lambda: like_llama("always"),
    "unigram": like_t5,
    "word pieces": like_bert,
    "words": by_words,
}


def fast(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    special = [token.content for token in tokenizer.get_added_tokens_decoder().values()]
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        extra_special_tokens=[token for token in special if token not in TEXT[:4]],
    )


def llava(tokenizer, template=None):
    processor = build_llava(template or chat_template())
    processor.tokenizer = tokenizer
    processor.image_token_id = tokenizer.convert_tokens_to_ids("<image>")
    return processor


def quietly(encode, *args):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return encode(*args)


def said(answer, question="what is it?"):
    return Conversation("r", [turn("user", IMAGE, question), turn("assistant", answer)], [picture()])


@pytest.mark.parametrize("kind", KINDS)
def test_no_word_becomes_a_control_token(kind):
    tokenizer = fast(KINDS[kind]())
    encoder = build_encoder(llava(tokenizer))
    controls = [tokenizer.convert_tokens_to_ids(token) for token in ("<s>", "</s>", "<image>", "<pad>")]

    def count(row):
        batch, _ = quietly(encoder.training_batch, [row])
        ids, labels = batch["input_ids"][0], batch["labels"][0]
        return [[(found == control).sum().item() for control in controls] for found in (ids, labels)]

    plain = count(said("red"))
    assert plain[0][:3] == [1, 1, 4]
    assert plain[1] == [0, 1, 0, 0]
    for token in ("<s>", "</s>", "<image>", "<pad>", "<unk>"):
        assert count(said(f"the {token} tag")) == plain
        assert count(said(token)) == plain
        assert count(said(f"red{token}")) == plain
        assert count(said("red", f"what is {token}{token} it?")) == plain


@pytest.mark.parametrize("kind", ["byte level", "whole words", "llama", "metaspace", "metaspace always"])
def test_the_words_are_split_as_ordinary_text_is(kind):
    """The oracle: the text between two control tokens, read by a tokenizer that has no control tokens."""
    tokenizer = fast(KINDS[kind]())
    template = (
        "{% for m in messages %}<s>{% generation %}{{ m.content[0].text }}{% endgeneration %}{% endfor %}"
        "{{ '</s>' if not add_generation_prompt }}"
    )
    words = "use the </s> tag of <image> and <s> svg"
    row = Conversation("r", [turn("user", "what is it?"), turn("assistant", words)])
    batch, _ = quietly(build_encoder(llava(tokenizer, template)).training_batch, [row])
    parts = json.loads(tokenizer.backend_tokenizer.to_str())
    parts["added_tokens"] = []
    model = parts["model"]
    model["vocab"] = {f"no word{i}" if piece in TEXT else piece: i for piece, i in model["vocab"].items()}
    model["merges"] = [pair for pair in model["merges"] if "".join(pair) not in TEXT]
    model["unk_token"] = None
    expected = Tokenizer.from_str(json.dumps(parts)).encode(words, add_special_tokens=False).ids
    found = batch["input_ids"][0].tolist()
    eos, bos = tokenizer.eos_token_id, tokenizer.bos_token_id
    last = len(found) - 1 - found[::-1].index(bos)
    assert found[-1] == eos
    if kind == "metaspace":  # a space is put before the first word of a text, and this is not the first
        expected = expected[1:] if expected[0] == tokenizer.convert_tokens_to_ids("\u2581") else expected
        assert tokenizer.decode(found[last + 1 : -1]).strip() == words
    else:
        assert found[last + 1 : -1] == expected


@pytest.mark.parametrize("kind", KINDS)
def test_other_rows_of_the_batch_are_read_as_ever(kind):
    encoder = build_encoder(llava(fast(KINDS[kind]())))
    alone, _ = encoder.training_batch([said("red")])
    both, _ = quietly(encoder.training_batch, [said("red"), said("the </s> tag")])
    length = alone["input_ids"].shape[1]
    for key in ("input_ids", "attention_mask", "labels"):
        assert both[key][0, :length].equal(alone[key][0])
    assert not both["attention_mask"][0, length:].any()
    again, _ = encoder.training_batch([said("red")])
    assert all(again[key].equal(alone[key]) for key in ("input_ids", "attention_mask", "labels"))


def test_labels_are_on_the_same_characters():
    encoder = build_encoder(build_llava(chat_template()))
    row = said("use </s> and <image>, not <s>.", "what is </s> here?")
    batch, _ = quietly(encoder.training_batch, [row])
    learnt = encoder.tokenizer.decode(batch["labels"][0][batch["labels"][0] != -100])
    assert learnt.endswith(" use </s> and <image>, not <s>.</s>")
    assert "what" not in learnt
    whole = encoder.tokenizer.decode(batch["input_ids"][0])
    assert (
        whole == "<s>USER: " + "<image>" * 4 + "\nwhat is </s> here?\nASSISTANT: use </s> and <image>, not <s>.</s>\n"
    )


@pytest.mark.parametrize("template", [chat_template(), chat_template(False), chat_template(False, end=""), "plain"])
def test_an_answer_that_ends_with_the_words_of_an_end_token(template):
    encoder = build_encoder(build_llava(), template)
    eos = encoder.tokenizer.eos_token_id
    plain, _ = encoder.training_batch([said("red")])
    batch, _ = quietly(encoder.training_batch, [said("red</s>")])
    assert (batch["labels"] == eos).sum() == (plain["labels"] == eos).sum() == 1


@pytest.mark.parametrize("build", FAMILIES)
@pytest.mark.parametrize("token", ["</s>", "<image>", "<|image_pad|>", "<|video_pad|>", "<fake_token_around_image>"])
def test_families(build, token):
    encoder = build_encoder(build(chat_template()))
    tokenizer = encoder.tokenizer
    number = tokenizer.convert_tokens_to_ids(token)
    plain, _ = encoder.training_batch([one_image()])
    row = one_image()
    row.messages[1]["content"][0]["text"] = f"the {token} tag"
    batch, _ = quietly(encoder.training_batch, [row])
    assert (batch["input_ids"] == number).sum() == (plain["input_ids"] == number).sum()
    assert f"the {token} tag" in tokenizer.decode(batch["labels"][batch["labels"] != -100])
    question = Question(
        "q", [row.messages[0], turn("assistant", f"so {token}"), turn("user", "and?")], row.images, ["a"]
    )
    ids = quietly(encoder.evaluation_batch, [question])["inputs"]["input_ids"]
    assert f" so {token}" in tokenizer.decode(ids[0])
    assert (ids == number).sum() == (plain["input_ids"] == number).sum() - (plain["labels"] == number).sum() + (
        token == "</s>"
    )


def test_paligemma():
    images = SiglipImageProcessorPil(size=SIZE)
    images.image_seq_length = 4
    encoder = build_encoder(PaliGemmaProcessor(images, build_tokenizer()))
    batch, _ = quietly(encoder.training_batch, [said("the </s> tag", "is <image> it?"), one_image()])
    decode = encoder.tokenizer.decode
    whole = decode(batch["input_ids"][0][batch["attention_mask"][0] == 1])
    assert whole == "<image>" * 4 + "<s>is <image> it?\nthe </s> tag</s>"
    assert decode(batch["labels"][0][batch["labels"][0] != -100]) == "the </s> tag</s>"
    assert (batch["input_ids"][0] == encoder.tokenizer.eos_token_id).sum() == 1
    assert (batch["input_ids"][0] == encoder.tokenizer.convert_tokens_to_ids("<image>")).sum() == 4


def test_the_qformer_reads_words_too():
    qformer = fast(like_bert())
    processor = InstructBlipProcessor(BlipImageProcessorPil(size=SIZE), build_tokenizer(), qformer, num_query_tokens=4)
    encoder = build_encoder(processor, chat_template(generation=False, image=""))
    batch, _ = quietly(encoder.training_batch, [said("red", "the [SEP] and </s> tag")])
    assert qformer.convert_tokens_to_ids("[SEP]") not in batch["qformer_input_ids"]
    assert qformer.convert_tokens_to_ids("</s>") not in batch["qformer_input_ids"]
    assert "the [SEP] and </s> tag" in processor.tokenizer.decode(batch["input_ids"][0])


def test_decoders_read_words_too():
    processor = build_llava()
    template = ChatTemplate(processor, "{% for m in messages %}{{ m.content[0].text }}{% endfor %}")
    encoder = DecoderEncoder(processor, template, max_length=None)
    row = Conversation("r", [turn("user", "what?"), turn("assistant", "the </s> tag")])
    batch, _ = quietly(encoder.training_batch, [row])
    assert processor.tokenizer.decode(batch["labels"][0]) == "the </s> tag"
    assert processor.tokenizer.eos_token_id not in batch["labels"]


def test_it_is_said_once():
    encoder = build_encoder(build_llava(chat_template()))
    with pytest.warns(UserWarning, match=r"^r: its words have '</s>', which is a control token.*plain text") as caught:
        for _ in range(2):
            encoder.training_batch([said("the </s> tag")])
    assert len(caught) == 1


def test_tokens_that_models_write_are_left_alone():
    tokenizer = build_tokenizer()
    tokenizer.add_tokens(["<think>"])
    encoder = build_encoder(llava(tokenizer))
    batch, _ = encoder.training_batch([said("<think> hm")])
    assert tokenizer.convert_tokens_to_ids("<think>") in batch["labels"]
    batch, _ = quietly(encoder.training_batch, [said("<think> </s>")])
    assert tokenizer.convert_tokens_to_ids("<think>") in batch["labels"]


def test_a_question_with_the_models_own_placeholder():
    encoder = build_encoder(FAMILIES[3](chat_template()))
    for token in ("<|image_pad|>", "<|video_pad|>"):
        with pytest.raises(
            ValueError, match=r"r: the turn of the user has '<\|.*pad\|>', this model's own placeholder"
        ):
            encoder.training_batch([said("red", f"what is in {token} ?")])
        with pytest.raises(ValueError, match="r: the turn of the user has"):
            encoder.evaluation_batch([Question("r", [turn("user", token)], [], ["a"])])


def test_two_parts_that_make_a_token():
    row = Conversation("r", [turn("user", "what?"), turn("assistant", "a <", "/s> b")])
    with pytest.raises(ValueError, match="r: two parts of a turn make a control token where they meet"):
        build_encoder(build_llava(chat_template())).training_batch([row])


def test_noncharacters_are_refused():
    with pytest.raises(ValueError, match="r: its text has one of the noncharacters"):
        build_encoder(build_llava(chat_template())).training_batch([said("a \ufdd0 b")])


def test_a_tokenizer_that_cannot_be_copied():
    tokenizer = build_tokenizer()
    tokenizer.backend_tokenizer.add_special_tokens([AddedToken("<alone>", single_word=True, special=True)])
    encoder = build_encoder(llava(tokenizer))
    encoder.training_batch([said("red")])
    with pytest.raises(ValueError, match="r: its words have '</s>'.*cannot be made to read it as words: '<alone>' is"):
        encoder.training_batch([said("the </s> tag")])


@pytest.mark.parametrize("kind", KINDS)
def test_the_copy_has_the_old_numbers(kind):
    tokenizer = KINDS[kind]()
    copied = renamed(tokenizer, {"</s>": "\ufdd1ab\ufdd2"})
    assert copied.get_vocab_size() == tokenizer.get_vocab_size()
    assert copied.token_to_id("\ufdd1ab\ufdd2") == tokenizer.token_to_id("</s>")
    assert copied.encode("the red <s> it").ids == tokenizer.encode("the red <s> it").ids
    assert "</s>" not in copied.get_vocab()


def test_workers_that_share_no_memory():
    encoder = build_encoder(build_llava(chat_template()))
    batch, _ = quietly(encoder.training_batch, [said("the </s> tag")])
    again, _ = quietly(pickle.loads(pickle.dumps(encoder)).training_batch, [said("the </s> tag")])
    assert again["input_ids"].equal(batch["input_ids"])


def test_padding_and_truncation_are_those_of_the_call():
    processor = build_llava()
    words = LiteralWords(processor)
    texts = [
        part["content"][0]["text"] for part in quietly(words.hide, "r", [turn("user", "a </s> b"), turn("user", "a")])
    ]
    tokenizer = words.processor_for(*texts).tokenizer
    whole = tokenizer(texts)["input_ids"]
    assert tokenizer(texts, padding=True, padding_side="left")["input_ids"][1] == [
        *[processor.tokenizer.pad_token_id] * (len(whole[0]) - len(whole[1])),
        *whole[1],
    ]
    assert tokenizer(texts, truncation=True, max_length=3)["input_ids"][0] == whole[0][:3]
    assert tokenizer(texts)["input_ids"] == whole


def test_from_a_file(tmp_path):
    picture().save(tmp_path / "a.png")
    turns = [{"from": "human", "value": "<image>\nwhich tag?"}, {"from": "gpt", "value": "It is <image>, then </s>."}]
    (tmp_path / "train.json").write_text(json.dumps([{"image": "a.png", "conversations": turns}]))
    (tmp_path / "t.json").write_text(json.dumps([{"question": "what is </s> ?", "answer": "a </s> tag"}]))
    task = TaskFile("t", str(tmp_path / "t.json"), "downstream")
    data = ConversationData(str(tmp_path / "train.json"), tasks=[task])
    data.processor = build_llava(chat_template())
    data.setup("fit")
    (batch,) = quietly(list, data.train_dataloader())
    decode = data.processor.tokenizer.decode
    assert (batch["input_ids"] == data.processor.image_token_id).sum() == 4
    assert decode(batch["labels"][batch["labels"] != -100]).endswith("It is <image>, then </s>.</s>")
    (asked,) = quietly(list, data.val_dataloader()[0])
    assert asked["references"] == [["a </s> tag"]]
    assert (asked["inputs"]["input_ids"] == data.processor.tokenizer.eos_token_id).sum() == 0
    assert "what is </s> ?" in decode(asked["inputs"]["input_ids"][0])


def test_rows_may_write_the_control_tokens_that_are_listed():
    tokenizer = fast(byte_level_with("<box>"))
    box, end = tokenizer.convert_tokens_to_ids(["<box>", "</s>"])

    def ids(**options):
        encoder = build_encoder(llava(tokenizer), **options)
        return quietly(encoder.training_batch, [said("<box> the </s> tag")])[0]["input_ids"][0].tolist()

    assert ids().count(box) == 0
    assert (ids(control_tokens=["<box>"]).count(box), ids(control_tokens=["<box>"]).count(end)) == (1, 1)


@pytest.mark.parametrize("token", ["<image>", "<boxes>"])
def test_what_may_not_be_written_is_refused(token):
    with pytest.raises(ValueError, match=f"control_tokens has '{token}', expected some of this model's"):
        build_encoder(llava(fast(finished(byte_level()))), control_tokens=[token])


def test_the_listed_tokens_are_an_option(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a <unk> b"}]}\n' * 3)
    data = ConversationData(str(path), holdout=0, control_tokens=["<unk>"], num_workers=0)
    data.processor = llava(fast(finished(byte_level())))
    data.setup("fit")
    unknown = data.processor.tokenizer.unk_token_id
    assert unknown in quietly(lambda: next(iter(data.train_dataloader())))["input_ids"][0].tolist()


def byte_level_with(token):
    return finished(byte_level(), [*TEXT, token])
