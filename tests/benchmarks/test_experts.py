"""What `benchmarks/experts.py` records of experts, against every expert computed at every position."""

import pytest
import torch

import experts
from dowser_pl.functional.random_streams import stream
from dowser_pl.importance import Probe, Prompt, probing_mode, write_prompts
from dowser_pl.models import load_model, load_processor
from dowser_pl.models.layers import text_model

SETTINGS = Probe(num_prompts=4, num_probes=2, num_tokens=16, batch_size=3, seed=3)


class Everywhere:
    """All experts at all positions of one prompt; those that are not routed there count nothing."""

    def __init__(self, module):
        self.module, self.passed = module, {}

    def __call__(self, hidden, index, share):
        total = 0
        for expert, stack in enumerate(self.module.gate_up_proj):
            routed = (index == expert).float()
            on = routed.sum(1, keepdim=True)
            gate, up = (hidden @ half.T for half in stack.chunk(2))
            for each in (gate, up):
                if not each.requires_grad:
                    each.requires_grad_()
            inner = self.module.act_fn(gate) * up
            out = inner @ self.module.down_proj[expert].T
            total = total + out * (routed * share).sum(1, keepdim=True)
            for name, value, output in (("gate", hidden, gate), ("up", hidden, up), ("down", inner, out)):
                self.passed[f"{expert}.{name}"] = ((value.detach().abs() * on).mean(0), output, on)
        return total


@pytest.mark.slow
def test_factors_are_those_of_dense_loops_over_prompts_and_experts():
    base, processor = load_model("embedded:world", dtype="float32"), load_processor("embedded:world")
    model = experts.upcycled(base, 16, 4).eval().requires_grad_(False)
    text = text_model(model)
    with probing_mode(model):
        prompts = write_prompts(text, processor.tokenizer, SETTINGS, range(4))
        prompts = [Prompt(each.tokens[: 7 + 3 * number]) for number, each in enumerate(prompts)]
        factors, matrices, reach = experts.measure_experts(text, model, prompts, SETTINGS)
    assert int(reach.tokens[0].sum()) == 4 * sum(len(each.tokens) for each in prompts) and len(matrices) > 200
    for number, prompt in enumerate(prompts):
        dense = [Everywhere(layer.mlp.experts) for layer in experts.layers_of(model)]
        for each in dense:
            each.module.forward = each
        logits = text(input_ids=prompt.tokens[None]).logits[0, -1]
        passed = {f"{index}.{name}": found for index, each in enumerate(dense) for name, found in each.passed.items()}
        outputs, random = [output for _, output, _ in passed.values()], stream(SETTINGS.seed, "probe", number)
        gradients = dict.fromkeys(passed, 0.0)
        for _ in range(SETTINGS.num_probes):
            signs = torch.randint(0, 2, logits.shape, generator=random) * 2.0 - 1.0
            found = torch.autograd.grad((signs * logits).sum(), outputs, retain_graph=True)
            gradients = {name: gradients[name] + each.abs() for name, each in zip(passed, found, strict=True)}
        for name, got in factors.layers.items():
            activation, _, on = passed[name]
            gradient = (gradients[name] * on).mean(0)
            torch.testing.assert_close(got["activation"][number], activation, rtol=1e-4, atol=1e-6)
            atol = 1e-5 * float(gradient.max())
            torch.testing.assert_close(got["abs_gradient"][number], gradient, rtol=1e-3, atol=atol)
        for each in dense:
            del each.module.forward
