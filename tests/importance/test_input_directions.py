"""Directions of what matrices take in, against token-by-token sums in float64."""

from dataclasses import replace

import pytest
import torch

from dowser_pl.errors import DowserError
from dowser_pl.functional.null_space import projected
from dowser_pl.importance import Prompt, first_tokens, input_directions, probing_mode
from dowser_pl.importance.input_directions import num_words
from dowser_pl.models.layers import find_blocks, find_layers
from tests.importance.test_gram import inputs_of
from tests.tiny_models import tiny_llava


def prompts(count=5):
    generator = torch.Generator().manual_seed(0)
    return [Prompt(torch.randint(8, 90, (3 + index,), generator=generator)) for index in range(count)]


@pytest.fixture(scope="module")
def model():
    return tiny_llava()


def found(model, rows, **options):
    layers = find_layers(model, None, ["attn", "mlp"])
    with probing_mode(model), torch.no_grad():
        return layers, input_directions(model, layers, find_blocks(model, layers), rows, **options)


def oracle(model, layers, rows, eps):
    """One prompt at a time, without padding."""
    sums = {name: torch.zeros(layer.in_features, layer.in_features).double() for name, layer in layers.items()}
    for prompt in rows:
        for name, value in inputs_of(model, layers, {"input_ids": prompt.tokens[None]}).items():
            sums[name] += value[0].double().T @ value[0].double()
    count = sum(len(prompt.tokens) for prompt in rows)
    matrices = {}
    for name, total in sums.items():
        moment = total / count
        identity = torch.eye(len(moment)).double()
        matrices[name] = torch.linalg.inv(identity + moment / (eps * moment.trace() / len(moment)))
    return matrices


@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize("limit", [1, 1 << 32])
def test_every_token_of_every_prompt_counts_alike(model, batch_size, limit):
    layers, directions = found(model, prompts(), eps=0.1, rank=None, batch_size=batch_size, limit=limit)
    assert list(directions) == list(layers)
    expected = oracle(model.eval(), layers, prompts(), 0.1)
    for name, each in directions.items():
        matrix = projected(torch.eye(layers[name].in_features), each)
        torch.testing.assert_close(matrix.double(), expected[name], rtol=0, atol=2e-3)


def test_outputs_on_the_rows_stay_where_eps_is_small(model):
    """Of the whole way from rows to a move: fewer tokens than inputs, so that something is left to move in."""
    rows = prompts(2)
    layers, directions = found(model, rows, eps=1e-9, rank=None)
    name = next(iter(layers))
    move = torch.randn(layers[name].weight.shape, generator=torch.Generator().manual_seed(3)).double()
    inputs = inputs_of(model.eval(), layers, {"input_ids": rows[1].tokens[None]})[name][0].double()
    assert (inputs @ projected(move, directions[name]).T).norm() < 1e-3 * (inputs @ move.T).norm()
    assert projected(move, directions[name]).norm() > 0.1 * move.norm()


def test_matrices_with_one_input_share_directions(model):
    _, directions = found(model, prompts(), eps=0.1, rank=2)
    by_kind = {name.rsplit(".", 1)[1]: each for name, each in directions.items()}
    assert by_kind["q_proj"] is by_kind["k_proj"] is by_kind["v_proj"]
    assert by_kind["gate_proj"] is by_kind["up_proj"]
    assert by_kind["o_proj"] is not by_kind["q_proj"]
    assert all(each.vectors.shape[1] == 2 for each in directions.values())


def test_vectors_have_the_dtype_of_the_weights():
    _, directions = found(tiny_llava().bfloat16(), prompts(), eps=0.1, rank=2)
    assert {(each.vectors.dtype, each.shares.dtype) for each in directions.values()} == {
        (torch.bfloat16, torch.float32)
    }


def test_first_tokens_stop_at_the_prompt_that_reaches_them():
    rows = prompts()  # 3, 4, 5, 6, 7 tokens
    assert [len(first_tokens(rows, tokens)) for tokens in (1, 3, 4, 7, 8, 100)] == [1, 1, 2, 2, 3, 5]


def test_no_prompts_are_refused(model):
    with pytest.raises(DowserError, match="no prompts"):
        found(model, [], eps=0.1, rank=None)


def test_first_tokens_take_rows_of_all_kinds_in_turns():
    kinds = ["text", "text", "text", "noise", "chat", "chat"]
    rows = [Prompt(torch.arange(4), kind=kind) for kind in kinds]
    assert [row.kind for row in first_tokens(rows, 15)] == ["text", "noise", "chat", "text"]
    assert [row.kind for row in first_tokens(rows, 99)] == ["text", "noise", "chat", "text", "chat", "text"]


def of_pictures():
    """Rows of 12 positions, of which 9, 2 and none stand for a picture."""
    rows = [Prompt(torch.randint(8, 90, (12,), generator=torch.Generator().manual_seed(n))) for n in range(3)]
    masks = [torch.arange(12) >= places for places in (9, 2, 0)]
    return [replace(row, is_text=mask) for row, mask in zip(rows, masks, strict=True)]


@pytest.mark.parametrize("batch_size", [1, 3])
def test_the_positions_of_a_picture_count_no_more_than_the_words_beside_it(model, batch_size):
    layers, directions = found(model, of_pictures(), eps=0.1, rank=None, batch_size=batch_size)
    weights = [[1 / 3] * 9 + [1.0] * 3, [1.0] * 12, [1.0] * 12]
    for name, layer in layers.items():
        total = torch.zeros(layer.in_features, layer.in_features).double()
        for row, each in zip(of_pictures(), weights, strict=True):
            value = inputs_of(model.eval(), layers, {"input_ids": row.tokens[None]})[name][0].double()
            total += value.T @ (value * torch.tensor(each).double()[:, None])
        moment = total / 30
        identity = torch.eye(len(moment)).double()
        expected = torch.linalg.inv(identity + moment / (0.1 * moment.trace() / len(moment)))
        matrix = projected(torch.eye(layer.in_features), directions[name])
        torch.testing.assert_close(matrix.double(), expected, rtol=0, atol=2e-3)


def test_tokens_are_those_of_text():
    assert [num_words([row]) for row in of_pictures()] == [3, 10, 12]
    assert len(first_tokens(of_pictures(), 13)) == 2 and len(first_tokens(of_pictures(), 14)) == 3
