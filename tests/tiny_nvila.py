"""NVILA's folders as they are published, with random weights: names and shapes of tensors written down here.

Nothing of them comes from our own classes: they are those of Qwen2ForCausalLM, SiglipVisionModel and VILA's projector
in files of transformers 4.46, by which VILA saves (`llava_arch.py` at b760c34).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import Qwen2Config, SiglipVisionConfig

from tests.tiny_nvila_processor import IMAGE, MEDIA, PATCH, SIDE, VIDEO, VOCABULARY, Layout, write_processor_files

Shapes = dict[str, tuple[int, ...]]
KINDS = {2: "mlp_downsample_2x2_fix", 3: "mlp_downsample_3x3_fix"}
ROWS = len(VOCABULARY) - len(MEDIA)  # as the published vocabulary of 151,648 stops before <vila/sentinel>
TEXT = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "vocab_size": ROWS,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-6,
    "rope_theta": 700.0,  # that of no class by itself
    "rope_scaling": None,
    "hidden_act": "silu",
    "bos_token_id": ROWS - 5,
    "eos_token_id": ROWS - 3,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "use_sliding_window": False,
    "top_k": 50,  # VILA's configs hold such defaults of generation too
}
VISION = {
    "architectures": ["SiglipVisionModel"],
    "model_type": "siglip_vision_model",
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": SIDE,
    "patch_size": PATCH,
    "layer_norm_eps": 1e-6,
    "hidden_act": "gelu_pytorch_tanh",
    "vision_use_head": False,
    "torch_dtype": "bfloat16",
}
REAL_TEXT = TEXT | {"vocab_size": 151648, "hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28}
REAL_TEXT |= {"num_attention_heads": 12, "num_key_value_heads": 2, "rope_theta": 1e6, "max_position_embeddings": 32768}
REAL_VISION = VISION | {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27}
REAL_VISION |= {"num_attention_heads": 16, "image_size": 448, "patch_size": 14}


def _linear(name: str, out: int, width: int, bias: bool = True) -> Shapes:
    return {f"{name}.weight": (out, width)} | ({f"{name}.bias": (out,)} if bias else {})


def _norm(name: str, width: int) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def llm_shapes(config: dict[str, Any]) -> Shapes:
    """Those of `llm/`."""
    wide, mlp = config["hidden_size"], config["intermediate_size"]
    narrow = wide // config["num_attention_heads"] * config["num_key_value_heads"]
    shapes: Shapes = {"model.embed_tokens.weight": (config["vocab_size"], wide), "model.norm.weight": (wide,)}
    for layer in (f"model.layers.{i}" for i in range(config["num_hidden_layers"])):
        shapes |= _linear(f"{layer}.self_attn.q_proj", wide, wide)
        shapes |= _linear(f"{layer}.self_attn.k_proj", narrow, wide)
        shapes |= _linear(f"{layer}.self_attn.v_proj", narrow, wide)
        shapes |= _linear(f"{layer}.self_attn.o_proj", wide, wide, bias=False)
        shapes |= _linear(f"{layer}.mlp.gate_proj", mlp, wide, bias=False)
        shapes |= _linear(f"{layer}.mlp.up_proj", mlp, wide, bias=False)
        shapes |= _linear(f"{layer}.mlp.down_proj", wide, mlp, bias=False)
        shapes |= {f"{layer}.input_layernorm.weight": (wide,), f"{layer}.post_attention_layernorm.weight": (wide,)}
    return shapes if config["tie_word_embeddings"] else shapes | _linear("lm_head", config["vocab_size"], wide, False)


def vision_shapes(config: dict[str, Any]) -> Shapes:
    """Those of `vision_tower/`."""
    wide, mlp, patch = config["hidden_size"], config["intermediate_size"], config["patch_size"]
    embeddings = "vision_model.embeddings"
    shapes: Shapes = {
        f"{embeddings}.patch_embedding.weight": (wide, 3, patch, patch),
        f"{embeddings}.patch_embedding.bias": (wide,),
        f"{embeddings}.position_embedding.weight": ((config["image_size"] // patch) ** 2, wide),
    }
    for layer in (f"vision_model.encoder.layers.{i}" for i in range(config["num_hidden_layers"])):
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            shapes |= _linear(f"{layer}.self_attn.{name}", wide, wide)
        shapes |= _linear(f"{layer}.mlp.fc1", mlp, wide) | _linear(f"{layer}.mlp.fc2", wide, mlp)
        shapes |= _norm(f"{layer}.layer_norm1", wide) | _norm(f"{layer}.layer_norm2", wide)
    return shapes | _norm("vision_model.post_layernorm", wide)


def projector_shapes(width: int, out: int, downsample: int) -> Shapes:
    """Those of `mm_projector/`."""
    if downsample == 2:
        return _norm("layers.1", 4 * width) | _linear("layers.2", out, 4 * width) | _linear("layers.4", out, out)
    return (
        _norm("layers.1", 9 * width)
        | _linear("layers.2", 3 * width, 9 * width)
        | _norm("layers.4", 3 * width)
        | _linear("layers.5", out, 3 * width)
        | _linear("layers.7", out, out)
    )


def shapes_of(text: dict[str, Any], vision: dict[str, Any], downsample: int = 3) -> dict[str, Shapes]:
    """Folder -> names and shapes of its tensors."""
    return {
        "llm": llm_shapes(text),
        "vision_tower": vision_shapes(vision),
        "mm_projector": projector_shapes(vision["hidden_size"], text["hidden_size"], downsample),
    }


def random_weights(shapes: Shapes, seed: int, dtype: torch.dtype = torch.bfloat16) -> dict[str, Tensor]:
    """Numbers of a spread at which small models answer differently to different prompts; norms are around one."""
    generator = torch.Generator().manual_seed(seed)
    weights = {name: torch.randn(shape, generator=generator) * 0.2 for name, shape in shapes.items()}
    ones = {name for name in shapes if len(shapes[name]) == 1 and name.endswith("weight")}
    return {name: (1 + each if name in ones else each).to(dtype) for name, each in weights.items()}


def save_shards(weights: dict[str, Tensor], folder: Path, count: int) -> None:
    """Write `model.safetensors`, or so many files and their index."""
    folder.mkdir(parents=True, exist_ok=True)
    if count == 1:
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        return
    files = {f"model-{i + 1:05d}-of-{count:05d}.safetensors": sorted(weights)[i::count] for i in range(count)}
    for file, names in files.items():
        save_file({name: weights[name] for name in names}, folder / file, metadata={"format": "pt"})
    size = sum(each.numel() * each.element_size() for each in weights.values())
    index = {"metadata": {"total_size": size}, "weight_map": {name: file for file in files for name in files[file]}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))


def save_nvila(
    folder: Path,
    layout: Layout = "original",
    *,
    downsample: int = 3,
    tied: bool = True,
    shards: int = 1,
    seed: int = 0,
    dtype: torch.dtype = torch.bfloat16,
    **config: Any,
) -> dict[str, Tensor]:
    """Write a whole small NVILA; returns its tensors by the names of the single folder.

    Args:
        folder: made where it is not there.
        layout: whose folders and names.
        downsample: 2 or 3.
        tied: whether the head is the embedding, as in NVILA-Lite-2B.
        shards: files of `llm/`, or of the single folder.
        seed: of the weights.
        dtype: of the weights.
        config: over the keys of config.json.
    """
    told = str(dtype).removeprefix("torch.")
    text = TEXT | {"tie_word_embeddings": tied, "torch_dtype": told}
    vision = VISION | {"torch_dtype": told}
    shapes = shapes_of(text, vision, downsample)
    parts = {part: random_weights(each, seed + place, dtype) for place, (part, each) in enumerate(shapes.items())}
    if layout == "hf":
        settings = {"text_config": text, "vision_config": vision, "torch_dtype": told}
        settings |= {"architectures": ["NVILALiteForConditionalGeneration"]}
        if downsample == 2:  # published with several scales alone, which no `downsample` is said of
            settings |= {"model_type": "nvila", "downsample": 2}
        write_processor_files(folder, layout, **settings | config)
        generation = folder / "generation_config.json"
    else:
        architecture = "LlavaLlamaModel" if layout == "original" else "VILAForCausalLM"
        projector = {"architectures": ["MultimodalProjector"], "model_type": "v2l_projector"}
        projector |= {"mm_projector_type": KINDS[downsample], "torch_dtype": told}
        settings = {"llm_cfg": text, "vision_tower_cfg": vision, "mm_projector_cfg": projector}
        settings |= {
            "architectures": [architecture],
            "model_dtype": f"torch.{told}",
            "hidden_size": text["hidden_size"],
        }
        settings |= {"mm_vision_select_layer": -2, "mm_vision_select_feature": "cls_patch"}
        settings |= {"dynamic_s2": False, "s2": False, "ps3": False}
        if layout == "remote":
            code = {"AutoConfig": "modeling_vila.VILAConfig", "AutoModel": "modeling_vila.VILAForCausalLM"}
            settings |= {"auto_map": {"AutoProcessor": "auto_processor.VILAProcessor", **code}}
        write_processor_files(folder, layout, **settings | config)
        (folder / "mm_projector").mkdir()
        (folder / "mm_projector" / "config.json").write_text(json.dumps(projector, indent=2))
        if layout == "remote":
            (folder / "modeling_vila.py").write_text("raise RuntimeError('code that came with the model was run')\n")
        generation = folder / "llm" / "generation_config.json"
    generation.write_text(json.dumps({"eos_token_id": text["eos_token_id"], "repetition_penalty": 1.1}, indent=2))
    together = {f"{part}.{name}": tensor for part, each in parts.items() for name, tensor in each.items()}
    if layout == "hf":
        save_shards(together, folder, shards)
    else:
        for part, weights in parts.items():
            save_shards(weights, folder / part, shards if part == "llm" else 1)
    return together


def native_configs(text: dict[str, Any], vision: dict[str, Any]) -> dict[str, Any]:
    """The two parts as configs of transformers, and the numbers of the tokens."""
    parts = {"text_config": Qwen2Config(**text), "vision_config": SiglipVisionConfig(**vision)}
    return parts | {"image_token_id": IMAGE, "video_token_id": VIDEO}
