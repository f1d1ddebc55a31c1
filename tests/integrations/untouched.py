"""Whether a call has left a model as it was: weights, modes, gradients, hooks, configs, and torch's random state."""

from contextlib import contextmanager

import torch
from PIL import Image


@contextmanager
def left_untouched(model, processor):
    """Put a model into an odd state, and compare all of it afterwards."""
    with torch.no_grad():  # transformers hangs idle hooks into a vision tower when it is first run
        model(**processor(text=["<image> what"], images=[Image.new("RGB", (36, 36))], return_tensors="pt"))
    model.train()
    parts = [module for module in model.modules() if not list(module.children())]
    for module in parts[::3]:
        module.eval()
    for parameter in list(model.parameters())[::2]:
        parameter.requires_grad_(False)
    model.get_output_embeddings().register_forward_hook(lambda *_: None)
    torch.manual_seed(7)
    before = _state(model)
    yield
    after = _state(model)
    for kind, found in before.items():
        assert after[kind] == found, kind


def _state(model):
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return {
        "weights": {name: each.detach().numpy().tobytes() for name, each in model.state_dict().items()},
        "modes": [module.training for module in model.modules()],
        "needs": [(each.requires_grad, each.grad is None) for each in model.parameters()],
        "hooks": [[list(getattr(module, kind)) for kind in hooks] for module in model.modules()],
        "on tensors": [bool(each._backward_hooks or each._post_accumulate_grad_hooks) for each in model.parameters()],
        "config": model.config.to_json_string(),
        "generation": model.generation_config.to_json_string(),
        "attributes": [sorted(vars(module)) for module in model.modules()],
        "random": torch.get_rng_state().tolist(),
    }
