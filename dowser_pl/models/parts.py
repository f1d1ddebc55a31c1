"""The parts of a model beside the matrices that masks are for: projector, head, norms, embeddings, vision tower.

A parameter that fits no part is an error, not a guess.
"""

from collections.abc import Iterable

from torch import nn
from transformers import PreTrainedModel

from dowser_pl.errors import DowserError
from dowser_pl.models.layers import decoder_layers, text_model

__all__ = ["PARTS", "named_part"]

PARTS = ("projector", "lm_head", "norms", "embeddings", "vision")

# Names met between vision tower and text decoder; Qwen-VL and GLM-V keep the mergers inside the vision tower.
_MERGERS = ("merger", "deepstack_merger_list")
_PROJECTORS = (
    "multi_modal_projector",
    "projector",
    "connector",
    "language_projection",
    "qformer",
    "query_tokens",
    "image_newline",
)


def named_part(model: PreTrainedModel, part: str) -> dict[str, nn.Parameter]:
    """Parameters of one part, for those who choose to train it in full, unmasked.

    Args:
        model: the whole model; names are those of `model.named_parameters()`.
        part: "projector" (all between vision tower and text decoder, Q-Former included), "vision" (the tower
            without its mergers), "embeddings" (of the text decoder; the head too where they are tied),
            "norms" (of the text decoder, the last one included) or "lm_head".

    Raises:
        DowserError: unknown part, a model without it, a tied lm_head, or a parameter that fits no part.
    """
    if part not in PARTS:
        raise DowserError(f"got the part {part!r}, expected one of {list(PARTS)}.")
    finders = {
        "projector": _projector,
        "lm_head": _lm_head,
        "norms": _norms,
        "embeddings": _embeddings,
        "vision": _vision,
    }
    chosen = {id(weight) for weight in finders[part](model)}
    if not chosen:
        raise DowserError(f"got {type(model).__name__}, which has no {part}. Fix: leave {part!r} out.")
    return {name: weight for name, weight in model.named_parameters() if id(weight) in chosen}


def _vision_tower(model: PreTrainedModel) -> nn.Module:
    tower = model.get_encoder(modality="image")
    if tower is model or not isinstance(tower, nn.Module):
        raise DowserError(f"cannot find the vision tower of {type(model).__name__}. Fix: leave it frozen.")
    return tower


def _vision(model: PreTrainedModel) -> list[nn.Parameter]:
    named = _vision_tower(model).named_parameters()
    return [weight for name, weight in named if name.split(".")[0] not in _MERGERS]


def _projector(model: PreTrainedModel) -> list[nn.Parameter]:
    """What neither sees nor speaks; every remaining name must be a known one."""
    vision, text = _vision(model), list(_text_side(model))
    others = {id(weight) for weight in vision + text}
    between = {name: weight for name, weight in model.named_parameters() if id(weight) not in others}
    for name in between:
        if not set(name.split(".")) & {*_PROJECTORS, *_MERGERS}:
            raise DowserError(
                f"cannot tell what {name} of {type(model).__name__} is: got a parameter outside vision tower "
                f"and text model, expected one of {[*_PROJECTORS, *_MERGERS]} in its name. Fix: leave the "
                f"projector frozen."
            )
    return list(between.values())


def _text_side(model: PreTrainedModel) -> Iterable[nn.Parameter]:
    """Parameters of the text decoder (the whole inner language model, if there is one) and of the head."""
    inner = text_model(model)
    yield from (_text_decoder(model) if inner is model else inner).parameters()
    yield from model.get_output_embeddings().parameters()


def _text_decoder(model: PreTrainedModel) -> nn.Module:
    """The smallest module around the list of decoder layers: it also holds embeddings and the last norm."""
    layers = decoder_layers(model)
    around = [module for module in model.modules() if layers in set(module.modules())]
    return around[-2]  # modules() goes from the outside in; the last one is the list itself


def _lm_head(model: PreTrainedModel) -> list[nn.Parameter]:
    head, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
    if head is None or head.weight is embeddings.weight:
        raise DowserError(
            f"got {type(model).__name__}, whose lm_head is absent or tied to the embeddings, expected one "
            f"with its own weights. Fix: name 'embeddings' to train both, or leave 'lm_head' out."
        )
    return list(head.parameters())


def _norms(model: PreTrainedModel) -> list[nn.Parameter]:
    norms = [module for module in _text_decoder(model).modules() if "norm" in type(module).__name__.lower()]
    return [weight for norm in norms for weight in norm.parameters(recurse=False)]


def _embeddings(model: PreTrainedModel) -> list[nn.Parameter]:
    """Token embeddings, and the decoder's learned positions where it has them."""
    within = set(decoder_layers(model).modules())  # T5 keeps its relative positions inside a layer
    tables = [m for m in _text_decoder(model).modules() if isinstance(m, nn.Embedding) and m not in within]
    return [weight for table in [model.get_input_embeddings(), *tables] for weight in table.parameters()]
