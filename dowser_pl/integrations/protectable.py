"""A Hugging Face model in anybody's hands, as what the importance pass, the masks and the callback `Dowser` ask for.

A LightningModule that is not ours holds one as an attribute, whatever it calls it:

    self.model = AutoModelForImageTextToText.from_pretrained(folder)
    self.protectable = Protectable(self.model, AutoProcessor.from_pretrained(folder))

and builds its optimizer over `self.protectable.parameters()`. All else is done by the callback `Dowser`.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from dowser_pl.distributed.collectives import check_same
from dowser_pl.errors import DowserError
from dowser_pl.integrations.plain import PlainModel
from dowser_pl.masking import BaseModel, Protection, leave_out_of_buckets, trained_whole
from dowser_pl.models.generation import generation_tokens
from dowser_pl.models.layers import TARGETS, find_layers
from dowser_pl.models.names import saved_names
from dowser_pl.models.parts import named_part
from dowser_pl.models.quantized import is_quantized
from dowser_pl.models.weight_files import WeightFiles

__all__ = ["Protectable"]


class Protectable(PlainModel):
    """A Hugging Face model whose matrices may be masked.

    Args:
        network: the model as `from_pretrained` gave it, its weights being the base.
        processor: of that model, with which prompts are written; not asked for where masks are there already.
        targets: which matrices of the decoder layers are tuned: kinds, "attn" and "mlp", or names such as "q_proj".
        last_n_layers: tune those of the last n layers of the text decoder alone; None = of all.
        chat_template: text or path, where it is not that of the processor.
        also_train: further parts that a LightningModule trains in full, without a mask, such as "projector".

    Attributes:
        protected: what is trained instead of the matrices, as soon as that is decided.
        holds_checkpoint: whether the weights are not the base any more; such a model is not scored.
        files: that the model was read from; none are watched.

    Raises:
        DowserError: if that is no Hugging Face model, one in a wrapper, or one that processes hold parts of.
    """

    def __init__(
        self,
        network: PreTrainedModel,
        processor: Any = None,
        targets: Sequence[str] = TARGETS,
        last_n_layers: int | None = None,
        chat_template: str | None = None,
        also_train: Sequence[str] = (),
    ) -> None:
        super().__init__(network, processor, chat_template)
        self.targets, self.last_n_layers = targets, last_n_layers
        self._parts = [each for part in also_train for each in named_part(network, part).values()]
        self._owner: nn.Module | None = None
        self._prefix = "model."
        self.protected: Protection | None = None
        self.holds_checkpoint = self._reduced_elsewhere = False
        self.files = WeightFiles()
        for name, layer in self.tuned_layers().items():
            if is_quantized(layer):
                raise DowserError(
                    f"{name} is in 4 or 8 bits, expected weights that can be trained. Fix: load the model without a "
                    "quantization_config, or tune adapters (-c method/qlora_null_space)"
                )

    @property
    def path(self) -> str:
        """Hub id or folder of the base, as the model tells."""
        return str(self.network.name_or_path)

    @property
    def reduced_elsewhere(self) -> bool:
        """Whether gradients are averaged over processes by whoever decides on entries, not by a wrapper."""
        return self._reduced_elsewhere

    @reduced_elsewhere.setter
    def reduced_elsewhere(self, elsewhere: bool) -> None:
        self._reduced_elsewhere = elsewhere
        if elsewhere and self._owner is not None:
            leave_out_of_buckets(self._owner, self._prefix)

    def tuned_layers(self) -> dict[str, nn.Linear]:
        """Run-time name in the model -> matrix that may be masked."""
        return find_layers(self.network, self.last_n_layers, self.targets)

    def parameters(self) -> list[nn.Parameter]:
        """What an optimizer is to be built over: entries, once they are chosen; until then the matrices.

        Other parameters of the model that take a gradient come with them, trained without a mask.
        """
        weights = self.protected.weights if self.protected else {n: m.weight for n, m in self.tuned_layers().items()}
        masked = {id(weight) for weight in weights.values()}
        whole = [each for each in self.network.parameters() if each.requires_grad and id(each) not in masked]
        return [*(self.protected.parameters() if self.protected else weights.values()), *whole]

    def held_by(self, owner: nn.Module) -> "Protectable":
        """Itself, with the keys of the module that holds it, whose other parameters are none of its business.

        Of the model everything but the matrices and `also_train` stops taking gradients.

        Args:
            owner: a LightningModule, of which the model is a part.

        Raises:
            DowserError: if it is not.
        """
        if self._owner is owner:
            return self
        prefix = next((f"{name}." for name, part in owner.named_modules() if part is self.network), None)
        if prefix is None:
            raise DowserError(
                f"{type(owner).__name__} holds a Protectable of a {type(self.network).__name__} that is no part of it, "
                "so it would not be moved, trained or saved with it. Fix: self.model = model, before Protectable(model)"
            )
        self._owner, self._prefix = owner, prefix
        self.freeze_all_else()
        for parameter in self._parts:
            parameter.requires_grad_(True)
        return self

    def freeze_all_else(self) -> None:
        """Leave a gradient to the matrices alone."""
        tuned = {id(layer.weight) for layer in self.tuned_layers().values()}
        for parameter in self.network.parameters():
            parameter.requires_grad_(id(parameter) in tuned)

    def base_model(self, names: Sequence[str] | None = None) -> BaseModel:
        """What training begins from; to be asked before anything is trained.

        Args:
            names: of the matrices that are masked; None = all of `tuned_layers`.
        """
        layers: Any = (
            self.tuned_layers() if names is None else {name: self.network.get_submodule(name) for name in names}
        )
        keys = {name: f"{self._prefix}{name}.weight" for name in layers}
        whole = trained_whole(self, layers)
        files = saved_names(self.network)
        runtime = {key: key.removeprefix(self._prefix) for key in (*keys.values(), *whole)}
        saved = {key: files[name] for key, name in runtime.items() if name in files}
        tokens = {} if self._processor is None else generation_tokens(self.network, self.ending())
        base = BaseModel.of(self.path, self.state_dict(), keys, whole, saved, tokens)
        check_same(base.fingerprint, "weights")  # nothing would make them equal later
        return base

    def state_dict(self) -> dict[str, Tensor]:
        """Key -> tensor, with the keys of `base_model`."""
        return {f"{self._prefix}{name}": tensor for name, tensor in self.network.state_dict().items()}

    def named_parameters(self, remove_duplicate: bool = True) -> Iterator[tuple[str, nn.Parameter]]:
        """The parameters of the model by these keys; see `torch.nn.Module.named_parameters`."""
        for name, parameter in self.network.named_parameters(remove_duplicate=remove_duplicate):
            yield f"{self._prefix}{name}", parameter
