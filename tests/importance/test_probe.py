import inspect
from dataclasses import replace

import pytest
import torch
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

from dowser_pl.functional.masks import jaccard
from dowser_pl.importance import FACTORS, PRODUCTS, Factors, Probe, Prompt, measure, probing_mode, write_prompts
from dowser_pl.methods import Layer, ModelDowser
from dowser_pl.models.layers import find_layers
from tests.importance import naive
from tests.tiny_models import make_processor, tiny_llava

SETTINGS = Probe(num_prompts=8, num_probes=3, num_tokens=20, batch_size=3, seed=7)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = tiny_llava().eval()
    for parameter in model.parameters():  # random weights are tiny: give the logits some life
        if parameter.dim() == 2:
            parameter.data.mul_(6)
    return model


@pytest.fixture(scope="module")
def layers(model):
    return find_layers(model, None, ["attn", "mlp"])


@pytest.fixture(scope="module")
def prompts(model):
    return write_prompts(model, make_processor().tokenizer, SETTINGS, range(8))


def run(model, layers, prompts, settings=SETTINGS, batch_size=3, **options):
    with probing_mode(model):
        return measure(model, layers, prompts, replace(settings, batch_size=batch_size), **options)


def layer_of(name, linear, factors):
    return Layer(name, linear.weight.detach(), **factors.layers[name])


@pytest.mark.parametrize("positions", ["last", "all"])
@pytest.mark.parametrize("estimator", ["authors", "paper", "token", "weight"])
def test_masks_equal_the_naive_loop(model, layers, prompts, estimator, positions):
    loop = {
        "authors": naive.published_loop,
        "paper": naive.paper_loop,
        "token": naive.token_loop,
        "weight": naive.weight_loop,
    }[estimator]
    expected = loop(model, layers, prompts, SETTINGS.num_probes, SETTINGS.seed, everywhere=positions == "all")
    for ratio in (0.02, 0.1, 0.5):
        method = ModelDowser(ratio, estimator=estimator, group_size=4)
        settings = replace(SETTINGS, positions=positions)
        factors = run(model, layers, prompts, settings, statistics=method.needs).grouped(method.prompts_per_row)
        for name, linear in layers.items():
            layer = layer_of(name, linear, factors)
            # two float32 computations in different order; the published ones average, and agree closer
            rtol = 2e-5 if estimator in ("authors", "paper") else 1e-4
            atol = 0 if estimator in ("authors", "paper") else 1e-6 * float(expected[name].max())
            torch.testing.assert_close(method.score(layer), expected[name], rtol=rtol, atol=atol)
            count = round(ratio * linear.weight.numel())
            order = torch.sort(expected[name].flatten(), stable=True).indices
            mask = torch.zeros(linear.weight.numel(), dtype=torch.bool)
            mask[order[:count]] = True
            assert torch.equal(method.mask(layer), mask.view_as(linear.weight)), name


def test_estimates_approach_the_exact_jacobian_as_probes_grow(model, layers, prompts):
    """With 1, 8 and 64 probes, mean over layers, against the exact Jacobian: rank correlation .936, .992, .9991
    and overlap (Jaccard) of the 10 % masks .70, .91, .97."""
    few = [Prompt(prompt.tokens[:10]) for prompt in prompts[:3]]
    exact = naive.exact_scores(model, layers, few)
    method = ModelDowser(0.1, estimator="paper")
    quality = {}
    for num_probes in (1, 8, 64):
        settings = Probe(num_prompts=3, num_probes=num_probes, num_tokens=20, seed=1)
        factors = run(model, layers, few, settings)
        ranks, overlaps = [], []
        for name, linear in layers.items():
            layer = layer_of(name, linear, factors)
            ranks.append(spearman(method.score(layer), exact[name]))
            overlaps.append(jaccard(method.mask(layer), lowest_by_sort(exact[name], 0.1)))
        quality[num_probes] = (sum(ranks) / len(ranks), sum(overlaps) / len(overlaps))
    assert quality[1][0] < quality[8][0] < quality[64][0]
    assert quality[1][1] < quality[8][1] < quality[64][1]
    assert quality[64][0] > 0.999 and quality[64][1] > 0.95


def test_compute_batch_changes_nothing(model, layers, prompts):
    one, all_at_once = run(model, layers, prompts, batch_size=1), run(model, layers, prompts, batch_size=8)
    for estimator in ("authors", "paper"):
        method = ModelDowser(0.1, estimator=estimator)
        for name, linear in layers.items():
            first = method.mask(layer_of(name, linear, one.grouped(4)))
            assert torch.equal(first, method.mask(layer_of(name, linear, all_at_once.grouped(4)))), name


def test_padding_is_no_position(model, layers, prompts):
    """Prompts of unequal length in one batch score as they do alone."""
    uneven = [Prompt(prompt.tokens[: 5 + 3 * i]) for i, prompt in enumerate(prompts[:4])]
    together, alone = run(model, layers, uneven, batch_size=4), run(model, layers, uneven, batch_size=1)
    for name in layers:
        for field in ("activation", "abs_gradient", "square_gradient"):
            expected = alone.layers[name][field]
            torch.testing.assert_close(
                together.layers[name][field], expected, rtol=1e-4, atol=1e-5 * float(expected.max())
            )


def test_the_pass_leaves_the_model_as_it_was(model, layers, prompts):
    model.train()
    model.requires_grad_(False)
    chosen = next(iter(layers.values())).weight.requires_grad_(True)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    run(model, layers, prompts[:2])
    assert model.training and chosen.requires_grad
    assert next(p for p in model.parameters() if p.requires_grad) is chosen
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())
    model.eval().requires_grad_(True)


def test_a_matrix_off_the_path_is_an_error(model, prompts):
    aside = {"aside": torch.nn.Linear(4, 4)}
    with pytest.raises(ValueError, match="1 of 1 matrices got no probe gradient, first 'aside'"):
        run(model, aside, prompts[:1])


def test_overflow_is_an_error(model, layers, prompts):
    linear = next(iter(layers.values()))
    kept = linear.weight.data.clone()
    linear.weight.data.fill_(float("inf"))
    try:
        with pytest.raises(ValueError, match="not finite"):
            run(model, layers, prompts[:1])
    finally:
        linear.weight.data.copy_(kept)


def test_half_precision_accumulates_in_float32(layers, model, prompts):
    half = tiny_llava().eval()
    half.load_state_dict(model.state_dict())
    half.to(torch.bfloat16)
    factors = run(half, find_layers(half, None, ["attn", "mlp"]), prompts)
    method = ModelDowser(0.1)
    reference = run(model, layers, prompts)
    overlaps = []
    for name, linear in layers.items():
        layer = layer_of(name, linear, factors)
        assert factors.layers[name]["abs_gradient"].dtype == torch.float32
        overlaps.append(jaccard(method.mask(layer), method.mask(layer_of(name, linear, reference))))
    assert sum(overlaps) / len(overlaps) > 0.75  # .82: bfloat16 forward and backward of random weights


def test_gradient_checkpointing_gives_the_same_factors(model, layers, prompts):
    plain = run(model, layers, prompts[:3], statistics=FACTORS + PRODUCTS)
    model.gradient_checkpointing_enable()
    try:
        again = run(model, layers, prompts[:3], statistics=FACTORS + PRODUCTS)
    finally:
        model.gradient_checkpointing_disable()
    assert_equal(plain, again)


def test_checkpointing_that_is_always_on_gives_the_same_factors(model, prompts):
    """As activation checkpointing of sharded strategies wraps it: in eval mode too, hooks running again per probe."""
    wrapped = tiny_llava().eval()
    wrapped.load_state_dict(model.state_dict())
    names = list(find_layers(wrapped, None, ["attn", "mlp"]))
    found = {name: wrapped.get_submodule(name) for name in names}
    plain = run(wrapped, found, prompts[:3], statistics=FACTORS + PRODUCTS)
    decoder = wrapped.model.language_model
    for index, block in enumerate(decoder.layers):
        decoder.layers[index] = checkpoint_wrapper(block)
    again = run(wrapped, found, prompts[:3], statistics=FACTORS + PRODUCTS)
    assert_equal(plain, again)


def assert_equal(first, second):
    assert first.num_prompts == second.num_prompts
    for name, statistics in first.layers.items():
        for statistic, value in statistics.items():
            assert torch.equal(value, second.layers[name][statistic]), (name, statistic)


def test_only_what_lies_above_the_first_tuned_matrix_is_differentiated(model, prompts, monkeypatch):
    """The last layer's factors do not depend on whether the first layer is measured too."""
    every = run(model, find_layers(model, None, ["attn", "mlp"]), prompts)
    last = find_layers(model, 1, ["attn", "mlp"])
    assert_equal(run(model, last, prompts), Factors({name: every.layers[name] for name in last}, 8))
    mlp = find_layers(model, None, ["mlp"])
    assert_equal(run(model, mlp, prompts), Factors({name: every.layers[name] for name in mlp}, 8))


def test_prompts_are_measured_by_number(model, layers, prompts):
    """Two ranges, put together, are the whole; a prompt's row does not depend on where measuring began."""
    whole = run(model, layers, prompts, batch_size=4)
    parts = [run(model, layers, prompts[a:b], batch_size=4, first=a) for a, b in ((0, 4), (4, 8))]
    assert_equal(whole, parts[0].followed_by(parts[1]))
    assert_equal(whole.first(4), parts[0])


def test_matrices_with_the_same_input_share_one_activation(model, layers, prompts):
    factors = run(model, layers, prompts).grouped(4)
    for name, statistics in factors.layers.items():
        if name.endswith("q_proj"):
            for sibling in ("k_proj", "v_proj"):
                assert statistics["activation"] is factors.layers[name.replace("q_proj", sibling)]["activation"]
            assert statistics["activation"] is not factors.layers[name.replace("q_proj", "o_proj")]["activation"]


def test_a_full_gpu_halves_the_batch_and_changes_nothing(model, layers, prompts, monkeypatch):
    expected = run(model, layers, prompts, batch_size=2)
    forward = type(model).forward

    def too_small(self, *args, **inputs):
        if len(inputs["input_ids"]) > 2:
            raise torch.OutOfMemoryError("out of memory")
        return forward(self, *args, **inputs)

    too_small.__signature__ = inspect.signature(forward)
    monkeypatch.setattr(type(model), "forward", too_small)
    with pytest.warns(UserWarning, match="8 prompts at a time do not fit the GPU; trying half as many"):
        factors = run(model, layers, prompts, batch_size=8)
    assert_equal(factors, expected)


def test_a_gpu_too_small_for_one_prompt_is_an_error_that_says_what_to_do(model, layers, prompts, monkeypatch):
    def never(self, *args, **inputs):
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(type(model), "forward", never)
    with pytest.raises(ValueError, match="too little free memory for one prompt .*num_tokens"):
        run(model, layers, prompts[:1])
    with pytest.raises(ValueError, match="2 prompts at a time do not fit the GPU .*; lower --dowser.probe.batch_size"):
        run(model, layers, prompts[:2], statistics=PRODUCTS)


def spearman(first: torch.Tensor, second: torch.Tensor) -> float:
    ranks = [x.flatten().argsort().argsort().double() for x in (first, second)]
    return float(torch.corrcoef(torch.stack(ranks))[0, 1])


def lowest_by_sort(scores: torch.Tensor, ratio: float) -> torch.Tensor:
    mask = torch.zeros(scores.numel(), dtype=torch.bool)
    mask[torch.sort(scores.flatten(), stable=True).indices[: round(ratio * scores.numel())]] = True
    return mask.view_as(scores)
