import json

import pytest
import torch
from PIL import Image

from dowser_pl.data.templates import ChatTemplate
from dowser_pl.importance import Openers, Rows, write_rows
from dowser_pl.models.layers import text_model
from tests.tiny_models import BOS, EOS, IMAGE, make_processor, tiny_instructblip_t5, tiny_llava

ALL = ("text", "chat", "turn", "noise", "blank", "train", "shuffle", "mosaic")
PROCESSOR = make_processor()
OPENERS = Openers(*ChatTemplate(PROCESSOR).openers())
PICTURES = [Image.new("RGB", (20 + 9 * n, 31), (n * 60, 90, 200 - n * 30)) for n in range(4)]


@pytest.fixture(scope="module")
def model():
    return tiny_llava().eval()


def write(model, settings, openers=OPENERS, pictures=PICTURES):
    return write_rows(model, PROCESSOR, settings, openers, pictures)


def flat(bank):
    return {
        (source, number): (row.tokens.tolist(), row.image.get("pixel_values", torch.empty(0)).tolist())
        for side in (bank.used, bank.held_out)
        for source, rows in side.items()
        for number, row in enumerate(rows)
    }


@pytest.fixture(scope="module")
def bank(model):
    return write(model, Rows(dict.fromkeys(ALL, 6), num_tokens=10, held_out=0.0))


@pytest.mark.parametrize("source", ALL)
def test_rows_say_what_they_were_written_after(bank, source):
    assert len(bank.used[source]) + bank.dropped[source] == 6
    for row in bank.used[source]:
        assert row.kind == source and row.tokens[0] == BOS
        assert torch.equal(row.is_text, row.tokens != IMAGE)
        assert int((row.tokens == IMAGE).sum()) == (0 if source in ("text", "chat", "turn") else 4)
        assert bool(row.image) == (source not in ("text", "chat", "turn"))
        assert not set(row.tokens[1:-1].tolist()) & set(range(IMAGE))
        assert row.tokens.untyped_storage().nbytes() == row.tokens.nbytes
    assert len({(tuple(r.tokens.tolist()), str(r.image)) for r in bank.used[source]}) == len(bank.used[source])


def test_rows_start_with_the_template(bank):
    said = {source: [PROCESSOR.tokenizer.decode(row.tokens) for row in bank.used[source]] for source in ALL}
    assert all(text.startswith("<s> user : ") for text in said["chat"] + said["turn"])
    assert all(text.startswith("<s> user : " + "<image> " * 4) for text in said["mosaic"])
    for row in bank.used["turn"]:
        words = PROCESSOR.tokenizer.decode(row.tokens).split()
        answer = words.index("assistant", 3) if words[3] != "assistant" else words.index("assistant", 4)
        assert len(row.tokens) <= 3 + 14 + 2 + 10 and answer > 3


@pytest.mark.parametrize("together", [1, 3])
def test_a_row_belongs_to_its_number_not_to_its_batch(model, bank, together, monkeypatch):
    monkeypatch.setattr("dowser_pl.importance.writing._TOGETHER", together)
    again = write(model, Rows(dict.fromkeys(reversed(ALL), 6), num_tokens=10, held_out=0.0, batch_size=together))
    assert flat(again) == flat(bank)


def test_another_seed_writes_other_rows(model, bank):
    other = flat(write(model, Rows(dict.fromkeys(ALL, 6), num_tokens=10, held_out=0.0, seed=1)))
    assert not any(other[key] == row for key, row in flat(bank).items() if key in other)


def test_a_tenth_is_held_out_and_the_same_whatever_the_count(model):
    few, many = (write(model, Rows({"chat": count}, num_tokens=6)) for count in (20, 30))
    assert [len(few.held_out["chat"]), len(few.used["chat"]) + few.dropped["chat"]] == [2, 18]
    for side in ("used", "held_out"):
        rows, more = ([row.tokens.tolist() for row in getattr(each, side)["chat"]] for each in (few, many))
        assert more[: len(rows)] == rows


def test_degenerate_rows_are_written_again_and_then_behind_a_user_part(model, monkeypatch):
    """The filter refuses everything with fewer tokens than a user part makes."""
    seen = []
    monkeypatch.setattr(
        "dowser_pl.importance.rows.is_degenerate", lambda tokens: seen.append(len(tokens)) or len(seen) <= 6
    )
    bank = write(model, Rows({"noise": 3}, num_tokens=5, held_out=0.0))
    assert len(seen) == 9 and bank.dropped == {"noise": 0}
    assert all("assistant :" in PROCESSOR.tokenizer.decode(row.tokens) for row in bank.used["noise"])


def test_a_source_of_degenerate_rows_alone_is_refused(model, monkeypatch):
    monkeypatch.setattr("dowser_pl.importance.rows.is_degenerate", lambda tokens: True)
    with pytest.raises(ValueError, match="all 2 rows that the model wrote after 'blank'.*leave 'blank' out"):
        write(model, Rows({"blank": 2}, num_tokens=5))


def test_sampling_follows_the_model_distribution(model):
    """First written token after the user's opener, against the softmax of an independent forward."""
    bank = write(model, Rows({"chat": 2000}, num_tokens=1, held_out=0.0))
    start = torch.tensor([[BOS, *PROCESSOR.tokenizer("user :")["input_ids"]]])
    with torch.no_grad():
        logits = model(input_ids=start).logits[0, -1].double()
    logits[: IMAGE + 1] = float("-inf")  # an end at once is written again
    tokens = [int(row.tokens[3]) for row in bank.used["chat"]]
    expected = logits.softmax(0) * len(tokens)
    counts = torch.bincount(torch.tensor(tokens), minlength=len(expected)).double()
    likely = expected > 30
    assert EOS not in tokens and int(likely.sum()) > 3
    assert ((counts - expected)[likely] ** 2 / expected[likely]).sum() / likely.sum() < 2


def test_the_global_random_state_is_neither_used_nor_touched(model, bank):
    torch.manual_seed(5)
    state = torch.get_rng_state()
    again = write(model, Rows(dict.fromkeys(ALL, 6), num_tokens=10, held_out=0.0))
    assert flat(again) == flat(bank) and torch.equal(state, torch.get_rng_state())


def test_without_a_template_pictures_stand_at_the_start(model):
    row = write(model, Rows({"noise": 2}, num_tokens=6, held_out=0.0), None).used["noise"][0]
    assert row.tokens[:6].tolist() == [BOS, *[IMAGE] * 4, int(row.tokens[5])]


@pytest.mark.parametrize(
    ("source", "openers", "pictures", "message"),
    [("chat", None, PICTURES, "chat.*chat template"), ("train", OPENERS, [], "train.*need training pictures")],
)
def test_sources_that_lack_something_are_refused(model, source, openers, pictures, message):
    with pytest.raises(ValueError, match=message):
        write(model, Rows({source: 2}), openers, pictures)


def test_encoder_decoders_and_processors_without_pictures_are_refused(model):
    with pytest.raises(ValueError, match="decoders alone"):
        write(text_model(tiny_instructblip_t5()), Rows({"text": 2}))
    with pytest.raises(ValueError, match="no image token.*noise"):
        write_rows(model, PROCESSOR.tokenizer, Rows({"noise": 2}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sources": {"video": 3}}, "video.*expected some of text"),
        ({"sources": {}}, "at least one row"),
        ({"sources": {"text": 0}}, "at least one row"),
        ({"temperature": 0.0}, "temperature above 0"),
        ({"held_out": 1.0}, "held_out in"),
    ],
)
def test_settings_that_make_no_sense_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        Rows(**change)


def test_the_identity_is_json():
    assert json.loads(json.dumps(Rows().identity())) == Rows().identity()
    assert Rows(batch_size=3).identity() == Rows().identity() != Rows(seed=1).identity()
