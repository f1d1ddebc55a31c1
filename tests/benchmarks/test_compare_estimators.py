import json
from functools import partial
from pathlib import Path

import pytest
import torch
from torch.autograd.functional import jacobian
from torch.func import functional_call

import compare_estimators
from dowser_pl.importance import Prompt
from dowser_pl.models import load_processor
from dowser_pl.models.layers import find_layers, text_inputs
from estimators.exact import exact_scores
from estimators.fits import RATE, command
from estimators.rows import ROWS, Row, scores_of
from estimators.shift import ShiftMeter, disturbed, world_texts
from estimators.table import plus_minus, summary, table
from tests.tiny_models import IMAGE, make_processor, tiny_llava

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def model():
    return tiny_llava()


@pytest.fixture(scope="module")
def layers(model):
    return find_layers(model, None, ["attn", "mlp"])


PROMPTS = [Prompt(torch.tensor(tokens)) for tokens in ([1, 20, 30, 40, 50], [1, 60, 70])]


def of_one_layer(model, layer, name, prompt):
    """Both sums for one prompt by torch's own Jacobians: of the entries, and of what is added to the outputs."""

    def by_weight(weight):
        return functional_call(model, {f"{name}.weight": weight}, (prompt.tokens[None],)).logits[0, -1]

    def by_output(added):
        handle = layer.register_forward_hook(lambda module, inputs, output: output + added)
        logits = model(prompt.tokens[None]).logits[0, -1]
        handle.remove()
        return logits

    seen = []
    handle = layer.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0][0].detach()))
    model(prompt.tokens[None])
    handle.remove()
    entries = jacobian(by_weight, layer.weight.detach())
    columns = jacobian(by_output, torch.zeros(len(prompt.tokens), layer.out_features))
    norm = columns.square().sum(dim=0).mean(dim=0).sqrt()  # over logits, then over positions
    weight = layer.weight.detach().abs()
    return {
        "paper": weight * torch.outer(norm, seen[0].abs().mean(dim=0)),
        "weight": weight * entries.square().sum(dim=0).sqrt(),
    }


@pytest.mark.parametrize("batch_size", [1, 2])
def test_exact_scores_are_those_of_torchs_jacobian(model, layers, batch_size):
    scores = exact_scores(model, layers, PROMPTS, partial(text_inputs, model), batch_size)
    for name in (next(iter(layers)), list(layers)[8], list(layers)[-1]):
        parts = [of_one_layer(model, layers[name], name, prompt) for prompt in PROMPTS]
        for truth in ("paper", "weight"):
            expected = torch.stack([part[truth] for part in parts]).mean(dim=0)
            torch.testing.assert_close(scores[truth][name], expected, rtol=1e-4, atol=1e-6 * float(expected.max()))
    assert all(layer.weight.grad is None and not layer._forward_hooks for layer in layers.values())


def test_the_shift_by_hand(model, layers):
    """Two rows, one with a picture; its four image tokens and the padding are no positions."""
    tokens = torch.tensor([[1, 8, *[IMAGE] * 4, 9, 20, 2], [1, 8, 30, 31, 2, 0, 0, 0, 0]])
    labels = torch.tensor([[-100] * 7 + [20, 2], [-100] * 3 + [31, 2] + [-100] * 4])
    inputs = {"input_ids": tokens, "attention_mask": (tokens != 0).long(), "pixel_values": torch.rand(1, 3, 16, 16)}
    meter = ShiftMeter(model, [{**inputs, "labels": labels}], IMAGE)
    assert meter.shift().text == meter.shift().answers == 0
    pairs = [(0, 0), (0, 6), (0, 7), (1, 0), (1, 1), (1, 2), (1, 3)]  # a word follows, and it follows a word
    answers = [(0, 6), (0, 7), (1, 2), (1, 3)]
    masks = {name: torch.rand(layer.weight.shape) < 0.5 for name, layer in layers.items()}
    with torch.no_grad():
        before = model(**inputs).logits.log_softmax(dim=-1)
        with disturbed(layers, masks, "relative", seed=0, draw=0):
            after = model(**inputs).logits.log_softmax(dim=-1)
            shift = meter.shift()
    kl = (before.exp() * (before - after)).sum(dim=-1)
    assert shift.text == pytest.approx(sum(float(kl[pair]) for pair in pairs) / len(pairs), rel=1e-3)
    assert shift.answers == pytest.approx(sum(float(kl[pair]) for pair in answers) / len(answers), rel=1e-3)


@pytest.mark.parametrize("noise", ["relative", "absolute"])
def test_only_chosen_entries_are_disturbed_and_all_come_back(layers, noise):
    masks = {name: torch.rand(layer.weight.shape) < 0.3 for name, layer in layers.items()}
    everything = {name: torch.ones_like(mask) for name, mask in masks.items()}
    base = {name: layer.weight.detach().clone() for name, layer in layers.items()}
    with disturbed(layers, masks, noise, seed=0, draw=1):
        some = {name: layer.weight.detach() - base[name] for name, layer in layers.items()}
    with disturbed(layers, everything, noise, seed=0, draw=1):
        every = {name: layer.weight.detach() - base[name] for name, layer in layers.items()}
    for name, layer in layers.items():
        assert torch.equal(layer.weight.detach(), base[name])
        assert torch.equal(some[name] != 0, masks[name])
        assert torch.equal(some[name], every[name] * masks[name])  # the same number for the same entry
        unit = every[name] / (base[name] if noise == "relative" else 0.5 * base[name].std())
        assert float(unit.std()) == pytest.approx(1, abs=0.15)


def test_texts_are_questions_with_their_answers():
    processor = load_processor("embedded:world")
    pictures, words = world_texts(processor, rows_per_task=2, seed=1)
    assert len(pictures["input_ids"]) == 14 == len(pictures["pixel_values"])
    assert len(words["input_ids"]) == 6 and "pixel_values" not in words
    text = processor.tokenizer.decode(pictures["input_ids"][0])
    answer = processor.tokenizer.decode(pictures["labels"][0][pictures["labels"][0] != -100])
    assert text.startswith("<s> user : <image>") and f"assistant : {answer}" in text


def test_rows_have_names_and_options_of_their_own():
    assert len({row.name for row in ROWS}) == len(ROWS)
    assert len({tuple(row.options(3)) for row in ROWS if row.tuned}) == sum(row.tuned for row in ROWS)
    row = Row("weight", 64, 8, positions="all", noise_images=True)
    assert row.name == "weight-64x8-all-images"
    words = command(Path("runs"), row, seed=3, epochs=2)
    options = dict(zip(words[4::2], words[5::2], strict=True))
    assert options["--dowser.method"] == "ModelDowser" and options["--dowser.method.estimator"] == "weight"
    assert options["--dowser.probe.positions"] == "all" and options["--dowser.probe.noise_images"] == "True"
    assert {options[f"--{name}"] for name in ("seed_everything", "data.seed", "dowser.probe.seed")} == {"3"}
    assert float(options["--model.optimizer.lr"]) == RATE
    with pytest.raises(ValueError, match="no method of dowser_pl"):
        Row("wanda").options(0)


def test_controls_score_as_they_say(model, layers):
    processor = make_processor()
    authors, _ = scores_of(model, processor, layers, Row("authors", 8), 0)
    highest, seconds = scores_of(model, processor, layers, Row("highest", 8), 0)
    wanda, _ = scores_of(model, processor, layers, Row("wanda", 8), 0)
    magnitude, no_pass = scores_of(model, processor, layers, Row("magnitude"), 0)
    assert seconds and no_pass is None
    for name in layers:
        assert int(highest[name].argmin()) == int(authors[name].argmax())
        ratio = wanda[name] / magnitude[name]
        torch.testing.assert_close(ratio, ratio[:1].expand_as(ratio))  # the same for every output


def test_numbers_read_as_mean_and_deviation():
    assert plus_minus([0.908, 0.912, 0.916], 3) == ".912 ± .004"
    assert plus_minus([1.0, 1.0], 3) == "1.000 ± .000"
    assert plus_minus([-0.25], 2) == "-.25"
    assert plus_minus([0.010, 0.012], 2, 1000) == "11.00 ± 1.41"
    assert plus_minus([0.5, None], 3) == "" == plus_minus([], 3)


def test_the_table_shows_what_was_measured():
    numbers = {
        "authors": [{"rank_paper": 0.5, "seconds": 1.0}, {"rank_paper": 0.7, "seconds": 2.0}],
        "magnitude": [{"rank_paper": 0.25, "seconds": None}] * 2,
    }
    assert table(numbers).splitlines() == [
        "| estimator | rank, exact paper | seconds |",
        "| :-- | --: | --: |",
        "| `authors` | .600 ± .141 | 1.5 ± .7 |",
        "| `magnitude` | .250 ± .000 |  |",
    ]
    assert summary(numbers["magnitude"])["mean"] == {"rank_paper": 0.25}


def test_the_tool_on_the_world(tmp_path, capsys, monkeypatch):
    rows = (Row("authors", 8), Row("highest", 8, tuned=False))
    monkeypatch.setattr(compare_estimators, "ROWS", rows)
    monkeypatch.setattr(compare_estimators, "ROWS_PER_TASK", 2)
    path = tmp_path / "numbers.json"
    words = f"--no-fit --seeds 2 --draws 1 --truth-prompts 1 --threads 1 --json {path}"
    assert compare_estimators.main(words.split()) == 0
    assert "| `authors-8x1` | " in capsys.readouterr().out
    content = json.loads(path.read_text())
    assert content["command"][1] == "benchmarks/compare_estimators.py"
    means = {line["row"]: line["mean"] for line in content["rows"]}
    assert means["exact paper"]["rank_paper"] == means["exact weight"]["overlap_weight"] == pytest.approx(1)
    assert means["authors-8x1"]["rank_paper"] > 0.8 > 0 > means["highest"]["rank_paper"]
    for shift in ("shift_relative_text", "shift_absolute_text"):
        assert means["authors-8x1"][shift] < means["highest"][shift]
