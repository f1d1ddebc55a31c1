"""The published loop, written plainly: the oracle of the importance pass.

Forward again for every probe, weight gradients on, dense (O, I) products into a running mean
(released code of arXiv 2602.04509). Slow on purpose; shares nothing with the package but the probe vectors.
"""

import torch

from dowser_pl.functional.random_streams import stream


def published_loop(model, layers, prompts, num_probes, seed, group_size=4, everywhere=False):
    """`authors`: means of |g| and |h| over the group and its positions, then the product with |W|."""
    mean = {name: torch.zeros_like(layer.weight) for name, layer in layers.items()}
    count = 0
    for first in range(0, len(prompts), group_size):
        group = prompts[first : first + group_size]
        for probe in range(num_probes):
            recorded = per_row(model, layers, group, first, probe, seed, everywhere)
            count += 1
            for name, layer in layers.items():
                psi = torch.stack([g.abs().mean(dim=0) for _, g in recorded[name]]).mean(dim=0)
                a = torch.stack([h.abs().mean(dim=0) for h, _ in recorded[name]]).mean(dim=0)
                mean[name] += (torch.outer(psi, a) * layer.weight.detach().abs() - mean[name]) / count
    return mean


def paper_loop(model, layers, prompts, num_probes, seed, everywhere=False):
    """`paper`: per prompt the root of the mean squared probe gradient, then the product, then the mean."""
    mean = {name: torch.zeros_like(layer.weight) for name, layer in layers.items()}
    for index, prompt in enumerate(prompts):
        squares = dict.fromkeys(layers, 0.0)
        activation = {}
        for probe in range(num_probes):
            recorded = per_row(model, layers, [prompt], index, probe, seed, everywhere)
            for name in layers:
                h, g = recorded[name][0]
                squares[name] = squares[name] + (g**2).mean(dim=0) / num_probes
                activation[name] = h.abs().mean(dim=0)
        for name, layer in layers.items():
            product = torch.outer(squares[name].sqrt(), activation[name]) * layer.weight.detach().abs()
            mean[name] += (product - mean[name]) / (index + 1)
    return mean


def token_loop(model, layers, prompts, num_probes, seed, everywhere=False):
    """`token`: outer(|g|, |h|) position by position, then the mean over positions, probes and prompts."""
    mean = {name: torch.zeros_like(layer.weight) for name, layer in layers.items()}
    for index, prompt in enumerate(prompts):
        for probe in range(num_probes):
            recorded = per_row(model, layers, [prompt], index, probe, seed, everywhere)
            for name, [(h, g)] in recorded.items():
                for position in range(len(h)):
                    mean[name] += torch.outer(g[position].abs(), h[position].abs()) / len(h)
    count = len(prompts) * num_probes
    return {name: mean[name] / count * layer.weight.detach().abs() for name, layer in layers.items()}


def weight_loop(model, layers, prompts, num_probes, seed, everywhere=False):
    """`weight`: autograd's own derivative by the weights, squared, averaged, rooted."""
    square = {name: torch.zeros_like(layer.weight) for name, layer in layers.items()}
    for index, prompt in enumerate(prompts):
        random = stream(seed, "probe", index)
        for _ in range(num_probes):
            logits, _ = run(model, layers, prompt, everywhere)
            signs = torch.randint(0, 2, logits.shape, generator=random) * 2.0 - 1.0
            weights = [layer.weight for layer in layers.values()]
            gradients = torch.autograd.grad((signs * logits).sum(), weights)
            for name, gradient in zip(layers, gradients, strict=True):
                square[name] += gradient**2 / (len(prompts) * num_probes)
    return {name: square[name].sqrt() * layer.weight.detach().abs() for name, layer in layers.items()}


def run(model, layers, prompt, everywhere=False):
    """Logits (V,) at the last position (or (T, V) at all), and name -> (h (1, T, I), z (1, T, O) with its graph)."""
    outputs = {}

    def watch(name):
        return lambda module, inputs, output: outputs.__setitem__(name, (inputs[0].detach(), output))

    handles = [layer.register_forward_hook(watch(name)) for name, layer in layers.items()]
    logits = model(input_ids=prompt.tokens[None]).logits[0]
    logits = logits if everywhere else logits[-1]
    for handle in handles:
        handle.remove()
    return logits, outputs


def per_row(model, layers, group, first, probe, seed, everywhere=False):
    """name -> [(h (T, I), g (T, O)) per prompt], one forward and one backward per prompt, no padding."""
    recorded = {name: [] for name in layers}
    for row, prompt in enumerate(group):
        random = stream(seed, "probe", first + row)
        logits, outputs = run(model, layers, prompt, everywhere)
        signs = torch.stack(
            [torch.randint(0, 2, logits.shape, generator=random) * 2.0 - 1.0 for _ in range(probe + 1)]
        )[-1]
        gradients = torch.autograd.grad((signs * logits).sum(), [z for _, z in outputs.values()])
        for (name, (h, _)), g in zip(outputs.items(), gradients, strict=True):
            recorded[name].append((h.flatten(0, -2), g.flatten(0, -2)))  # shared experts read (T, I)
    return recorded


def exact_scores(model, layers, prompts):
    """`paper` with the exact Jacobian: one backward per logit."""
    mean = {name: torch.zeros_like(layer.weight) for name, layer in layers.items()}
    for prompt in prompts:
        logits, outputs = run(model, layers, prompt)
        squares = dict.fromkeys(layers, 0.0)
        for logit in logits:
            gradients = torch.autograd.grad(logit, [z for _, z in outputs.values()], retain_graph=True)
            for name, g in zip(outputs, gradients, strict=True):
                squares[name] = squares[name] + g[0] ** 2
        for name, layer in layers.items():
            norm = squares[name].mean(dim=0).sqrt()
            product = torch.outer(norm, outputs[name][0][0].abs().mean(dim=0)) * layer.weight.detach().abs()
            mean[name] += product / len(prompts)
    return mean
