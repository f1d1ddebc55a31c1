"""GGUF to Hugging Face: a Llama with its dequantised weights, and the byte-level BPE tokenizer that the file describes.

GGUF keeps the rows of q and k in the order that its rotary embedding wants: pairs of neighbours, where Hugging Face has
two halves. So they are put back.
"""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf.quants import dequantize
from numpy.typing import NDArray
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

_OF_LAYER = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_WHOLE = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}
_CONTROL = 3  # gguf.TokenType


def halves(weight: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """The rows of each head from pairs (0, n, 1, n + 1, ...) to halves (0, 1, ..., n, n + 1, ...).

    Args:
        weight: (heads * 2n, in).
        heads: of queries, or of keys.
    """
    pairs = weight.reshape(heads, weight.shape[0] // heads // 2, 2, -1)
    return pairs.swapaxes(1, 2).reshape(weight.shape)


def read_fields(path: Path) -> dict[str, Any]:
    """The metadata of a GGUF file, as plain values."""
    return {name: field.contents() for name, field in gguf.GGUFReader(path).fields.items()}


def llama_of(path: Path) -> LlamaForCausalLM:
    """The model of a GGUF file of a Llama with tied embeddings, float32.

    Raises:
        ValueError: it is of another architecture.
        RuntimeError: tensors are missing or left over.
    """
    fields = read_fields(path)
    if fields["general.architecture"] != "llama":
        raise ValueError(f"{path}: got the architecture {fields['general.architecture']!r}, expected llama")
    heads = fields["llama.attention.head_count"], fields["llama.attention.head_count_kv"]
    config = LlamaConfig(
        vocab_size=len(fields["tokenizer.ggml.tokens"]),
        hidden_size=fields["llama.embedding_length"],
        intermediate_size=fields["llama.feed_forward_length"],
        num_hidden_layers=fields["llama.block_count"],
        num_attention_heads=heads[0],
        num_key_value_heads=heads[1],
        max_position_embeddings=fields["llama.context_length"],
        rms_norm_eps=round(fields["llama.attention.layer_norm_rms_epsilon"], 9),  # kept as float32 there
        rope_parameters={"rope_type": "default", "rope_theta": fields["llama.rope.freq_base"]},
        tie_word_embeddings=True,
        bos_token_id=fields["tokenizer.ggml.bos_token_id"],
        eos_token_id=fields["tokenizer.ggml.eos_token_id"],
        pad_token_id=fields["tokenizer.ggml.padding_token_id"],
    )
    weights = {}
    for tensor in gguf.GGUFReader(path).tensors:
        weight = dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        name = _WHOLE.get(tensor.name)
        if name is None:
            _, layer, kind, _ = tensor.name.split(".")
            name = f"model.layers.{layer}.{_OF_LAYER[kind]}.weight"
            if kind in ("attn_q", "attn_k"):
                weight = halves(weight, heads[kind == "attn_k"])
        weights[name] = torch.from_numpy(np.ascontiguousarray(weight))
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    model = LlamaForCausalLM(config)
    model.load_state_dict(weights)
    return model.eval()


def tokenizer_of(path: Path) -> PreTrainedTokenizerFast:
    """The tokenizer of a GGUF file with byte-level BPE, whose digits stand alone, as SmolLM's do.

    Raises:
        ValueError: the file describes another kind.
    """
    fields = read_fields(path)
    kind = fields["tokenizer.ggml.model"], fields.get("tokenizer.ggml.pre")
    if kind != ("gpt2", "smollm"):
        raise ValueError(f"{path}: got the tokenizer {kind}, expected ('gpt2', 'smollm')")
    tokens = fields["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE(vocab={token: number for number, token in enumerate(tokens)}, merges=merges))
    bytes_of = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), bytes_of])
    tokenizer.decoder = decoders.ByteLevel()
    types = zip(tokens, fields["tokenizer.ggml.token_type"], strict=True)
    controls = [AddedToken(token, special=True, normalized=False) for token, of in types if of == _CONTROL]
    tokenizer.add_special_tokens(controls)
    named = {name: tokens[fields[f"tokenizer.ggml.{key}_token_id"]] for name, key in _SPECIAL.items()}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **named)


_SPECIAL = {"bos_token": "bos", "eos_token": "eos", "pad_token": "padding", "unk_token": "unknown"}
