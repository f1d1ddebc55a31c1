"""Would masks of experts mean anything at the size of the probe? Reach and stability, beside those of attention.

    python benchmarks/experts.py --json runs/experts.json

The MLPs of the embedded world become mixtures: each expert an eighth of the neurons of one (sparse upcycling,
Komatsuzaki et al. 2022, arXiv 2212.05055), top 8 of 128 as in Qwen3-VL-30B-A3B, routers new; then all of the text
decoder is trained on rows of the world, with the balancing loss of Switch Transformers (arXiv 2101.03961, equation 4).
Of two probe seeds:

- reach: how many tokens and prompts reach an expert, of how many prompts a gradient does (of the last layer only the
  probed position has one), and the share of experts that none reaches.
- overlap: Jaccard index of the lowest tenth of each matrix under both seeds; by chance .053. Beside it that with the
  lowest tenth of the weights' sizes, which no probe is needed for.

A position that is not routed to an expert adds zero to its activation and its gradient, so that both are means over all
real positions of a prompt, as of any matrix. About 30 minutes on one busy core, half of them training.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear, one_hot
from transformers import LlavaForConditionalGeneration, MixtralConfig, get_scheduler

from dowser_pl.files.atomic import write_atomically
from dowser_pl.functional.masks import jaccard, num_trainable
from dowser_pl.functional.selection import lowest
from dowser_pl.importance import Factors, Probe, measure, probing_mode, write_prompts
from dowser_pl.importance.probe import _backward, _probed_logits, stacked
from dowser_pl.importance.prompts import Prompt, plain_text
from dowser_pl.methods import Layer, ModelDowser
from dowser_pl.models import load_model, load_processor
from dowser_pl.models.layers import find_layers, text_model
from dowser_pl.models.text_only import tokenizer_of
from dowser_pl.reporting.provenance import provenance

sys.path.append(str(Path(__file__).parents[1] / "tools"))  # rows that the world was trained on
from world.rows import Row, batch, picture_row, text_row

BALANCE = 0.01  # weight of the balancing loss
Masks = dict[str, Tensor]


def main() -> None:
    """Upcycle, train, measure, print, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--experts", type=int, default=128)
    parser.add_argument("--top", type=int, default=8)
    parser.add_argument("--steps", type=int, default=300, help="of training")
    parser.add_argument("--prompts", type=int, nargs="+", default=[128], help="of the probe")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    started, base = time.time(), load_model("embedded:world", dtype="float32")
    tokenizer = tokenizer_of(load_processor("embedded:world"))
    model, losses = upcycled(base, options.experts, options.top), []
    train(model, options.steps, losses)
    found: dict[str, Any] = {"losses": losses, "experts": options.experts, "top": options.top}
    for count in options.prompts:
        found[f"{count} prompts"] = rows = compare(model, base, tokenizer, count)
        print(f"\n{count} prompts\n" + "\n".join(f"{name:28} {rows[name]}" for name in rows), flush=True)
    if options.json:
        found |= {"seconds": time.time() - started} | provenance("benchmarks/experts.py", sys.argv[1:])
        write_atomically(options.json, json.dumps(found, indent=1) + "\n")


def upcycled(base: Any, experts: int, top: int) -> Any:
    """The world with experts for MLPs: at first the `top` experts of each group of so many are the MLP together."""
    old = base.config.text_config
    width = old.intermediate_size // top
    config = base.config.__class__.from_dict(base.config.to_dict())
    shared = (
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "vocab_size",
    )
    shared += ("max_position_embeddings", "rms_norm_eps", "rope_parameters", "hidden_act", "tie_word_embeddings")
    settings = {name: getattr(old, name) for name in shared}
    config.text_config = MixtralConfig(
        **settings, intermediate_size=width, num_local_experts=experts, num_experts_per_tok=top, sliding_window=None
    )
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(config)
    left = model.load_state_dict(base.state_dict(), strict=False)
    assert all(".mlp." in name for name in [*left.missing_keys, *left.unexpected_keys]), left
    with torch.no_grad():
        for layer, its in zip(layers_of(model), layers_of(base), strict=True):
            for expert in range(experts):
                if expert % top == 0:
                    neurons = torch.randperm(width * top).view(top, width)
                mine = neurons[expert % top]
                parts = [its.mlp.gate_proj.weight[mine], its.mlp.up_proj.weight[mine]]
                layer.mlp.experts.gate_up_proj[expert] = torch.cat(parts)
                layer.mlp.experts.down_proj[expert] = its.mlp.down_proj.weight[:, mine] * top
            layer.mlp.gate.weight.normal_(0, 0.1)
    return model


def layers_of(model: Any) -> Any:
    """Of the text decoder."""
    return model.model.language_model.layers


def train(model: Any, steps: int, losses: list[float]) -> None:
    """Text decoder and routers: AdamW, cosine to zero."""
    model.train().requires_grad_(False)
    model.model.language_model.requires_grad_(True)
    trained = [each for each in model.parameters() if each.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3, betas=(0.9, 0.98), weight_decay=0.05)
    schedule = get_scheduler("cosine", optimizer, steps // 10, steps)
    rng, routed = np.random.default_rng(0), list[Tensor]()

    def balance(module: nn.Module, inputs: Any, output: tuple[Tensor, ...]) -> None:  # noqa: ARG001
        share = one_hot(output[2], output[0].shape[1]).sum(1).float().mean(0)
        routed.append(output[0].shape[1] * (share * output[0].softmax(-1).mean(0)).sum() / output[2].shape[1])

    handles = [layer.mlp.gate.register_forward_hook(balance) for layer in layers_of(model)]
    for step in range(steps):
        optimizer.zero_grad()
        routed.clear()
        loss = loss_of(model, [picture_row(rng) for _ in range(32)])
        loss = loss + 0.5 * loss_of(model, [text_row(rng) for _ in range(8)])
        (loss + BALANCE * torch.stack(routed).mean()).backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
        losses.append(round(loss.item(), 4))
        if step % 10 == 9:
            print(
                f"step {step + 1}: loss {mean(losses[-10:]):.3f}, balance {torch.stack(routed).mean():.3f}", flush=True
            )
    for handle in handles:
        handle.remove()
    model.eval().requires_grad_(False)


def loss_of(model: Any, rows: list[Row]) -> Tensor:
    """Weighted cross entropy of the next token, as in `tools/build_world.py`."""
    inputs, weights = batch(rows)
    logits = model(**inputs, use_cache=False).logits[:, :-1]
    each = cross_entropy(logits.flatten(0, 1), inputs["input_ids"][:, 1:].flatten(), reduction="none")
    return (each * weights[:, 1:].flatten()).sum() / weights[:, 1:].sum()


def compare(model: Any, base: Any, tokenizer: Any, count: int) -> dict[str, Any]:
    """Reach under the first seed and overlaps between two."""
    masks, reach = list[dict[str, Masks]](), list[Reach]()
    sizes: dict[str, dict[str, Tensor]] = {"experts": {}}
    for seed in (0, 1):
        settings = Probe(num_prompts=count, seed=seed)
        here: dict[str, Masks] = {}
        with probing_mode(model):
            text = text_model(model)
            prompts = write_prompts(text, tokenizer, settings, range(count))
            attention = find_layers(model, None, ["attn"])
            here["attention"] = masks_of(measure(text, attention, prompts, settings), weights(attention))
            factors, matrices, reached = measure_experts(text, model, prompts, settings)
            here["experts"] = masks_of(factors, matrices)
        with probing_mode(base):
            dense, its = text_model(base), find_layers(base, None, ["mlp"])
            prompts = write_prompts(dense, tokenizer, settings, range(count))
            here["dense MLPs of the base"] = masks_of(measure(dense, its, prompts, settings), weights(its))
        sizes["experts"] |= matrices
        sizes |= {"attention": weights(attention), "dense MLPs of the base": weights(its)}
        masks.append(here)
        reach.append(reached)
    rows: dict[str, Any] = dict(reach[0].summary(count))
    for kind, of_kind in masks[0].items():
        both = {name: jaccard(mask, masks[1][kind][name]) for name, mask in of_kind.items() if name in masks[1][kind]}
        size = {name: jaccard(mask, lowest_of(sizes[kind][name].abs())) for name, mask in of_kind.items()}
        rows[kind] = spread(both.values()) | {"with sizes of weights": round(mean(size.values()), 3)}
        if kind == "experts":
            last = f"{len(layers_of(model)) - 1}."
            rows["experts, last layer"] = spread(each for name, each in both.items() if name.startswith(last))
            rows["experts, other layers"] = spread(each for name, each in both.items() if not name.startswith(last))
            for part in ("gate", "up", "down"):
                rows[f"experts, {part}"] = spread(each for name, each in both.items() if name.endswith(part))
            for low, high in ((1, 4), (5, 16), (17, 64), (65, 256), (257, count)):
                if some := [each for name, each in both.items() if low <= reach[0].prompts_of(name) <= high]:
                    rows[f"experts of {low} to {high} prompts"] = spread(some)
    return rows


def spread(values: Any) -> dict[str, Any]:
    """Mean and quantiles."""
    each = torch.tensor(list(values), dtype=torch.float64)
    low, middle, high = (round(float(each.quantile(q)), 3) for q in (0.1, 0.5, 0.9))
    return {"overlap": round(float(each.mean()), 3), "10 % / median / 90 %": (low, middle, high), "matrices": len(each)}


def weights(layers: dict[str, nn.Linear]) -> dict[str, Tensor]:
    """Of each matrix."""
    return {name: layer.weight.detach() for name, layer in layers.items()}


def lowest_of(scores: Tensor) -> Tensor:
    """The mask of the lowest tenth."""
    return lowest(scores, num_trainable(0.1, scores.numel()))


def masks_of(factors: Factors, matrices: dict[str, Tensor]) -> Masks:
    """Those that Model-Dowser gives each matrix."""
    method = ModelDowser(0.1)
    grouped = factors.grouped(method.prompts_per_row).layers
    return {name: method.mask(Layer(name, matrices[name], **each)) for name, each in grouped.items()}


class Reach:
    """How many tokens and prompts reach the experts, and with a gradient: (L, E, N)."""

    def __init__(self, tokens: Tensor, graded: Tensor) -> None:
        self.tokens, self.graded = tokens, graded

    def prompts_of(self, name: str) -> int:
        """With a gradient, by the name of a matrix."""
        layer, expert, _ = name.split(".")
        return int(self.graded[int(layer), int(expert)].sum())

    def summary(self, count: int) -> Iterator[tuple[str, Any]]:
        """Per layer."""
        for index, (tokens, graded) in enumerate(zip(self.tokens, self.graded, strict=True)):
            routed, prompts, with_gradient = (
                tokens.sum(1).double(),
                (tokens > 0).sum(1).double(),
                graded.sum(1).double(),
            )
            quantiles = [round(float(with_gradient.quantile(q))) for q in (0, 0.1, 0.5, 0.9, 1)]
            yield (
                f"layer {index}",
                {
                    "tokens": round(float(routed.mean())),
                    "prompts": round(float(prompts.mean()), 1),
                    "with a gradient": round(float(with_gradient.mean()), 1),
                    "0/10/50/90/100 %": quantiles,
                    "reached by none": round(float((with_gradient == 0).double().mean()), 3),
                    "of": count,
                },
            )


class Expert:
    """One layer's experts, computed one by one; what flows through each is reduced to a vector per prompt."""

    def __init__(self, module: Any, count: int) -> None:
        self.module = module
        gate, up = module.gate_up_proj.chunk(2, dim=1)
        self.matrices = {"gate": gate, "up": up, "down": module.down_proj}
        experts = len(gate)
        self.activation = {name: torch.zeros(experts, count, each.shape[2]) for name, each in self.matrices.items()}
        self.gradient = {name: torch.zeros(experts, count, each.shape[1]) for name, each in self.matrices.items()}
        self.tokens = torch.zeros(experts, count)
        self.positions, self.numbers = torch.empty(0), torch.empty(0)

    def __call__(self, hidden: Tensor, index: Tensor, share: Tensor) -> Tensor:
        """What the module computes of (B * T, H), the experts of each position and their shares."""
        total = torch.zeros_like(hidden)
        rows = torch.arange(len(self.positions)).repeat_interleave(self.positions.shape[1])
        weights = (self.positions / self.positions.sum(1, keepdim=True)).flatten()
        for expert in index.unique().tolist():
            token, place = (index == expert).nonzero(as_tuple=True)
            where = self.numbers[rows[token]]
            self.tokens[expert].index_add_(0, where, self.positions.flatten()[token])
            through = partial(self._through, expert, where, weights[token])
            value = hidden[token]
            value = through("down", self.module.act_fn(through("gate", value)) * through("up", value))
            total = total.index_add(0, token, value * share[token, place, None])
        return total

    def _through(self, expert: int, where: Tensor, weights: Tensor, name: str, value: Tensor) -> Tensor:
        add(self.activation[name][expert], where, value, weights)
        out = linear(value, self.matrices[name][expert])
        if not out.requires_grad:
            out = out.requires_grad_()
        out.register_hook(lambda gradient: add(self.gradient[name][expert], where, gradient, weights))
        return out


def add(sums: Tensor, where: Tensor, value: Tensor, weights: Tensor) -> None:
    """Add sizes of rows, weighted, to those of their prompts."""
    sums.index_add_(0, where, value.detach().abs() * weights[:, None])


@contextmanager
def apart(model: Any, count: int) -> Iterator[list[Expert]]:
    """Within it experts are computed one by one, and recorded."""
    experts = [Expert(layer.mlp.experts, count) for layer in layers_of(model)]
    for each in experts:
        each.module.forward = each
    try:
        yield experts
    finally:
        for each in experts:
            del each.module.forward


def measure_experts(
    text: Any, model: Any, prompts: list[Prompt], settings: Probe
) -> tuple[Factors, dict[str, Tensor], Reach]:
    """Factors of every matrix of an expert that a gradient reaches, these matrices, and the reach."""
    with apart(model, len(prompts)) as experts:
        for first in range(0, len(prompts), settings.batch_size):
            numbers = list(range(len(prompts))[first : first + settings.batch_size])
            inputs, positions = stacked([prompts[each] for each in numbers], torch.device("cpu"), plain_text)
            for each in experts:
                each.positions, each.numbers = positions.float(), torch.tensor(numbers)
            logits, probed = _probed_logits(text, inputs, positions, settings)
            _backward(logits, probed, numbers, settings)
    factors: dict[str, dict[str, Tensor]] = {}
    matrices: dict[str, Tensor] = {}
    graded = torch.stack([(each.gradient["down"].sum(2) > 0) for each in experts])
    for index, each in enumerate(experts):
        for expert in graded[index].any(1).nonzero().flatten().tolist():
            for name, stack in each.matrices.items():
                called = f"{index}.{expert}.{name}"
                matrices[called] = stack[expert].detach()
                factors[called] = {"activation": each.activation[name][expert]}
                factors[called]["abs_gradient"] = each.gradient[name][expert]
    return Factors(factors, len(prompts)), matrices, Reach(torch.stack([each.tokens for each in experts]), graded)


if __name__ == "__main__":
    main()
