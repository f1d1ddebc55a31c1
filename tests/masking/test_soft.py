"""Rules around every step, against loops over single entries; bit-exact resume; equality with plain training."""

import math

import bitsandbytes
import pytest
import torch
from torch import nn

from dowser_pl.masking import CompactEntries, SoftEntries
from dowser_pl.masking.moments import check_moments, decay_of, first_moment
from dowser_pl.methods import L2SP, Anchor, MoFO, SoftDowser, Spider

SHAPES = {"first": (6, 5), "second": (4, 6)}
METHODS = {"spider": Spider(), "anchor": Anchor(0.9), "l2sp": L2SP(0.3), "soft_dowser": SoftDowser(), "mofo": MoFO(0.3)}


def make(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return {name: nn.Parameter(torch.randn(s, generator=generator).to(dtype)) for name, s in SHAPES.items()}


def priors(method):
    generator = torch.Generator().manual_seed(1)
    return {n: torch.rand(s, generator=generator) for n, s in SHAPES.items()} if method.needs else {}


def loss_of(weights, step):
    inputs = torch.randn(8, 5, generator=torch.Generator().manual_seed(step)).to(weights["first"].dtype)
    return (torch.tanh(inputs @ weights["first"].T) @ weights["second"].T).float().pow(3).mean() * 30


def adamw(parameters):
    return torch.optim.AdamW(parameters, lr=0.05, weight_decay=0.1, foreach=False)


def train(entries, optimizer, weights, steps, accumulate=1, clip=None):
    for step in steps:
        optimizer.zero_grad()
        for part in range(accumulate):
            (loss_of(weights, 10 * step + part) / accumulate).backward()
        entries.mask_gradients()
        if clip:
            nn.utils.clip_grad_norm_(entries.parameters(), clip)
        optimizer.step()
        entries.after_step(optimizer)


def sizes_in_matrix(values):
    sizes = [abs(value) for value in values]
    mean = sum(sizes) / len(sizes)
    deviation = math.sqrt(sum((size - mean) ** 2 for size in sizes) / (len(sizes) - 1))
    return [1 / (1 + math.exp(-(size - mean) / deviation)) for size in sizes]


@pytest.mark.parametrize("name", ["spider", "soft_dowser"])
def test_spider_is_the_formula_entry_by_entry(name):
    """Dense AdamW on other tensors, and after each of its steps the formula on Python lists."""
    method, weights = METHODS[name], make()
    entries = SoftEntries(weights, method, priors(method))
    train(entries, adamw(entries.parameters()), weights, range(5), accumulate=2, clip=0.5)

    naive = make()
    base = {key: weight.flatten().tolist() for key, weight in naive.items()}
    sums = {key: [0.0] * len(values) for key, values in base.items()}
    optimizer = adamw(list(naive.values()))
    for step in range(5):
        optimizer.zero_grad()
        ((loss_of(naive, 10 * step) + loss_of(naive, 10 * step + 1)) / 2).backward()
        nn.utils.clip_grad_norm_(list(naive.values()), 0.5)
        optimizer.step()
        for key, weight in naive.items():
            sums[key] = [total + g for total, g in zip(sums[key], weight.grad.flatten().tolist(), strict=True)]
            gradient = sizes_in_matrix(sums[key])
            importance = sizes_in_matrix(base[key]) if name == "spider" else priors(method)[key].flatten().tolist()
            shares = [g / (i + g) if i < g else 0.0 for i, g in zip(importance, gradient, strict=True)]
            chosen = [share for share in shares if share]
            shares = [min(1.0, share / (sum(chosen) / len(chosen))) for share in shares]
            moves = zip(base[key], weight.flatten().tolist(), shares, strict=True)
            weight.data = torch.tensor([b * (1 - m) + w * m for b, w, m in moves]).view_as(weight)
    for key, weight in weights.items():
        torch.testing.assert_close(weight, naive[key], rtol=1e-4, atol=1e-5)
        untouched = weight == make()[key]
        assert 0 < int(untouched.sum()) < untouched.numel(), "some entries are at the base, some are not"


def test_a_penalty_is_decay_towards_the_base():
    """With plain gradient descent: W <- W - lr (g + alpha (W - W0)), the gradient clipped with its penalty."""
    weights = make()
    entries = SoftEntries(weights, L2SP(0.3), {})
    train(entries, torch.optim.SGD(entries.parameters(), lr=0.1), weights, range(4), clip=2.0)
    naive, base = make(), make()
    for step in range(4):
        loss_of(naive, 10 * step).backward()
        gradients = [naive[key].grad + 0.3 * (naive[key] - base[key]).detach() for key in naive]
        norm = torch.cat([each.flatten() for each in gradients]).norm()
        for weight, gradient in zip(naive.values(), gradients, strict=True):
            weight.data -= 0.1 * gradient * min(1.0, 2.0 / float(norm))
            weight.grad = None
    for key, weight in weights.items():
        torch.testing.assert_close(weight, naive[key], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("method", [Anchor(1.0), L2SP(0.0)], ids=["anchor", "l2sp"])
def test_a_pull_of_nothing_is_plain_training_bit_by_bit(method, dtype):
    pulled, free = make(dtype), make(dtype)
    entries = SoftEntries(pulled, method, {})
    train(entries, adamw(entries.parameters()), pulled, range(4))
    plain = CompactEntries(free, {name: torch.ones(shape, dtype=torch.bool) for name, shape in SHAPES.items()})
    train(plain, adamw(plain.parameters()), free, range(4))
    assert all(torch.equal(pulled[name], free[name]) for name in SHAPES)
    assert entries.verify() == plain.verify() and entries.verify()[1].changed > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_full_pull_never_leaves_the_base(dtype):
    weights = make(dtype)
    entries = SoftEntries(weights, Anchor(0.0), {})
    train(entries, adamw(entries.parameters()), weights, range(3))
    assert all(torch.equal(weights[name], base) for name, base in make(dtype).items())
    assert entries.verify()[1].changed == 0 and entries.num_trainable == 54


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", METHODS)
def test_a_resumed_run_goes_on_bit_by_bit(name, dtype, tmp_path):
    method, whole = METHODS[name], make(dtype)
    entries = SoftEntries(whole, method, priors(method))
    optimizer = adamw(entries.parameters())
    train(entries, optimizer, whole, range(3))
    torch.save([entries.state_dict(), optimizer.state_dict(), whole], tmp_path / "state.pt")
    train(entries, optimizer, whole, range(3, 6))

    state, moments, weights = torch.load(tmp_path / "state.pt", weights_only=False)
    resumed = SoftEntries.resumed(weights, method, state)
    optimizer = adamw(resumed.parameters())
    optimizer.load_state_dict(moments)
    train(resumed, optimizer, weights, range(3, 6))
    assert all(torch.equal(weights[key], whole[key]) for key in SHAPES)
    assert resumed.verify() == entries.verify()
    for key, entry in resumed.state_dict().items():
        assert all(torch.equal(tensor, entries.state_dict()[key][kind]) for kind, tensor in entry.items())


def test_a_state_of_another_kind_is_refused():
    state = SoftEntries(make(), Anchor(), {}).state_dict()
    with pytest.raises(ValueError, match="do not keep the same things"):
        SoftEntries.resumed(make(), Spider(), state)
    with pytest.raises(ValueError, match="masks of 2 matrices and this run tunes 1.*'second'"):
        SoftEntries.resumed({"first": make()["first"]}, Anchor(), state)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_held_is_what_is_said(dtype):
    weights = make(dtype)
    held = SoftEntries(weights, SoftDowser(), priors(SoftDowser())).num_bytes()
    copy = sum(weight.nbytes for weight in weights.values())
    values = 0 if dtype == torch.float32 else 4 * 54
    assert held == {"indices": 0, "values": values, "base": copy, "sums": 4 * 54, "priors": 4 * 54}
    assert SoftDowser().num_kept == 2 and Spider().num_kept == 1 and Anchor().num_kept == 0


def test_a_matrix_that_took_no_gradient_is_left_alone_by_spider():
    weights = make()
    entries = SoftEntries(weights, Spider(), {})
    optimizer = adamw(entries.parameters())
    (weights["first"] - 1).square().sum().backward()
    optimizer.step()
    entries.after_step()
    assert torch.equal(weights["second"], make()["second"])
    assert not torch.equal(weights["first"], make()["first"])


LR, DECAY, BETAS, EPS = 0.05, 0.1, (0.9, 0.999), 1e-8


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("decay", ["all", "chosen"])
def test_mofo_is_the_published_step_entry_by_entry(decay, dtype):
    """Adam written out on Python's float64, its choice by sorting |m|; matrices hold the values rounded."""
    weights = make(dtype)
    entries = SoftEntries(weights, MoFO(0.3, decay), {})
    optimizer = adamw(entries.parameters())
    naive = {n: weight.flatten().tolist() for n, weight in make(dtype).items()}
    m, v = ({n: [0.0] * len(values) for n, values in naive.items()} for _ in range(2))
    moved = {name: set() for name in naive}
    for step in range(1, 7):
        train(entries, optimizer, weights, [step], clip=0.5)
        for name, parameter in zip(naive, entries.parameters(), strict=True):
            gradient = parameter.grad.tolist()
            m[name] = [BETAS[0] * old + (1 - BETAS[0]) * g for old, g in zip(m[name], gradient, strict=True)]
            v[name] = [BETAS[1] * old + (1 - BETAS[1]) * g * g for old, g in zip(v[name], gradient, strict=True)]
            by_size = sorted(range(len(gradient)), key=lambda i, kept=m[name]: -abs(kept[i]))
            chosen = by_size[: round(0.3 * len(gradient))]
            moved[name] |= set(chosen)
            for i in range(len(gradient)):
                naive[name][i] *= 1 - LR * DECAY if decay == "all" or i in chosen else 1.0
                if i in chosen:
                    root = math.sqrt(v[name][i] / (1 - BETAS[1] ** step))
                    naive[name][i] -= LR * m[name][i] / (1 - BETAS[0] ** step) / (root + EPS)
            torch.testing.assert_close(entries.values(name), torch.tensor(naive[name]), rtol=1e-4, atol=1e-5)
            assert torch.equal(weights[name].flatten(), entries.values(name).to(dtype))
    for name, base in make(dtype).items():
        assert round(0.3 * base.numel()) < len(moved[name]) < base.numel()
        left_alone = entries.values(name).detach() == base.flatten().float()
        assert int(left_alone.sum()) == (base.numel() - len(moved[name]) if decay == "chosen" else 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_mofo_of_all_entries_is_adam_bit_by_bit(dtype):
    filtered, free = make(dtype), make(dtype)
    entries = SoftEntries(filtered, MoFO(1.0), {})
    train(entries, adamw(entries.parameters()), filtered, range(4))
    plain = CompactEntries(free, {name: torch.ones(shape, dtype=torch.bool) for name, shape in SHAPES.items()})
    train(plain, adamw(plain.parameters()), free, range(4))
    assert all(torch.equal(filtered[name], free[name]) for name in SHAPES)
    assert entries.num_bytes()["before"] == 4 * 54 and MoFO().num_kept == 1


def test_a_first_step_moves_what_its_gradient_says_and_no_other_entry():
    """m of the first step is a tenth of the gradient; no decay: all else keeps its bits."""
    weights = make()
    entries = SoftEntries(weights, MoFO(0.2), {})
    optimizer = torch.optim.Adam(entries.parameters(), lr=0.05)
    train(entries, optimizer, weights, [0])
    for parameter, (name, base) in zip(entries.parameters(), make().items(), strict=True):
        top = set(parameter.grad.abs().topk(round(0.2 * base.numel())).indices.tolist())
        assert set((weights[name] != base).flatten().nonzero().flatten().tolist()) == top


@pytest.mark.parametrize("name", ["AdamW8bit", "PagedAdamW8bit", "Adam8bit", "AdamW"])
def test_moments_of_bitsandbytes_choose_too(name):
    """The same optimizer without a filter on copies: what it made of the entries with the largest moment is taken."""
    settings = {"lr": 0.05, "weight_decay": 0.1, "min_8bit_size": 16}
    weights, free = make(), make()
    entries = SoftEntries(weights, MoFO(0.3), {})
    optimizer = getattr(bitsandbytes.optim, name)(entries.parameters(), **settings)
    train(entries, optimizer, weights, [0])
    plain = CompactEntries(free, {n: torch.ones(shape, dtype=torch.bool) for n, shape in SHAPES.items()})
    train(plain, getattr(bitsandbytes.optim, name)(plain.parameters(), **settings), free, [0])
    decayed = 1 - 0.05 * 0.1 if "AdamW" in name else 1.0
    for parameter, (key, base) in zip(entries.parameters(), make().items(), strict=True):
        moment = first_moment(optimizer, parameter)
        gradient = parameter.grad
        torch.testing.assert_close(moment, 0.1 * gradient, rtol=0.1, atol=0.01 * float(gradient.abs().max()))
        chosen = torch.zeros(base.numel(), dtype=torch.bool)
        chosen[moment.abs().argsort(descending=True, stable=True)[: round(0.3 * base.numel())]] = True
        expected = torch.where(chosen.view_as(base), free[key], base * decayed)
        assert torch.equal(weights[key], expected) and decay_of(optimizer, parameter) == decayed


def test_optimizers_without_adams_moment_are_refused():
    parameters = list(make().values())
    others = torch.optim.SGD(parameters, lr=0.1), torch.optim.NAdam(parameters), bitsandbytes.optim.Lion(parameters)
    for made in others:
        with pytest.raises(ValueError, match=f"got the optimizer {type(made).__name__} .*Set --model.optimizer AdamW"):
            check_moments(made)
    entries = SoftEntries(make(), MoFO(), {})
    loss_of(entries.weights, 0).backward()
    entries.mask_gradients()
    with pytest.raises(ValueError, match="first is filtered by what the optimizer keeps, got none"):
        entries.after_step()


def test_mofo_leaves_alone_what_took_no_gradient_and_what_others_train():
    weights = make()
    entries = SoftEntries(weights, MoFO(0.3), {})
    first, second = entries.parameters()
    both = [torch.optim.AdamW([first], lr=0.05, weight_decay=0.1), torch.optim.Adam([second], lr=0.05)]
    (weights["first"] - 1).square().sum().backward()
    for optimizer in both:
        entries.mask_gradients()
        optimizer.step()
        entries.after_step(optimizer)
    assert torch.equal(weights["second"], make()["second"]) and not torch.equal(weights["first"], make()["first"])
    held = weights["first"].clone()
    loss_of(weights, 1).backward()
    entries.mask_gradients()
    both[1].step()
    entries.after_step(both[1])
    assert torch.equal(weights["first"], held)
    assert 0 < int((weights["second"] != make()["second"]).sum()) <= round(0.3 * 24)
