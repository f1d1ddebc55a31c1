import json

import pytest
import torch
from PIL import Image

from dowser_pl.data.templates import ChatTemplate
from dowser_pl.importance import Openers, Rows, Writers
from dowser_pl.importance.prompts import plain_text
from dowser_pl.importance.writing import RowWriter
from dowser_pl.models.generation import Ending, own_ends
from dowser_pl.models.layers import text_model
from tests.tiny_models import BOS, EOS, IMAGE, make_processor, tiny_instructblip, tiny_instructblip_t5, tiny_llava

ALL = ("text", "chat", "turn", "noise", "blank", "train", "shuffle", "mosaic")
PROCESSOR = make_processor()
OPENERS = Openers(*ChatTemplate(PROCESSOR).openers())
PICTURES = [Image.new("RGB", (20 + 9 * n, 31), (n * 60, 90, 200 - n * 30)) for n in range(4)]


@pytest.fixture(scope="module")
def model():
    return tiny_llava().eval()


def writers(model, openers=OPENERS, pictures=PICTURES, processor=PROCESSOR, **settings):
    rows = Rows(**{"sources": list(ALL), "per_source": 6, "num_tokens": 10, "held_out": 0.2, **settings})
    tokenizer = getattr(processor, "tokenizer", processor)
    ending = Ending(own_ends(model, tokenizer))
    writer = RowWriter(model, processor, rows.temperature, rows.batch_size, plain_text, ending)
    return Writers(writer, rows, openers, pictures)


def write(model, openers=OPENERS, pictures=PICTURES, **settings):
    """Source -> all its rows."""
    made = writers(model, openers, pictures, **settings)
    return {source: made.write(source, range(made.settings.per_source)) for source in made.sources()}


def flat(bank):
    return {
        (source, row.number): (row.tokens.tolist(), row.image.get("pixel_values", torch.empty(0)).tolist())
        for source, rows in bank.items()
        for row in rows
    }


@pytest.fixture(scope="module")
def bank(model):
    return write(model)


@pytest.mark.parametrize("source", ALL)
def test_rows_say_what_they_were_written_after(bank, source):
    assert 0 < len(bank[source]) <= 6
    for row in bank[source]:
        assert row.kind == source and row.tokens[0] == BOS
        assert torch.equal(row.is_text, row.tokens != IMAGE)
        assert int((row.tokens == IMAGE).sum()) == (0 if source in ("text", "chat", "turn") else 4)
        assert bool(row.image) == (source not in ("text", "chat", "turn"))
        assert not set(row.tokens[1:-1].tolist()) & set(range(IMAGE))
        assert row.tokens.untyped_storage().nbytes() == row.tokens.nbytes
    assert len({(tuple(r.tokens.tolist()), str(r.image)) for r in bank[source]}) == len(bank[source])


def test_rows_start_with_the_template(bank):
    said = {source: [PROCESSOR.tokenizer.decode(row.tokens) for row in bank[source]] for source in ALL}
    assert all(text.startswith("<s> user : ") for text in said["chat"] + said["turn"])
    assert all(text.startswith("<s> user : " + "<image> " * 4) for text in said["mosaic"])
    for row in bank["turn"]:
        words = PROCESSOR.tokenizer.decode(row.tokens).split()
        answer = words.index("assistant", 3) if words[3] != "assistant" else words.index("assistant", 4)
        assert len(row.tokens) <= 3 + 14 + 2 + 10 and answer > 3


@pytest.mark.parametrize("together", [1, 3])
def test_a_row_belongs_to_its_number_not_to_its_batch(model, bank, together, monkeypatch):
    monkeypatch.setattr("dowser_pl.importance.writing._TOGETHER", together)
    again = write(model, sources=list(reversed(ALL)), batch_size=together)
    assert flat(again) == flat(bank)


def test_another_seed_writes_other_rows(model, bank):
    other = flat(write(model, seed=1))
    assert not any(other[key] == row for key, row in flat(bank).items() if key in other)


def test_a_tenth_is_held_out_and_the_same_whatever_the_count():
    few, many = Rows(per_source=20), Rows(per_source=30)
    assert len(few.numbers(held_out=True)) == 2 and len(many.numbers(held_out=True)) == 3
    for held_out in (True, False):
        assert many.numbers(held_out)[: len(few.numbers(held_out))] == few.numbers(held_out)
    assert sorted(few.numbers(True) + few.numbers(False)) == list(range(20))


def test_rows_do_not_know_which_others_are_written(model, bank):
    made = writers(model)
    for source in ("text", "turn", "shuffle"):
        some = {row.number: row.tokens.tolist() for row in made.write(source, [1, 4])}
        assert some == {row.number: row.tokens.tolist() for row in bank[source] if row.number in (1, 4)}


@pytest.mark.parametrize("source", ALL)
def test_a_row_is_made_again_of_its_tokens(model, bank, source):
    for row in bank[source]:
        again = writers(model).remade(row.kind, row.number, row.tokens)
        assert torch.equal(again.tokens, row.tokens) and torch.equal(again.is_text, row.is_text)
        assert again.image.keys() == row.image.keys()
        assert all(torch.equal(again.image[name], value) for name, value in row.image.items())


def test_degenerate_rows_are_written_again_and_then_behind_a_user_part(model, monkeypatch):
    """The filter refuses everything with fewer tokens than a user part makes."""
    seen = []
    monkeypatch.setattr(
        "dowser_pl.importance.rows.is_degenerate", lambda tokens: seen.append(len(tokens)) or len(seen) <= 6
    )
    bank = write(model, sources=["noise"], per_source=3, num_tokens=5, held_out=0.4)
    assert len(seen) == 9 and len(bank["noise"]) == 3
    assert all("assistant :" in PROCESSOR.tokenizer.decode(row.tokens) for row in bank["noise"])


def test_rows_that_stay_degenerate_are_missing(model, monkeypatch):
    monkeypatch.setattr("dowser_pl.importance.rows.is_degenerate", lambda tokens: True)
    assert write(model, sources=["blank", "text"], num_tokens=5) == {"blank": [], "text": []}


def test_a_user_part_ends_where_the_model_lets_the_assistant_speak(model, monkeypatch):
    answer = PROCESSOR.tokenizer(OPENERS.assistant, add_special_tokens=False)["input_ids"]
    words = torch.tensor([20, 21, 22, *answer, 23, 24, 25, 26])
    monkeypatch.setattr(RowWriter, "write", lambda self, starts, streams, num: [words] * len(starts))
    for row in writers(model).write("turn", range(3)):
        assert row.tokens[3 : 6 + len(answer)].tolist() == [20, 21, 22, *answer]


def test_sampling_follows_the_model_distribution(model):
    """First written token after the user's opener, against the softmax of an independent forward."""
    bank = write(model, sources=["chat"], per_source=2000, num_tokens=1)
    start = torch.tensor([[BOS, *PROCESSOR.tokenizer("user :")["input_ids"]]])
    with torch.no_grad():
        logits = model(input_ids=start).logits[0, -1].double()
    logits[: IMAGE + 1] = float("-inf")  # an end at once is written again
    tokens = [int(row.tokens[3]) for row in bank["chat"]]
    expected = logits.softmax(0) * len(tokens)
    counts = torch.bincount(torch.tensor(tokens), minlength=len(expected)).double()
    likely = expected > 30
    assert EOS not in tokens and int(likely.sum()) > 3
    assert ((counts - expected)[likely] ** 2 / expected[likely]).sum() / likely.sum() < 2


def test_the_global_random_state_is_neither_used_nor_touched(model, bank):
    torch.manual_seed(5)
    state = torch.get_rng_state()
    again = write(model)
    assert flat(again) == flat(bank) and torch.equal(state, torch.get_rng_state())


def test_without_a_template_pictures_stand_at_the_start(model):
    row = write(model, None, sources=["noise"], num_tokens=6)["noise"][0]
    assert row.tokens[:6].tolist() == [BOS, *[IMAGE] * 4, int(row.tokens[5])]


@pytest.mark.parametrize(
    ("source", "openers", "pictures", "message"),
    [("chat", None, PICTURES, "'chat' need a chat template"), ("train", OPENERS, [], "'train' need training pictures")],
)
def test_sources_that_lack_something_are_refused(model, source, openers, pictures, message):
    with pytest.raises(ValueError, match=message):
        writers(model, openers, pictures, sources=[source]).sources()


def test_auto_takes_what_there_is(model):
    every = [source for source in ALL if source != "blank"]
    assert writers(model, sources="auto").sources() == every
    assert writers(model, None, [], sources="auto").sources() == ["text", "noise"]
    assert writers(model, processor=PROCESSOR.tokenizer, sources="auto").sources() == ["text", "chat", "turn"]


def test_encoder_decoders_and_processors_without_pictures_are_refused(model):
    with pytest.raises(ValueError, match="decoders alone"):
        writers(text_model(tiny_instructblip_t5()), sources=["text"]).sources()
    with pytest.raises(ValueError, match="'noise' need a processor that places pictures"):
        writers(model, processor=PROCESSOR.tokenizer, sources=["noise"]).sources()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sources": ["video"]}, "video.*expected auto or some of text"),
        ({"sources": []}, "expected auto or some"),
        ({"per_source": 0}, "at least 1"),
        ({"temperature": 0.0}, "temperature must be above 0"),
        ({"held_out": 1.0}, "held_out a share"),
        ({"held_out": 0.1, "per_source": 5}, "at least one row"),
    ],
)
def test_settings_that_make_no_sense_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        Rows(**change)


def test_the_identity_is_json():
    assert json.loads(json.dumps(Rows().identity())) == Rows().identity()
    assert Rows(batch_size=3).identity() == Rows().identity() != Rows(seed=1).identity()


def test_pictures_that_take_much_memory_are_fewer(model, monkeypatch):
    """Each is 3 x 16 x 16 float32, 3 KiB."""
    monkeypatch.setattr("dowser_pl.importance.rows._BYTES", 10_000)
    rows = writers(model, sources=["text", "noise"]).in_turns(["text", "noise"], range(6), lambda rows: None)
    assert [row.number for row in rows if row.kind == "noise"] == [0, 1, 2]
    assert len([row for row in rows if row.kind == "text"]) > 3


def test_the_text_part_writes_where_the_whole_wants_a_picture():
    whole = tiny_instructblip()
    rows = writers(whole, sources=["text"]).write("text", range(3))
    alone = writers(text_model(whole), sources=["text"]).write("text", range(3))
    assert rows and [row.tokens.tolist() for row in rows] == [row.tokens.tolist() for row in alone]
