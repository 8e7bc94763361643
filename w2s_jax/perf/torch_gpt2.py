"""GPT-2 with a class head in plain PyTorch, as fast as we know how to write it.

Dense layers process the tokens of a whole batch as one row, without padding. Attention processes
documents in groups of similar length, each padded to its longest (at the end, so that the causal
mask hides the padding). The last block computes queries and MLP at the read-outs only.

Shape letters: T tokens of a batch, B documents, L slots, D width, F MLP width, H heads, E head
size, V vocabulary, C classes, P positions.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Layer:
    """Parameters of a block. Matrices are [out, in], as F.linear takes them."""

    attention_norm_scale: Tensor
    attention_norm_bias: Tensor
    qkv: Tensor
    qkv_bias: Tensor
    out: Tensor
    out_bias: Tensor
    mlp_norm_scale: Tensor
    mlp_norm_bias: Tensor
    up: Tensor
    up_bias: Tensor
    down: Tensor
    down_bias: Tensor

    def to(self, dtype: torch.dtype) -> "Layer":
        """Cast to another dtype; gradients have the original one."""
        return Layer(*(getattr(self, field.name).to(dtype) for field in fields(self)))


@dataclass(frozen=True)
class Weights:
    """All parameters of the model. `head` is [C, D]."""

    embedding: Tensor
    positions: Tensor
    layers: tuple[Layer, ...]
    norm_scale: Tensor
    norm_bias: Tensor
    head: Tensor
    num_heads: int

    def parameters(self) -> list[Tensor]:
        """Return the trained tensors."""
        inner = [getattr(layer, field.name) for layer in self.layers for field in fields(layer)]
        own = [self.embedding, self.positions, self.norm_scale, self.norm_bias, self.head]
        return own + inner

    def cast(self, dtype: torch.dtype, *, embeddings: bool) -> "Weights":
        """Cast to `dtype`; the embeddings, of which few rows are used, only on request."""
        layers = tuple(layer.to(dtype) for layer in self.layers)
        return Weights(
            self.embedding.to(dtype) if embeddings else self.embedding,
            self.positions.to(dtype) if embeddings else self.positions,
            layers,
            self.norm_scale.to(dtype),
            self.norm_bias.to(dtype),
            self.head.to(dtype),
            self.num_heads,
        )


def read_weights(flat: dict[str, np.ndarray], device: str, trainable: bool) -> Weights:
    """Convert our parameters to PyTorch.

    Args:
      flat: arrays by flat path, such as 'backbone.blocks.mlp.up.kernel' or 'head.kernel'.
      device: target device.
      trainable: whether the tensors require gradients.
    """

    def tensor(array: np.ndarray) -> Tensor:
        copy = torch.from_numpy(np.ascontiguousarray(array, np.float32)).to(device)
        return copy.clone().requires_grad_(trainable)

    def block(name: str, layer: int) -> np.ndarray:
        return flat[f"backbone.blocks.{name}"][layer]

    def joined(part: str, layer: int, width: int) -> np.ndarray:
        parts = [block(f"attention.{n}.{part}", layer) for n in ("query", "key", "value")]
        shape = (width, -1) if part == "kernel" else (-1,)
        return np.concatenate([x.reshape(shape) for x in parts], axis=-1).T

    num_layers, width, num_heads, _ = flat["backbone.blocks.attention.query.kernel"].shape
    layers = [
        Layer(
            tensor(block("attention_norm.scale", i)),
            tensor(block("attention_norm.bias", i)),
            tensor(joined("kernel", i, width)),
            tensor(joined("bias", i, width)),
            tensor(block("attention.out.kernel", i).reshape(-1, width).T),
            tensor(block("attention.out.bias", i)),
            tensor(block("mlp_norm.scale", i)),
            tensor(block("mlp_norm.bias", i)),
            tensor(block("mlp.up.kernel", i).T),
            tensor(block("mlp.up.bias", i)),
            tensor(block("mlp.down.kernel", i).T),
            tensor(block("mlp.down.bias", i)),
        )
        for i in range(num_layers)
    ]
    return Weights(
        tensor(flat["backbone.embedding"]),
        tensor(flat["backbone.position_embedding"]),
        tuple(layers),
        tensor(flat["backbone.final_norm.scale"]),
        tensor(flat["backbone.final_norm.bias"]),
        tensor(flat["head.kernel"].T),
        num_heads,
    )


@dataclass(frozen=True)
class AttentionGroup:
    """Documents that share one attention call.

    Attributes:
      start, stop: range of their tokens in the batch.
      documents, length: B and L.
      slots_T: each token's slot in [B * L]; None if tokens and slots are the same (including
        padding).
      last_B: each document's last slot in [L].
      seen_B11L: which slots each document's read-out attends to.
    """

    start: int
    stop: int
    documents: int
    length: int
    slots_T: Tensor | None
    last_B: Tensor
    seen_B11L: Tensor


@dataclass(frozen=True)
class Batch:
    """Documents as one row of tokens.

    Attributes:
      tokens_T, positions_T: int64.
      groups: attention groups, in the order of T.
      read_outs_B: position of each document's last token in T.
      offsets: start of each document in T, for attention without groups ('nested'); else None.
      longest: length of the longest document.
      order_B: index of each document in the list given to `make_batch`.
    """

    tokens_T: Tensor
    positions_T: Tensor
    groups: tuple[AttentionGroup, ...]
    read_outs_B: Tensor
    offsets: Tensor | None
    longest: int
    order_B: Tensor


def make_batch(documents: Sequence[np.ndarray], layout: str, count: int, device: str) -> Batch:
    """Sort documents by length and lay them out as one row.

    Args:
      documents: token ids of each document.
      layout: 'packed' (no padding in dense layers), 'padded' (padding in all layers) or 'nested'
        (no padding anywhere; attention uses jagged nested tensors).
      count: maximum number of attention groups.
      device: target device.
    """
    order = sorted(range(len(documents)), key=lambda i: len(documents[i]))
    tokens, positions, groups, read_outs, start = [], [], [], [], 0
    for part in np.array_split(np.array(order), min(count, len(order))):
        lengths = np.array([len(documents[i]) for i in part])
        longest = int(lengths[-1])
        held = np.full(len(part), longest) if layout == "padded" else lengths
        for i, size in zip(part, held, strict=True):
            tokens.append(np.pad(documents[i], (0, size - len(documents[i]))))
            positions.append(np.arange(size))
        first_B = np.cumsum(held) - held
        read_outs.append(start + first_B + lengths - 1)
        slots_T = np.concatenate([b * longest + np.arange(n) for b, n in enumerate(held)])
        seen_BL = np.arange(longest) < lengths[:, None]
        groups.append(
            AttentionGroup(
                start,
                start + int(held.sum()),
                len(part),
                longest,
                None if (held == longest).all() else torch.from_numpy(slots_T).to(device),
                torch.from_numpy(lengths - 1).to(device),
                torch.from_numpy(seen_BL)[:, None, None].to(device),
            )
        )
        start += int(held.sum())
    sizes = [0, *(len(documents[i]) for i in order)]
    nested = layout == "nested"
    return Batch(
        torch.from_numpy(np.concatenate(tokens).astype(np.int64)).to(device),
        torch.from_numpy(np.concatenate(positions)).to(device),
        tuple(groups),
        torch.from_numpy(np.concatenate(read_outs)).to(device),
        torch.tensor(np.cumsum(sizes), device=device) if nested else None,
        max(sizes),
        torch.tensor(order, device=device),
    )


class _Pad(torch.autograd.Function):
    """Scatter rows to slots. Both directions copy, whereas autograd's version accumulates."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, slots_T: Tensor, count: int) -> Tensor:
        ctx.save_for_backward(slots_T)
        return x.new_zeros(count, x.shape[1]).index_copy_(0, slots_T, x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (slots_T,) = ctx.saved_tensors
        return grads[0].index_select(0, slots_T), None, None


class _Unpad(torch.autograd.Function):
    """Gather rows from slots; see `_Pad`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, slots_T: Tensor) -> Tensor:
        ctx.save_for_backward(slots_T)
        ctx.count = x.shape[0]
        return x.index_select(0, slots_T)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (slots_T,) = ctx.saved_tensors
        grad = grads[0]
        return grad.new_zeros(ctx.count, grad.shape[1]).index_copy_(0, slots_T, grad), None


def _slots(x: Tensor, group: AttentionGroup) -> Tensor:
    part = x[group.start : group.stop]
    if group.slots_T is None:
        return part
    return _Pad.apply(part, group.slots_T, group.documents * group.length)


def _attention(qkv: Tensor, batch: Batch, num_heads: int) -> Tensor:
    """Causal attention of every token within its document, [T, D]."""
    width = qkv.shape[1] // 3
    if batch.offsets is not None:
        q, k, v = (
            torch.nested.nested_tensor_from_jagged(
                x.reshape(len(x), num_heads, -1), batch.offsets, max_seqlen=batch.longest
            ).transpose(1, 2)
            for x in qkv.split(width, dim=1)
        )
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return mixed.transpose(1, 2).values().reshape(len(qkv), width)
    parts = []
    for group in batch.groups:
        slots = _slots(qkv, group).view(group.documents, group.length, 3, num_heads, -1)
        q, k, v = slots.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        rows = mixed.transpose(1, 2).reshape(-1, width)
        parts.append(rows if group.slots_T is None else _Unpad.apply(rows, group.slots_T))
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _read_out_attention(q: Tensor, kv: Tensor, batch: Batch, num_heads: int) -> Tensor:
    """Attention of each document's last token, [B, D]."""
    width, parts, first = q.shape[1], [], 0
    for group in batch.groups:
        own = q[first : first + group.documents].view(group.documents, num_heads, 1, -1)
        slots = _slots(kv, group).view(group.documents, group.length, 2, num_heads, -1)
        k, v = slots.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(own, k, v, attn_mask=group.seen_B11L)
        parts.append(mixed.reshape(-1, width))
        first += group.documents
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _norm(x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    return F.layer_norm(x, (x.shape[-1],), scale, bias)


def _mlp(x: Tensor, layer: Layer) -> Tensor:
    hidden = F.linear(_norm(x, layer.mlp_norm_scale, layer.mlp_norm_bias), layer.up, layer.up_bias)
    return F.linear(F.gelu(hidden, approximate="tanh"), layer.down, layer.down_bias)


def _embed(weights: Weights, batch: Batch, dtype: torch.dtype) -> Tensor:
    x = F.embedding(batch.tokens_T, weights.embedding)
    return (x + F.embedding(batch.positions_T, weights.positions)).to(dtype)


def _block(x: Tensor, layer: Layer, batch: Batch, num_heads: int) -> Tensor:
    normed = _norm(x, layer.attention_norm_scale, layer.attention_norm_bias)
    qkv = F.linear(normed, layer.qkv, layer.qkv_bias)
    x = x + F.linear(_attention(qkv, batch, num_heads), layer.out, layer.out_bias)
    return x + _mlp(x, layer)


def hidden(weights: Weights, batch: Batch, dtype: torch.dtype) -> Tensor:
    """Return the hidden states of all tokens after the final norm, [T, D]."""
    x = _embed(weights, batch, dtype)
    for layer in weights.layers:
        x = _block(x, layer, batch, weights.num_heads)
    return _norm(x, weights.norm_scale, weights.norm_bias)


def logits(weights: Weights, batch: Batch, dtype: torch.dtype) -> Tensor:
    """Return the class logits of the documents in their original order, float32 [B, C]."""
    x = _embed(weights, batch, dtype)
    for layer in weights.layers[:-1]:
        x = _block(x, layer, batch, weights.num_heads)
    layer, width = weights.layers[-1], x.shape[1]
    normed = _norm(x, layer.attention_norm_scale, layer.attention_norm_bias)
    kv = F.linear(normed, layer.qkv[width:], layer.qkv_bias[width:])
    last = normed.index_select(0, batch.read_outs_B)
    q = F.linear(last, layer.qkv[:width], layer.qkv_bias[:width])
    mixed = _read_out_attention(q, kv, batch, weights.num_heads)
    x = x.index_select(0, batch.read_outs_B) + F.linear(mixed, layer.out, layer.out_bias)
    x = _norm(x + _mlp(x, layer), weights.norm_scale, weights.norm_bias)
    out = F.linear(x, weights.head).float()
    return torch.empty_like(out).index_copy(0, batch.order_B, out)


def batch_loss(logits_BC: Tensor, targets_BC: Tensor, loss: str, fraction: float) -> Tensor:
    """Return the loss 'xent' or 'confidence' of `w2s_jax.losses`, with default options.

    Args:
      logits_BC, targets_BC: class logits and soft labels.
      loss: 'xent' or 'confidence'.
      fraction: step / total steps.
    """
    if loss == "confidence":
        margin_B = (logits_BC[:, 1] - logits_BC[:, 0]).detach()
        rank_B = torch.argsort(torch.argsort(margin_B, descending=True)).to(logits_BC.dtype)
        positive_B = (0.5 * len(margin_B) - rank_B).clamp(0.0, 1.0)
        hard_BC = torch.stack([1.0 - positive_B, positive_B], dim=1)
        alpha = 0.5 * min(fraction / 0.2, 1.0)
        targets_BC = (1.0 - alpha) * targets_BC + alpha * hard_BC
    return F.cross_entropy(logits_BC, targets_BC)
