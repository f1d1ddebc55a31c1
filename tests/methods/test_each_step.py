"""Methods that decide after every step: one golden 2 x 3 matrix each, and what all of them promise."""

import inspect
import math

import pytest
import torch

from dowser_pl import methods
from dowser_pl.methods import L2SP, Anchor, EachStep, Layer, ModelDowser, MoFO, SoftDowser, Spider

ALL = [
    cls for _, cls in inspect.getmembers(methods, inspect.isclass) if issubclass(cls, EachStep) and cls is not EachStep
]
BASE = torch.tensor([[1.0, -2.0, 3.0], [0.0, 0.0, 0.0]])
TUNED = BASE + torch.tensor([[0.4, 0.4, 0.4], [0.0, -0.8, 0.8]])
GRADIENTS = torch.tensor([[3.0, 1.0, -1.0], [0.5, -2.0, 0.0]])
PERCENTILES = torch.tensor([[0.9, 0.2, 0.7], [0.1, 0.3, 0.95]])


def standardised(values):
    sizes = [abs(value) for value in values]
    mean = sum(sizes) / len(sizes)
    deviation = math.sqrt(sum((size - mean) ** 2 for size in sizes) / (len(sizes) - 1))
    return [1 / (1 + math.exp(-(size - mean) / deviation)) for size in sizes]


def by_hand(importance, soft=True, rescale=True):
    """Entry by entry: what a step leaves of TUNED."""
    gradient = standardised(GRADIENTS.flatten().tolist())
    shares = [(g / (i + g) if soft else 1.0) if i < g else 0.0 for i, g in zip(importance, gradient, strict=True)]
    if rescale:
        chosen = [share for share in shares if share]
        shares = [min(1.0, share / (sum(chosen) / len(chosen))) for share in shares]
    moves = zip(BASE.flatten().tolist(), TUNED.flatten().tolist(), shares, strict=True)
    return [base * (1 - share) + tuned * share for base, tuned, share in moves]


@pytest.mark.parametrize("rescale", [True, False])
@pytest.mark.parametrize("soft", [True, False])
@pytest.mark.parametrize("cls", [Spider, SoftDowser])
def test_golden_shares(cls, soft, rescale):
    importance = standardised(BASE.flatten().tolist()) if cls is Spider else PERCENTILES.flatten().tolist()
    prior = None if cls is Spider else PERCENTILES
    moved = cls(soft=soft, rescale=rescale).step(BASE, TUNED, GRADIENTS, prior)
    assert moved.flatten().tolist() == pytest.approx(by_hand(importance, soft, rescale), abs=1e-6)
    assert not torch.equal(moved, TUNED) and not torch.equal(moved, BASE)


def test_golden_pulls():
    assert torch.allclose(Anchor(0.5).step(BASE, TUNED, None, None), BASE + (TUNED - BASE) / 2)
    assert torch.allclose(L2SP(0.5).penalty(BASE, TUNED), (TUNED - BASE) / 2)
    assert L2SP().step(BASE, TUNED, None, None) is TUNED and Anchor().penalty(BASE, TUNED) is None


@pytest.mark.parametrize("decay", ["all", "chosen"])
def test_golden_filter(decay):
    """|m| of GRADIENTS is largest at 3 and -2, then at 1 and -1, of which the earlier is chosen."""
    for alpha, chosen in ((1 / 3, [0, 4]), (0.5, [0, 1, 4]), (1.0, range(6)), (0.01, [])):
        left = MoFO(alpha, decay).filtered(BASE, TUNED, GRADIENTS, 0.5).flatten()
        other = BASE.flatten() * (0.5 if decay == "all" else 1.0)
        assert left.tolist() == [(TUNED.flatten() if i in chosen else other)[i].item() for i in range(6)]


def test_the_prior_of_soft_dowser_is_the_rank_of_the_score():
    generator = torch.Generator().manual_seed(0)
    layer = Layer(
        "m",
        torch.randn(9, 7, generator=generator),
        activation=torch.rand(8, 7, generator=generator),
        abs_gradient=torch.rand(8, 9, generator=generator),
        square_gradient=torch.rand(8, 9, generator=generator),
    )
    for estimator in ("authors", "paper"):
        method = SoftDowser(estimator=estimator)
        scored = ModelDowser(estimator=estimator)
        assert method.needs == scored.needs and method.prompts_per_row == scored.prompts_per_row
        order = method.prior(layer).flatten().argsort()
        assert torch.equal(order, scored.score(layer).flatten().argsort())
    assert Spider().needs == Anchor().needs == frozenset()


@pytest.mark.parametrize("cls", ALL)
def test_contract(cls):
    method = cls()
    assert method.stage == "each_step" and method.update_ratio is None and method.reference.title
    assert not hasattr(method, "mask") and not hasattr(method, "merge")
    assert all(isinstance(value, (str, int, float)) for value in method.settings().values())
    kept = [each.clone() for each in (BASE, TUNED, GRADIENTS, PERCENTILES)]
    gradients = GRADIENTS if method.sums_gradients else None
    assert method.needs_moment == (type(method).filtered is not EachStep.filtered)
    first = method.step(BASE, TUNED, gradients, PERCENTILES)
    assert first.shape == (2, 3) and torch.equal(first, method.step(BASE, TUNED, gradients, PERCENTILES))
    assert all(map(torch.equal, kept, (BASE, TUNED, GRADIENTS, PERCENTILES))), "inputs are read, never written"
    between = (first - BASE).abs() <= (TUNED - BASE).abs() + 1e-6
    assert bool(between.all()), "no entry gets farther than training took it"
    assert torch.equal(method.step(BASE, BASE, gradients, PERCENTILES), BASE), "what did not move stays"


def test_what_cannot_be_weighed_is_an_error():
    with pytest.raises(ValueError, match="Spider weighs gradients, got none"):
        Spider().step(BASE, TUNED, None, None)
    with pytest.raises(ValueError, match="SoftDowser weighs importance, got none"):
        SoftDowser().step(BASE, TUNED, GRADIENTS, None)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Anchor(1.1), r"in \[0, 1\]; got 1.1"),
        (lambda: Anchor(float("nan")), "got nan"),
        (lambda: L2SP(-1.0), "at least 0; got -1.0"),
        (lambda: MoFO(0.0), r"in \(0, 1\]; got 0.0"),
        (lambda: MoFO(1.5), "got 1.5"),
        (lambda: MoFO(decay="none"), "decay must be one of all, chosen, got 'none'"),
        (lambda: SoftDowser(estimator="exact"), "estimator must be one of"),
        (lambda: SoftDowser(group_size=0), "group_size"),
    ],
)
def test_settings_that_make_no_sense_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()
