"""Names of the tensors of a loaded model, and names of the same tensors in the files that it is saved to.

They differ: transformers renames, transposes, splits and joins tensors when it reads a checkpoint, and does the
opposite when it writes one. Which run-time tensor is which saved one is found by sending stand-ins without memory
through the very functions that `save_pretrained` calls, and looking where each comes out.
"""

from collections.abc import Mapping

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion
from transformers.modeling_utils import remove_tied_weights_from_state_dict

from dowser_pl.errors import DowserError

__all__ = ["SavedNames", "as_saved", "saved_names"]


class SavedNames(dict[str, str]):
    """Run-time name -> saved name; asking for a tensor that is not saved as one tensor says why.

    Args:
        names: of every tensor that is saved as it is.
        refused: run-time name of every other one -> what becomes of it.
    """

    def __init__(self, names: Mapping[str, str], refused: Mapping[str, str]) -> None:
        super().__init__(names)
        self._refused = dict(refused)

    def __missing__(self, name: str) -> str:
        """Say what becomes of a tensor without a saved name.

        Raises:
            DowserError: always.
        """
        why = self._refused.get(name, "the model has no such parameter or buffer")
        raise DowserError(
            f"{name} is not one tensor in the saved model: {why}. Fix: do not tune it, or tune another part"
        )


def saved_names(model: PreTrainedModel) -> SavedNames:
    """The name under which `model.save_pretrained` writes each parameter and persistent buffer.

    A model that came from `from_pretrained` is saved under the names of the files it came from.

    Args:
        model: a transformers model, on any device; nothing of it is copied.

    Returns:
        Names of the tensors that are written bit for bit as they are. Looking up another one with `[name]` raises
        a ValueError that says why: it is tied to one that is saved, not saved at all, or saved in another layout.
    """
    state = dict(model.state_dict())
    refused = dict.fromkeys(state, "save_pretrained leaves it out")
    for name in model._keys_to_ignore_on_save or ():
        state.pop(name, None)
    refused |= dict.fromkeys(state, "it is tied to another one")
    state = remove_tied_weights_from_state_dict(state, model)
    refused |= dict.fromkeys(state, "it is transposed, split or joined with others")
    stand_ins = {name: torch.empty_like(tensor, device="meta") for name, tensor in state.items()}
    runtime = {id(tensor): name for name, tensor in stand_ins.items()}
    saved: dict[str, Tensor] = revert_weight_conversion(model, dict(stand_ins))
    names = {runtime[id(tensor)]: name for name, tensor in saved.items() if id(tensor) in runtime}
    return SavedNames(names, {name: why for name, why in refused.items() if name not in names})


def as_saved(model: PreTrainedModel, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors that `model.save_pretrained` writes, under the names of the files the model came from.

    Args:
        model: a transformers model.
        state: run-time name -> tensor, those without memory included.

    Returns:
        Name in the files -> tensor: the same object where it is written as it is, a new one where it is transposed,
        split or joined; what is tied is there under each of its names, of which a file need not have all.
    """
    saved = {name: tensor for name, tensor in state.items() if name not in (model._keys_to_ignore_on_save or ())}
    return revert_weight_conversion(model, saved)
