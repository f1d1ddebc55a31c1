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

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from transformers import PreTrainedModel

from dowser_pl import __version__
from dowser_pl.distributed import collectives
from dowser_pl.errors import DowserError
from dowser_pl.integrations.protectable import Protectable
from dowser_pl.integrations.scripts import Masks
from dowser_pl.masking import BaseModel, CompactEntries
from dowser_pl.masking.base import State
from dowser_pl.patches import save_patch

__all__ = ["Trained", "train_only"]


class Trained:
    """What is trained of a model, inside `train_only`.

    Attributes:
        entries: masks, values and the base beside them.
        frozen_digest: content hash of all that is not trained, from before the first step.
    """

    def __init__(
        self, of: Protectable, base: BaseModel, entries: CompactEntries, method: Mapping[str, Any] | None
    ) -> None:
        self.entries, self._of, self._base, self._method = entries, of, base, method
        self.frozen_digest = self._frozen_digest()

    def parameters(self) -> list[nn.Parameter]:
        """(k,) float32 values of each matrix: for optimizers, clipping and schedules."""
        return self.entries.parameters()

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        """Masks, values and base, for a checkpoint beside the optimizer's."""
        return self.entries.state_dict()

    def load_state_dict(self, state: State) -> None:
        """Go on from `state_dict`: the values are written into the model.

        Raises:
            DowserError: if it is of other masks, or of another base.
        """
        CompactEntries.check_names(self.entries.weights, state)
        for name, bits in self.entries.packed.bits.items():
            same = state[name]["mask"].equal(bits)
            if not same or not state[name]["base"].equal(self.entries.base_values(name)):
                raise DowserError(
                    f"the state has {'another base' if same else 'other masks'} than the model at {name}. Fix: go on "
                    "with the model and the masks that it was made with"
                )
        self.entries._restore(state)

    def verify(self) -> None:
        """Compare every frozen tensor and entry with the base, bit by bit.

        Raises:
            RuntimeError: if one moved.
        """
        counts, _ = self.entries.verify()
        if self._frozen_digest() != self.frozen_digest:
            raise RuntimeError(
                f"some of {counts.entries:,} frozen entries, or another part of the model, changed: got another "
                "content hash than before training. Something else than trained.parameters() was trained"
            )

    def save_patch(self, path: str | Path) -> None:
        """Write what was trained as a small file, which `python -m dowser_pl patch` applies to the base.

        Raises:
            RuntimeError: if a frozen entry moved.
            DowserError: if the files of this model family have no such tensors.
        """
        self.verify()
        changes = self._base.changes(self.entries.state_dict(base=False), self._of.state_dict())
        head = {"base": self._base.head, "method": self._method, "config": None, "scores": None}
        save_patch(Path(path), changes, head | {"created_by": f"dowser_pl {__version__}"})

    def _frozen_digest(self) -> str:
        return self._base.frozen_digest(self._of.state_dict(), self.entries.frozen_digests())


@contextmanager
def train_only(model: PreTrainedModel | Protectable, masks: Masks | Mapping[str, Tensor]) -> Iterator[Trained]:
    """Let nothing train but the entries of some masks, until the block ends; then see that nothing else moved.

    Args:
        model: on the device where it is trained, before any wrapper.
        masks: name of a matrix -> (O, I) bool, True = trained.

    Raises:
        DowserError: if a mask is of no matrix of the model, or several processes train.
        RuntimeError: at the end, if anything else moved.
    """
    if collectives.world_size() > 1:
        raise DowserError(
            f"got {collectives.world_size()} processes, expected one: nobody would average the gradients of entries. "
            "Fix: python -m dowser_pl fit --trainer.strategy ddp, or lightning.Trainer with the callback Dowser"
        )
    of = model if isinstance(model, Protectable) else Protectable(model)
    network = of.network
    modules = dict(network.named_modules())
    odd = [name for name in masks if not isinstance(modules.get(name), nn.Linear)]
    if odd or not masks:
        raise DowserError(
            f"got {len(masks)} masks, of which {len(odd)} are of no matrix of this {type(network).__name__} (the first "
            f"is {odd[:1]}), expected names of torch.nn.Linear modules, as choose_masks gives them"
        )
    weights = {name: modules[name].weight for name in masks}
    before = [(parameter, parameter.requires_grad) for parameter in network.parameters()]
    tuned = {id(weight) for weight in weights.values()}
    for parameter, _ in before:
        parameter.requires_grad_(id(parameter) in tuned)
    try:
        base = of.base_model(list(masks))
        entries = CompactEntries(weights, masks.packed if isinstance(masks, Masks) else masks)
        with _stepping(entries):
            trained = Trained(of, base, entries, masks.method if isinstance(masks, Masks) else None)
            yield trained
            trained.verify()
    finally:
        for parameter, needed in before:
            parameter.requires_grad_(needed)


@contextmanager
def _stepping(entries: CompactEntries) -> Iterator[None]:
    """Meanwhile values are written back after the steps of every optimizer that has some, whoever makes it."""
    values = {id(each) for each in entries.parameters()}
    matrices = {id(weight): name for name, weight in entries.weights.items()}

    def ids(optimizer: Optimizer) -> set[int]:
        return {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}

    def before(optimizer: Optimizer, *_: Any) -> None:
        whole = [name for number, name in matrices.items() if number in ids(optimizer)]
        if whole:
            raise DowserError(
                f"got a {type(optimizer).__name__} that holds all of {whole[0]} ({len(whole)} of {len(matrices)} "
                "matrices), expected one over what is trained of them. Fix: build it inside the block, over "
                "trained.parameters()"
            )
        if values & ids(optimizer):
            entries.mask_gradients()

    def after(optimizer: Optimizer, *_: Any) -> None:
        if values & ids(optimizer):
            entries.after_step(optimizer)

    hooks = [register_optimizer_step_pre_hook(before), register_optimizer_step_post_hook(after)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        entries.close()
