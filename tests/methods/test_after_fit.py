"""Methods that decide after training: what they make of base and tuned weights, of one model and of several."""

import numpy as np
import pytest
import torch

from dowser_pl.methods import (
    FAPM,
    Dare,
    Grafting,
    Layer,
    ModelTailor,
    Ties,
    Wise,
    build_masks,
    magnitude_overlap,
    sample_rows,
    split_half,
)
from tests.functional.test_brain_surgeon import damped, dense

BASE = torch.tensor([[1.0, -2.0, 0.5], [0.25, 3.0, -1.0]])
MOVES = torch.tensor([[0.5, -0.25, 0.125], [0.0, -0.75, 0.25]])


def versions(count=1, shape=(12, 40), dtype=torch.float32, seed=0):
    """Tuned versions of one matrix, with inputs that are correlated."""
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(shape, generator=generator)
    base[0, 0] = -0.0
    layers = []
    for number in range(count):
        tuned = base + 0.5 * torch.randn(shape, generator=generator)
        tokens = torch.randn(150, shape[1], generator=generator) @ torch.randn(shape[1], shape[1], generator=generator)
        gram = tokens.T @ tokens / len(tokens)
        layers.append(Layer(f"m of {number}", base.to(dtype), tuned=tuned.to(dtype), input_gram=gram))
    return layers


def merged(method, layers):
    return method.merge_all(layers, [method.mask(layer) for layer in layers])


def same_bits(one, other):
    return one.dtype == other.dtype and torch.equal(one.view(torch.uint8), other.view(torch.uint8))


GOLDEN = {
    # the two largest moves
    Grafting(1 / 3): [[0.5, 0.0, 0.0], [0.0, -0.75, 0.0]],
    # |D| (1 - 1.29 / |W|): [[-.15, .09, -.20], [0, .43, -.07]]
    FAPM(1 / 3): [[0.0, -0.25, 0.0], [0.0, -0.75, 0.0]],
    Ties(1 / 3, scale=2.0): [[1.0, 0.0, 0.0], [0.0, -1.5, 0.0]],
    Wise(0.5): [[0.25, -0.125, 0.0625], [0.0, -0.375, 0.125]],
}


@pytest.mark.parametrize("method", GOLDEN, ids=lambda method: type(method).__name__)
def test_golden(method):
    layer = Layer("m", BASE, tuned=BASE + MOVES)
    assert method.merge(layer, method.mask(layer)).tolist() == (BASE + torch.tensor(GOLDEN[method])).tolist()


@pytest.mark.parametrize("rescale", [True, False])
def test_dare_golden(rescale):
    layer, mask = Layer("m", BASE, tuned=BASE + MOVES), torch.tensor([[True, False, False], [False, True, False]])
    factor = 4.0 if rescale else 1.0
    expected = BASE + torch.tensor([[0.5 * factor, 0.0, 0.0], [0.0, -0.75 * factor, 0.0]])
    assert Dare(0.25, rescale=rescale).merge(layer, mask).tolist() == expected.tolist()


def test_model_tailor_golden():
    """Two inputs that always come together: what one is denied the other gives."""
    layer = Layer(
        "m", torch.zeros(1, 2), tuned=torch.tensor([[1.0, 2.0]]), input_gram=torch.tensor([[0.5, 0.5], [0.5, 0.5]])
    )
    mask = torch.tensor([[False, True]])
    # H = [[1.01, 1], [1, 1.01]]: the second entry moves by 1 * 1 / 1.01
    assert ModelTailor(0.5).merge(layer, mask).tolist()[0] == pytest.approx([0.0, 2 + 1 / 1.01])
    released = ModelTailor(0.5, compensation_sign="released")
    assert released.merge(layer, mask).tolist()[0] == pytest.approx([0.0, 2 - 1 / 1.01])


NOTHING_LOST = [
    FAPM(1.0),
    Dare(1.0),
    Grafting(1.0),
    Ties(1.0),
    Wise(1.0),
    ModelTailor(1.0),
    ModelTailor(1.0, selection="block"),
]
NOTHING_GAINED = [FAPM(0.0), Dare(0.0), Grafting(0.0), Ties(0.0), Wise(0.0), ModelTailor(0.0), Ties(1.0, scale=0.0)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_ends_are_tuned_and_base_bit_for_bit(dtype):
    layers = versions(dtype=dtype)
    for method in NOTHING_LOST:
        assert same_bits(merged(method, layers), layers[0].tuned), type(method)
    for method in NOTHING_GAINED:
        assert same_bits(merged(method, layers), layers[0].weight), type(method)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("count", [1, 3])
def test_entries_outside_every_mask_keep_the_bits_of_the_base(count, dtype):
    methods = [Dare(0.2), Ties(0.3, scale=0.7)]
    alone = [FAPM(0.2), Grafting(0.2), ModelTailor(0.2), ModelTailor(0.2, selection="block", block_size=16)]
    layers = versions(count, dtype=dtype)
    for method in [*methods, *(alone if count == 1 else [])]:
        masks = [method.mask(layer) for layer in layers]
        result = method.merge_all(layers, masks)
        outside = ~torch.stack(masks).any(dim=0)
        assert same_bits(result[outside], layers[0].weight[outside]), type(method)
        assert not torch.equal(result, layers[0].weight)
        assert bool(outside.any())


def test_what_was_not_trained_cannot_be_merged():
    layer = Layer("m", BASE, input_gram=torch.eye(3))
    for method in (FAPM(), Dare(), Grafting(), Ties(), Wise(), ModelTailor()):
        assert method.stage == "after_fit" and "tuned" in method.needs
        with pytest.raises(ValueError, match="has no tuned"):
            method.merge(layer, torch.ones_like(BASE, dtype=torch.bool))
    with pytest.raises(ValueError, match="has no input gram"):
        ModelTailor().mask(Layer("m", BASE, tuned=BASE))


@pytest.mark.parametrize("cls", [FAPM, Grafting, Ties])
def test_a_move_that_is_not_a_number_is_named(cls):
    tuned = BASE.clone()
    tuned[0, 1] = float("nan")
    with pytest.raises(ValueError, match="decoder.q_proj moved by something that is not a number"):
        cls().mask(Layer("decoder.q_proj", BASE, tuned=tuned))


def test_dare_drops_by_seed_name_and_model_and_keeps_the_mean():
    layer = versions()[0]
    masks = [Dare(0.5).mask(layer), Dare(0.5, seed=1).mask(layer)]
    masks += [Dare(0.5).mask(Layer("other", layer.weight)), Dare(0.5).mask(versions(2)[1])]
    assert all(not torch.equal(masks[0], mask) for mask in masks[1:])
    mean = torch.stack([merged(Dare(0.25, seed=seed), [layer]) for seed in range(400)]).mean(dim=0)
    error = (mean - layer.tuned).abs() / (layer.tuned - layer.weight).abs()
    assert float(error.mean()) < 0.1  # of one draw it is 1.5


def test_dare_adds_the_moves_of_several_models():
    layers = versions(3)
    method = Dare(0.2, scale=0.5)
    expected = layers[0].weight.double()
    for layer in layers:
        expected = expected + 0.5 * method.mask(layer) * (layer.tuned.double() - layer.weight.double()) / 0.2
    torch.testing.assert_close(merged(method, layers), expected.float())


def test_wise_averages_several_models():
    layers = versions(3)
    expected = sum(0.75 * layer.tuned.double() / 3 for layer in layers) + 0.25 * layers[0].weight.double()
    torch.testing.assert_close(merged(Wise(0.75), layers), expected.float())


@pytest.mark.parametrize("ratio", [0.01, 0.1, 0.6])
def test_grafting_against_a_sort_of_the_moves(ratio):
    layer = versions()[0]
    base, tuned = layer.weight.flatten().tolist(), layer.tuned.flatten().tolist()
    order = sorted(range(480), key=lambda entry: -abs(tuned[entry] - base[entry]))
    for entry in order[: round(ratio * 480)]:
        base[entry] = tuned[entry]
    assert merged(Grafting(ratio), [layer]).flatten().tolist() == base


def test_diagnostics_sample_tuned_weights_with_the_rest():
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(700, 600, generator=generator)
    layer = Layer("m", weight, tuned=weight + weight.abs())  # the largest weights move furthest
    assert sample_rows(layer).tuned.shape == sample_rows(layer).weight.shape == (350, 600)
    assert magnitude_overlap(Grafting(0.5), [layer]) == {"mask_overlap_with_magnitude": 0.0}
    assert split_half(Grafting(0.5), [layer]) is None


@pytest.mark.parametrize("scope", ["matrix", "model"])
@pytest.mark.parametrize("ratio", [0.01, 0.1, 0.6, 0.95])
def test_fapm_against_a_sort_of_the_published_score(ratio, scope):
    """In float64, entry by entry as the paper writes it; every third weight is 0, where it divides by zero."""
    layers = {}
    for number, layer in enumerate(versions(2)):
        base = layer.weight.clone()
        base.view(-1)[::3] = 0.0
        layers[f"m{number}"] = Layer(f"m{number}", base, tuned=base + (layer.tuned - layer.weight) * 5**number)
    masks = dict(build_masks(FAPM(ratio, scope=scope), dict.fromkeys(layers, "x"), layers.__getitem__))
    scores = {}
    for name, layer in layers.items():
        w, d = layer.weight.double().abs().flatten(), (layer.tuned.double() - layer.weight.double()).abs().flatten()
        mean = float(w.sum()) / len(w)
        scores[name] = [float(y) - mean * float(y) / float(x) if x else -np.inf for x, y in zip(w, d, strict=True)]
    for names in [[name] for name in scores] if scope == "matrix" else [list(scores)]:
        flat = [(-score, name, entry) for name in names for entry, score in enumerate(scores[name])]
        wanted = {(name, entry) for _, name, entry in sorted(flat)[: round(ratio * len(flat))]}
        assert {(n, e) for n in names for e in masks[n].flatten().nonzero().flatten().tolist()} == wanted
    for name, layer in layers.items():
        kept_zeros = int(masks[name].flatten()[::3].sum())
        assert (kept_zeros > 0) == (ratio == 0.95), "a weight of 0 is kept after all others"
        mask = masks[name]
        assert torch.equal(FAPM().merge(layer, mask), torch.where(mask, layer.tuned, layer.weight))


def test_fapm_keeps_what_does_not_overwrite():
    """The same move on a large and on a small weight; a larger one on the small weight; a move of zero."""
    layer = Layer("m", torch.tensor([[4.0, 0.1, -4.0, 0.0]]), tuned=torch.tensor([[4.1, 0.2, -4.0, 1.0]]))
    assert FAPM(0.25).mask(layer).tolist() == [[True, False, False, False]]
    assert FAPM(0.5).mask(layer).tolist() == [[True, False, True, False]]
    assert FAPM(0.75).mask(layer).tolist() == [[True, True, True, False]]


@pytest.mark.parametrize("cls", [FAPM, Grafting])
def test_grafting_and_fapm_take_one_model(cls):
    with pytest.raises(ValueError, match=f"{cls.__name__} merges one tuned model with its base, got 2"):
        merged(cls(), versions(2))


@pytest.mark.parametrize("undecided", ["base", "majority"])
@pytest.mark.parametrize("ratio", [0.2, 1.0])
def test_ties_against_the_published_steps_in_numpy(ratio, undecided):
    """Trim by sorting, elect, disjoint mean; on a coarse grid, so that moves cancel."""
    layers = [
        Layer(layer.name, torch.zeros(12, 40), tuned=((layer.tuned - layer.weight) * 4).round() / 4)
        for layer in versions(4)
    ]
    moves = np.stack([layer.tuned.double().numpy().ravel() for layer in layers])
    for move in moves:
        order = np.argsort(-np.abs(move), kind="stable")
        move[order[round(ratio * move.size) :]] = 0
    sign = np.sign(moves.sum(axis=0))
    assert (sign == 0).any() and (moves[:, sign == 0] != 0).any()
    if undecided == "majority":
        sign[sign == 0] = np.sign(sign.sum())
    agree = moves * sign > 0
    mean = (moves * agree).sum(axis=0) / np.maximum(agree.sum(axis=0), 1)
    expected = torch.from_numpy(0.7 * mean).float().view(12, 40)
    torch.testing.assert_close(merged(Ties(ratio, scale=0.7, undecided=undecided), layers), expected)


def test_ties_and_grafting_share_the_budget_of_the_model():
    small, large = versions(shape=(10, 10), seed=1)[0], versions(shape=(10, 10), seed=2)[0]
    far = Layer("far", large.weight, tuned=large.weight + 10 * (large.tuned - large.weight))
    layers = {"near": small, "far": far}
    for cls in (Grafting, Ties):
        masks = dict(build_masks(cls(0.25), dict.fromkeys(layers, "x"), layers.__getitem__))
        assert sum(int(mask.sum()) for mask in masks.values()) == 50
        assert int(masks["far"].sum()) > 40
        apart = dict(build_masks(cls(0.25, scope="matrix"), dict.fromkeys(layers, "x"), layers.__getitem__))
        assert [int(mask.sum()) for mask in apart.values()] == [25, 25]


def z(values):
    return (values - values.mean(dim=1, keepdim=True)) / values.std(dim=1, keepdim=True)


@pytest.mark.parametrize("sign", ["derivation", "released"])
@pytest.mark.parametrize("sensitivity", ["move", "weight"])
def test_model_tailor_against_dense_inverses(sensitivity, sign):
    layer = versions()[0]
    base, tuned, gram = layer.weight.double(), layer.tuned.double(), layer.input_gram.double()
    hessian = damped(gram, 0.02)
    lost = tuned - base if sensitivity == "move" else tuned
    score = 0.8 * z((tuned - base).abs()) + 0.2 * z(lost.square() / torch.linalg.inv(hessian).diagonal())
    method = ModelTailor(0.1, fusion=0.8, sensitivity=sensitivity, compensation_sign=sign, damping=0.02, block_size=16)
    mask = method.mask(layer)
    assert set(mask.flatten().nonzero().flatten().tolist()) == set(score.flatten().topk(48).indices.tolist())
    expected = dense(base, tuned, mask, hessian, 1.0 if sign == "derivation" else -1.0)
    torch.testing.assert_close(method.merge(layer, mask), expected.float(), rtol=1e-4, atol=1e-4)


def test_model_tailor_by_blocks_chooses_by_compensated_weights():
    """The released way: in each block of columns, by what stands there when its turn comes."""
    layer = versions()[0]
    base, tuned, gram = layer.weight.double(), layer.tuned.double(), layer.input_gram.double()
    hessian = damped(gram, 0.01)
    method = ModelTailor(0.1, 0.8, selection="block", sensitivity="weight", compensation_sign="released", block_size=16)
    mask = torch.ones(base.shape, dtype=torch.bool)
    for first, last in ((0, 16), (16, 32), (32, 40)):
        present = dense(base, tuned, mask, hessian, -1.0)[:, first:last]  # later columns have not been taken back yet
        inverse = torch.stack([torch.linalg.inv(hessian[j:, j:])[0, 0] for j in range(first, last)])
        score = 0.8 * z((tuned - base)[:, first:last].abs()) + 0.2 * z(present.square() / inverse)
        count = round(0.1 * 12 * last) - round(0.1 * 12 * first)
        chosen = torch.zeros(score.numel(), dtype=torch.bool)
        chosen[score.flatten().topk(count).indices] = True
        mask[:, first:last] = chosen.view(score.shape)
    assert torch.equal(method.mask(layer), mask)
    assert int(mask.sum()) == 48
    torch.testing.assert_close(
        method.merge(layer, mask), dense(base, tuned, mask, hessian, -1.0).float(), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("overlap", ["sum", "mean"])
def test_patches_of_several_tasks_are_stitched(overlap, dtype):
    """Each task is tailored by itself; then entry by entry, in plain numbers."""
    layers, tailor = versions(3, dtype=dtype), ModelTailor(0.3)
    tailored = [tailor.merge(layer, tailor.mask(layer)) for layer in layers]
    patches = [Layer(layer.name, layer.weight, tuned=each) for layer, each in zip(layers, tailored, strict=True)]
    stitch = tailor.of_patches(overlap)
    stitched = merged(stitch, patches)
    base, counts = layers[0].weight, set()
    for row in range(base.shape[0]):
        for column in range(base.shape[1]):
            start = float(base[row, column])
            there = [each for each in tailored if float(each[row, column]) != start]
            moves = [float(each[row, column]) - start for each in there]
            counts.add(len(moves))
            total = sum(moves) / (1 if overlap == "sum" else max(1, len(moves)))
            if len(moves) < 2:  # bit for bit
                assert float(stitched[row, column]) == (float(there[0][row, column]) if there else start)
            else:
                assert float(stitched[row, column]) == pytest.approx(
                    start + total, rel=1e-2 if dtype != BASE.dtype else 1e-5
                )
    assert counts == {0, 1, 2, 3}
    assert same_bits(merged(stitch, patches[:1]), tailored[0])


def test_what_stitch_is_asked():
    with pytest.raises(ValueError, match="overlap must be one of sum, mean, got 'last'"):
        ModelTailor.of_patches("last")
    assert ModelTailor.of_patches.reference is ModelTailor.reference
