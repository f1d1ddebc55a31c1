"""ONNX to Hugging Face: the DINOv2 backbone inside an exported graph.

The exporter keeps the names of biases and norms, renames the matrices (transposed, "onnx::MatMul_123") and folds the
position embeddings into constants. A matrix is named after the bias that is added to what it makes.
"""

from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from transformers import Dinov2Config, Dinov2Model

_BACKBONE = "backbone."
_OF_ATTENTION = {  # as the exporter knew them -> as they are called now
    "attention.attention.query": "attention.q_proj",
    "attention.attention.key": "attention.k_proj",
    "attention.attention.value": "attention.v_proj",
    "attention.output.dense": "attention.o_proj",
}
_HEAD_WIDTH = 64  # of all DINOv2 models


def backbone_weights(path: Path) -> dict[str, NDArray[np.float32]]:
    """Name in Hugging Face's `Dinov2Model` -> weight.

    Raises:
        ValueError: the graph has no position embeddings as a class's and a grid's.
    """
    graph = onnx.load(path).graph
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    used_by: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            used_by.setdefault(name, []).append(node)
    found = {name.removeprefix(_BACKBONE): each for name, each in constants.items() if name.startswith(_BACKBONE)}
    for name, each in constants.items():
        if name.startswith("onnx::MatMul") and (bias := _bias_behind(used_by[name][0], used_by)):
            found[bias.removeprefix(_BACKBONE).removesuffix("bias") + "weight"] = each.T
    width = found["embeddings.cls_token"].shape[-1]
    found["embeddings.position_embeddings"] = _positions(path, constants, width)
    found["embeddings.mask_token"] = np.zeros((1, width), np.float32)  # of pretraining; not exported, never used
    return {_renamed(name): np.ascontiguousarray(each, dtype=np.float32) for name, each in found.items()}


def _bias_behind(node: onnx.NodeProto, used_by: dict[str, list[onnx.NodeProto]]) -> str | None:
    adds = [each for each in used_by.get(node.output[0], []) if each.op_type == "Add"]
    names = [name for add in adds for name in add.input]
    return next((name for name in names if name.startswith(_BACKBONE) and name.endswith(".bias")), None)


def _positions(path: Path, constants: dict[str, NDArray[np.float32]], width: int) -> NDArray[np.float32]:
    """(1, 1 + side * side, width): that of the class token, and those of the grid."""
    others = [each for name, each in constants.items() if name.startswith("onnx::") and each.shape[::2] == (1, width)]
    parts = sorted(others, key=lambda each: each.shape[1])
    if len(parts) != 2 or parts[0].shape[1] != 1:
        raise ValueError(
            f"{path}: got constants of the shapes {[each.shape for each in parts]}, expected position embeddings: "
            f"(1, 1, {width}) of a class token and (1, side * side, {width}) of a grid"
        )
    return np.concatenate(parts, 1)


def _renamed(name: str) -> str:
    old = next((old for old in _OF_ATTENTION if old in name), None)
    return name if old is None else name.replace(old, _OF_ATTENTION[old])


def dinov2_of(path: Path) -> Dinov2Model:
    """The backbone of an ONNX file, float32.

    Raises:
        RuntimeError: tensors are missing or left over.
    """
    weights = backbone_weights(path)
    width, _, patch, _ = weights["embeddings.patch_embeddings.projection.weight"].shape
    side = round((weights["embeddings.position_embeddings"].shape[1] - 1) ** 0.5)
    config = Dinov2Config(
        hidden_size=width,
        num_hidden_layers=1 + max(int(name.split(".")[2]) for name in weights if name.startswith("encoder.layer.")),
        num_attention_heads=max(1, width // _HEAD_WIDTH),
        mlp_ratio=weights["encoder.layer.0.mlp.fc1.weight"].shape[0] // width,
        image_size=side * patch,
        patch_size=patch,
    )
    model = Dinov2Model(config)
    model.load_state_dict({name: torch.from_numpy(each.copy()) for name, each in weights.items()})
    return model.eval()
