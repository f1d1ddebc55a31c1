"""What a forward pass keeps for the backward pass: an estimate of the bytes, for decoders like Llama.

In the manner of Korthikanti et al. 2022 (arXiv 2205.05198, section 4), who count s b h (34 + 5 a s / h) bytes for a
layer of GPT in 16 bits with dropout. Counted anew for what a Llama layer of Hugging Face saves without dropout, in
bytes per token (e bytes an entry, h hidden size, q = heads x head size, v = key-value heads x head size, f MLP size):

    2 norms, which square their input in float32     8 h
    inputs of the matrices q/k/v, o, gate/up, down   e (2 h + q + f)
    attention: q, k, v (o's input is its result)     e (q + 2 v)
    MLP: gate, silu(gate), up                        3 e f

Attention that is not fused keeps its scores too, 4 a s bytes per token for a heads and s tokens, float32 out of the
softmax, and e a s more where they are rounded then. The loss takes 12 bytes per token and word of the vocabulary:
logits in float32, their log-softmax and its gradient, and e more where logits are not float32 by themselves. Where a
loss is taken at some positions alone, as replay does, it is 2 e bytes per token and word, of logits and their gradient,
3 e per position, and five float32 chunks of at most 32 MiB.

With gradient checkpointing every layer keeps its input alone, e h per token, and one layer is computed again at a
time. Layers below the first one that is trained keep nothing.
"""

from dataclasses import dataclass

__all__ = ["Batch", "Decoder", "activation_bytes"]

_LOSS = 12  # bytes per token and word, see above
_CHUNKS, _CHUNK_BYTES = 5, 2**25


@dataclass(frozen=True)
class Decoder:
    """Sizes of a text decoder.

    Args:
        layers: that keep something for the backward pass.
        hidden_size: h.
        query_size: q, heads times head size.
        key_value_size: v, key-value heads times head size.
        intermediate_size: f.
        heads: a.
        vocab_size: words.
        itemsize: e, bytes of an entry of an activation.
        fused_attention: whether scores are never stored (sdpa, flash attention).
        cast_bytes: weights that autocast rounds and keeps for the backward pass.
        unpacked_bytes: the largest matrix that is packed into 4 or 8 bits, unpacked for as long as it multiplies.
    """

    layers: int
    hidden_size: int
    query_size: int
    key_value_size: int
    intermediate_size: int
    heads: int
    vocab_size: int
    itemsize: int
    fused_attention: bool = True
    cast_bytes: int = 0
    unpacked_bytes: int = 0


@dataclass(frozen=True)
class Batch:
    """What one device computes at a time.

    Args:
        rows: conversations.
        tokens: of each, image tokens included.
        gradient_checkpointing: recompute each layer in the backward pass.
        positions: of all rows, at which alone a loss is taken; None = at all of them.
    """

    rows: int
    tokens: int
    gradient_checkpointing: bool
    positions: int | None = None


def activation_bytes(decoder: Decoder, batch: Batch) -> int:
    """The estimate, at its peak."""
    tokens, e = batch.rows * batch.tokens, decoder.itemsize
    one_layer = tokens * _layer_bytes_per_token(decoder, batch.tokens)
    loss = _loss_bytes(decoder, tokens, batch.positions)
    weights = decoder.cast_bytes + decoder.unpacked_bytes
    if not batch.gradient_checkpointing:
        return decoder.layers * one_layer + loss + weights
    inputs = decoder.layers * tokens * decoder.hidden_size * e
    logits = tokens * decoder.vocab_size * e  # the output holds them while layers run again
    return inputs + max(loss, one_layer + logits) + weights


def _loss_bytes(decoder: Decoder, tokens: int, positions: int | None) -> int:
    e, words = decoder.itemsize, decoder.vocab_size
    if positions is None:
        return tokens * words * (_LOSS + _rounded(e))
    return words * e * (2 * tokens + 3 * positions) + _CHUNKS * min(4 * positions * words, _CHUNK_BYTES)


def _layer_bytes_per_token(decoder: Decoder, length: int) -> int:
    e, h, f = decoder.itemsize, decoder.hidden_size, decoder.intermediate_size
    q, v = decoder.query_size, decoder.key_value_size
    scores = 0 if decoder.fused_attention else (4 + _rounded(e)) * decoder.heads * length
    return 8 * h + e * (2 * h + q + f) + e * (q + 2 * v) + 3 * e * f + scores


def _rounded(itemsize: int) -> int:
    """Bytes of an entry beside its float32 value; 0 where it is float32 already."""
    return itemsize if itemsize < 4 else 0
