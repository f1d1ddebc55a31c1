"""Train some entries of a model in a loop of one's own, with any optimizer, and prove that no other moved.

    with train_only(model, masks) as trained:
        optimizer = torch.optim.AdamW(trained.parameters(), lr=1e-3)
        for batch in loader:
            model(**batch).loss.backward()
            torch.nn.utils.clip_grad_norm_(trained.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
        trained.save_patch("patch.safetensors")

The optimizer sees k values of each matrix and nothing else (`dowser_pl/masking/compact.py`); after each of its steps
they are written back into the model.
"""

import gc
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary, WeakValueDictionary

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import LBFGS, Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from transformers import PreTrainedModel

from dowser_pl import __version__
from dowser_pl.distributed import collectives
from dowser_pl.errors import DowserError
from dowser_pl.integrations.masks import Masks
from dowser_pl.integrations.plain import check_plain
from dowser_pl.integrations.protectable import Protectable
from dowser_pl.masking import BaseModel, CompactEntries, check_reached
from dowser_pl.patches import save_patch

__all__ = ["Trained", "train_only", "trained_inside"]


class Trained:
    """What is trained of a model, inside `train_only`.

    Attributes:
        entries: masks, values and the base beside them.
        of: the model.
        frozen_digest: content hash of all that is not trained, from before the first step.
    """

    def __init__(
        self, of: Protectable, base: BaseModel, entries: CompactEntries, method: Mapping[str, Any] | None
    ) -> None:
        self.entries, self.of, self._base, self._method = entries, of, base, method
        self.frozen_digest = self._frozen_digest()

    def parameters(self) -> list[nn.Parameter]:
        """(k,) float32 values of each matrix: for optimizers, clipping and schedules."""
        return self.entries.parameters()

    def base_in_place(self) -> AbstractContextManager[None]:
        """The model is its base meanwhile, and as it was afterwards, bit for bit; for forward passes."""
        return self.entries.base_in_place()

    def state_dict(self) -> dict[str, Any]:
        """Masks, values and base, for a checkpoint beside the optimizer's."""
        return {"entries": self.entries.state_dict(), "frozen_digest": self.frozen_digest}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`: the values are written into the model.

        Raises:
            DowserError: if it is of other masks, or of another base.
        """
        entries = state["entries"]
        CompactEntries.check_names(self.entries.weights, entries)
        bits = self.entries.packed.bits
        masks = all(entries[name]["mask"].equal(bits[name]) for name in bits)
        base = all(entries[name]["base"].equal(self.entries.base_values(name)) for name in bits) if masks else True
        if not (masks and base and state["frozen_digest"] == self.frozen_digest):
            raise DowserError(
                f"the state has {'another base' if masks else 'other masks'} than the model. Fix: go on with the model "
                "and the masks that it was made with"
            )
        self.entries._restore(entries)

    def verify(self) -> None:
        """Compare every frozen tensor and entry with the base, bit by bit.

        Raises:
            RuntimeError: if one moved.
        """
        counts, _ = self.entries.verify()
        if self._frozen_digest() != self.frozen_digest:
            raise RuntimeError(
                f"some of {counts.entries:,} frozen entries, or another part of the model, changed: got another "
                "content hash than before training. Something else than trained.parameters() was trained, or the model "
                "was converted to another dtype"
            )

    def save_patch(self, path: str | Path) -> None:
        """Write what was trained as a small file, which `python -m dowser_pl patch` applies to the base.

        Raises:
            RuntimeError: if a frozen entry moved.
            DowserError: if the files of this model family have no such tensors.
        """
        self.verify()
        changes = self._base.changes(self.entries.state_dict(base=False), self.of.state_dict())
        head = {"base": self._base.head, "method": self._method, "config": None, "scores": None}
        save_patch(Path(path), changes, head | {"created_by": f"dowser_pl {__version__}"})

    def _frozen_digest(self) -> str:
        return self._base.frozen_digest(self.of.state_dict(), self.entries.frozen_digests())


@contextmanager
def train_only(model: PreTrainedModel | Protectable, masks: Masks | Mapping[str, Tensor]) -> Iterator[Trained]:
    """Let nothing train but the entries of some masks, until the block ends; then see that nothing else moved.

    Args:
        model: on the device where it is trained, before any wrapper.
        masks: name of a matrix -> (O, I) bool, True = trained.

    Raises:
        DowserError: if a mask is of no matrix of the model, or of a tied one, if several processes train, or an
            optimizer steps that does not train what is trained here.
        RuntimeError: at the end, if anything else moved.
    """
    if collectives.world_size() > 1:
        raise DowserError(
            f"got {collectives.world_size()} processes, expected one: nobody would average the gradients of entries. "
            "Fix: python -m dowser_pl fit --trainer.strategy ddp, or lightning.Trainer with the callback Dowser"
        )
    of = _protectable(model, masks)
    network = of.network
    check_plain(network)
    _refuse_wrapped(network)
    modules = dict(network.named_modules())
    if network in _OPEN:
        raise DowserError(
            "got a model that is in a block of train_only already, expected one block at a time: each would take the "
            "gradients of the other. Fix: one block with all masks"
        )
    odd = [name for name in masks if not isinstance(modules.get(name), nn.Linear)]
    if odd or not masks:
        raise DowserError(
            f"got {len(masks)} masks, of which {len(odd)} are of no matrix of this {type(network).__name__} (the first "
            f"is {odd[:1]}), expected names of torch.nn.Linear modules, as choose_masks gives them"
        )
    if not isinstance(masks, Masks):
        other = {name: mask.dtype for name, mask in masks.items() if mask.dtype != torch.bool}
        if other:
            raise DowserError(
                f"got masks of {', '.join(map(str, set(other.values())))}, expected bools, True = trained"
            )
    weights: dict[str, nn.Parameter] = {name: modules[name].weight for name in masks}
    _refuse_tied(network, weights)
    before = [(parameter, parameter.requires_grad) for parameter in network.parameters()]
    tuned = {id(weight) for weight in weights.values()}
    for parameter, _ in before:
        parameter.requires_grad_(id(parameter) in tuned)
    try:
        base = of.base_model(list(masks))
        entries = CompactEntries(weights, masks.packed if isinstance(masks, Masks) else masks)
        with _stepping(entries):
            trained = _OPEN[network] = Trained(of, base, entries, masks.method if isinstance(masks, Masks) else None)
            yield trained
            trained.verify()
    finally:
        _OPEN.pop(network, None)
        for parameter, needed in before:
            parameter.requires_grad_(needed)


_OPEN: WeakKeyDictionary[nn.Module, Trained] = WeakKeyDictionary()
"""Models inside of a block."""


def trained_inside(network: nn.Module) -> Trained | None:
    """What is trained of a model right now; None = it is in no block of `train_only`."""
    return _OPEN.get(network)


def _protectable(model: PreTrainedModel | Protectable, masks: Mapping[str, Tensor]) -> Protectable:
    """Of `choose_masks`, which knows the processor, where it is of this model."""
    if isinstance(model, Protectable):
        return model
    known = masks.of if isinstance(masks, Masks) else None
    return known if known is not None and known.network is model else Protectable(model)


def _refuse_wrapped(network: nn.Module) -> None:
    """DDP waits for gradients of all that took one when it was made, and a model does not know of it."""
    found = gc.get_objects() if torch.distributed.is_initialized() else ()
    if any(isinstance(each, DistributedDataParallel) and each.module is network for each in found):
        raise DowserError(
            f"got a {type(network).__name__} that is wrapped in DistributedDataParallel, expected it without: one "
            "process has nothing to average. Fix: leave the wrapper out"
        )


def _refuse_tied(network: PreTrainedModel, weights: Mapping[str, nn.Parameter]) -> None:
    names = {id(weight): name for name, weight in weights.items()}
    uses = Counter(id(each) for _, each in network.named_parameters(remove_duplicate=False))
    tied = next((name for number, name in names.items() if uses[number] > 1), None)
    if tied is not None:
        raise DowserError(
            f"the weight of {tied} is used in another place of the model too (tied), expected matrices that own "
            "theirs: a mask on one use would bind the other. Fix: leave it out of the masks"
        )


_CLOSED: WeakValueDictionary[int, nn.Parameter] = WeakValueDictionary()
"""Values of blocks that have ended: their matrices would never hear of a step."""


@contextmanager
def _stepping(entries: CompactEntries) -> Iterator[None]:
    """Meanwhile values are written back after the steps of every optimizer that has some, whoever makes it."""
    values = {id(each): each for each in entries.parameters()}
    matrices = {id(weight): name for name, weight in entries.weights.items()}
    stepped = False

    def before(optimizer: Optimizer, *_: Any) -> None:
        held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        whole = [name for number, name in matrices.items() if number in held]
        if whole or held & set(_CLOSED):
            what = (
                f"all of {whole[0]} ({len(whole)} of {len(matrices)} matrices)" if whole else "values of another block"
            )
            raise DowserError(
                f"got a {type(optimizer).__name__} that holds {what}, expected one over what is trained here. Fix: "
                "build it inside the block, over trained.parameters()"
            )
        if isinstance(optimizer, LBFGS) and held & set(values):
            raise DowserError(
                "got LBFGS, which asks for several losses within a step, expected an optimizer that makes its step "
                "from one: values are written into the model after a step. Fix: such as AdamW"
            )
        if held & set(values):
            check_reached([values[each] for each in held & set(values)])
            entries.mask_gradients()

    def after(optimizer: Optimizer, *_: Any) -> None:
        nonlocal stepped
        if any(id(parameter) in values for group in optimizer.param_groups for parameter in group["params"]):
            stepped = True
            entries.after_step(optimizer)

    hooks = [register_optimizer_step_pre_hook(before), register_optimizer_step_post_hook(after)]
    try:
        yield
        if not stepped and any(each.grad is not None for each in values.values()):
            raise DowserError(
                "gradients came and no optimizer made a step with them, so nothing was trained. Fix: build the "
                "optimizer inside the block, over trained.parameters()"
            )
    finally:
        for hook in hooks:
            hook.remove()
        entries.close()
        _CLOSED.update(values)
