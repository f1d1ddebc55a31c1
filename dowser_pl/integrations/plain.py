"""A plain Hugging Face model in a script: what is none is refused, and whatever is done with it leaves it as it was."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from dowser_pl.data.encoders import turn_ends
from dowser_pl.data.templates import ChatTemplate
from dowser_pl.distributed.models import device_of, is_sharded_model
from dowser_pl.errors import DowserError
from dowser_pl.models.agreement import check_vocabulary
from dowser_pl.models.generation import Ending, own_ends
from dowser_pl.models.text_only import tokenizer_of

__all__ = ["PlainModel", "check_autocast", "check_plain", "left_as_it_was"]

_WRAPPERS = ("module", "_orig_mod", "get_base_model")  # of DDP and its like, torch.compile, peft


def check_plain(network: Any) -> None:
    """Refuse what is no model as `from_pretrained` gives it.

    Raises:
        DowserError: for another class, such as a wrapper's, and for weights that processes hold parts of.
    """
    if not isinstance(network, PreTrainedModel):
        way = next((name for name in _WRAPPERS if hasattr(network, name)), None)
        hint = "give that"
        if way is not None:
            call = "()" if way == "get_base_model" else ""
            hint = f"give its .{way}{call}, or the model before it is wrapped"
        raise DowserError(
            f"got {type(network).__name__}, expected a Hugging Face model (PreTrainedModel) as from_pretrained "
            f"gives it. Fix: {hint}"
        )
    if is_sharded_model(network):
        raise DowserError(
            f"got a {type(network).__name__} whose weights are sharded over processes, expected whole ones. Fix: "
            "measure, choose, train and evaluate without fully_shard, FSDP and what accelerate makes of these, or with "
            "python -m dowser_pl fit -c strategy/fsdp2"
        )


def check_autocast(network: PreTrainedModel, autocast: torch.dtype | None = None) -> None:
    """Refuse a model that accelerate runs in half precision, where that is not said: parts of it are run alone too.

    Args:
        network: that may have gone through `Accelerator.prepare`.
        autocast: that it will be run under; None = what is entered already.

    Raises:
        DowserError: saying what to enter.
    """
    entered = autocast is not None or torch.is_autocast_enabled(device_of(network).type)
    if "_original_forward" in vars(network) and not entered:
        raise DowserError(
            f"got a {type(network).__name__} that accelerate has prepared for mixed precision, expected to be told "
            "which it is. Fix: do this before Accelerator.prepare, or drift within torch.autocast(device, dtype) and "
            "measure_importance with autocast=dtype"
        )


class PlainModel:
    """A model with all that it takes to have it write.

    Args:
        network: the model as `from_pretrained` gave it.
        processor: of that model; not asked for where nothing is written.
        chat_template: text or path, where it is not that of the processor.

    Raises:
        DowserError: see `check_plain`; or if the processor is none, or of another model.
    """

    def __init__(self, network: PreTrainedModel, processor: Any = None, chat_template: str | None = None) -> None:
        check_plain(network)
        if processor is not None:
            _check_processor(network, processor)
        self.network, self._processor, self.chat_template = network, processor, chat_template

    @property
    def processor(self) -> Any:
        """The processor of the model.

        Raises:
            DowserError: if there is none.
        """
        if self._processor is None:
            raise DowserError(
                "got no processor, expected that of the model: what it reads is written with its vocabulary. Fix: give "
                "AutoProcessor.from_pretrained(...) of the same folder, or of a model of text alone its AutoTokenizer"
            )
        return self._processor

    def ending(self) -> Ending:
        """What ends an answer: what the chat template writes behind one, and the model's own end tokens."""
        return self._ending

    @cached_property
    def _ending(self) -> Ending:
        ids, text = turn_ends(self.processor, self.chat_template)
        return Ending(tuple(dict.fromkeys([*own_ends(self.network, tokenizer_of(self.processor)), *ids])), text)

    def openers(self) -> tuple[str, str, str | None] | None:
        """What the chat template writes around a user's words; None without one."""
        try:
            return ChatTemplate(self.processor, self.chat_template).openers()
        except DowserError:
            return None


def _check_processor(network: PreTrainedModel, processor: Any) -> None:
    tokenizer = tokenizer_of(processor)
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise DowserError(
            f"got a {type(processor).__name__} as the processor, expected that of the model with its tokenizer, or the "
            "tokenizer. Fix: AutoProcessor.from_pretrained(...) or AutoTokenizer.from_pretrained(...)"
        )
    embeddings: Any = network.get_input_embeddings()
    check_vocabulary(str(network.name_or_path) or type(network).__name__, tokenizer, len(embeddings.weight))


@contextmanager
def left_as_it_was(network: nn.Module) -> Iterator[None]:
    """Afterwards the modes of its modules, what takes a gradient, and torch's random state are what they were.

    Args:
        network: the model, which may be put into any mode meanwhile.
    """
    modes = [(module, module.training) for module in network.modules()]
    needed = [(parameter, parameter.requires_grad) for parameter in network.parameters()]
    devices = {parameter.device for parameter, _ in needed if parameter.is_cuda}
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        for module, training in modes:
            module.training = training
        for parameter, was in needed:
            parameter.requires_grad_(was)
