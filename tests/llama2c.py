"""Checkpoints and tokenizers of llama2.c, as folders in Hugging Face's layout; slow references.

A checkpoint of its legacy format is seven int32 (the fields of `Checkpoint`; the vocabulary size is
negative where the unembedding is a tensor of its own) and then float32 tensors. A tokenizer is the
length of the longest piece, and a score, a length and bytes for each piece: <unk>, BOS, EOS, the
256 bytes, and then text.

Shapes in names: L slots, D width, H query heads, G key heads, N size of a head, V vocabulary.
"""

import json
import math
import os
import struct
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

BOS, EOS = 1, 2
SPECIALS = ("<unk>", "<s>", "</s>")
BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))
#: The first piece that is text.
FIRST = len(SPECIALS) + len(BYTES)


@dataclass(frozen=True)
class Checkpoint:
    """The header's sizes, and tensors by llama2.c's names, those of the layers stacked."""

    dim: int
    hidden_dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    vocab_size: int
    max_seq_len: int
    tensors: dict[str, np.ndarray]

    @property
    def head_dim(self) -> int:
        return self.dim // self.n_heads


def shapes(dim, hidden_dim, n_layers, n_heads, n_kv_heads, vocab_size, max_seq_len):
    """name -> shape of the tensors in the order of the file, of a header's seven numbers."""
    kv_dim, frequencies = dim * n_kv_heads // n_heads, dim // n_heads // 2
    out = {
        "token_embedding": (abs(vocab_size), dim),
        "rms_att_weight": (n_layers, dim),
        "wq": (n_layers, dim, dim),
        "wk": (n_layers, kv_dim, dim),
        "wv": (n_layers, kv_dim, dim),
        "wo": (n_layers, dim, dim),
        "rms_ffn_weight": (n_layers, dim),
        "w1": (n_layers, hidden_dim, dim),
        "w2": (n_layers, dim, hidden_dim),
        "w3": (n_layers, hidden_dim, dim),
        "rms_final": (dim,),
        "freq_cis_real": (max_seq_len, frequencies),
        "freq_cis_imag": (max_seq_len, frequencies),
    }
    return out | ({"wcls": (abs(vocab_size), dim)} if vocab_size < 0 else {})


def read_checkpoint(path: Path) -> Checkpoint:
    """The checkpoint in a file, every byte of it used."""
    data = path.read_bytes()
    header = struct.unpack("<7i", data[:28])
    tensors, start = {}, 28
    for name, shape in shapes(*header).items():
        count = math.prod(shape)
        tensors[name] = np.frombuffer(data, "<f4", count, start).reshape(shape)
        start += 4 * count
    assert start == len(data)
    return Checkpoint(*header, tensors)


def reference_logits(checkpoint: Checkpoint, tokens_L) -> np.ndarray:
    """Next-token logits [L, V] in float64: rotations of neighbours by the file's own tables."""
    at = {name: tensor.astype(np.float64) for name, tensor in checkpoint.tensors.items()}
    length, size = len(tokens_L), checkpoint.head_dim
    turn_LN = (at["freq_cis_real"] + 1j * at["freq_cis_imag"])[:length]
    future_LL = np.triu(np.full((length, length), -np.inf), 1)

    def norm(x_LD, scale_D):
        return x_LD / np.sqrt(np.mean(x_LD**2, axis=1, keepdims=True) + 1e-5) * scale_D[None]

    def rotated(x_LHN):
        """Entries 2i and 2i + 1 of a head are one complex number."""
        turned = (x_LHN[..., 0::2] + 1j * x_LHN[..., 1::2]) * turn_LN[:, None]
        return np.stack([turned.real, turned.imag], axis=-1).reshape(x_LHN.shape)

    x_LD = at["token_embedding"][tokens_L]
    for i in range(checkpoint.n_layers):
        y_LD = norm(x_LD, at["rms_att_weight"][i])
        q_LHN, k_LGN, v_LGN = (
            (y_LD @ at[name][i].T).reshape(length, -1, size) for name in ("wq", "wk", "wv")
        )
        q_LHN, k_LGN = rotated(q_LHN), rotated(k_LGN)
        out_LHN = np.zeros_like(q_LHN)
        for head in range(checkpoint.n_heads):
            group = head * checkpoint.n_kv_heads // checkpoint.n_heads
            scores_LL = q_LHN[:, head] @ k_LGN[:, group].T / np.sqrt(size) + future_LL
            weights_LL = np.exp(scores_LL - scores_LL.max(axis=1, keepdims=True))
            weights_LL /= weights_LL.sum(axis=1, keepdims=True)
            out_LHN[:, head] = weights_LL @ v_LGN[:, group]
        x_LD = x_LD + out_LHN.reshape(length, -1) @ at["wo"][i].T
        y_LD = norm(x_LD, at["rms_ffn_weight"][i])
        gate = y_LD @ at["w1"][i].T
        x_LD = x_LD + (gate / (1 + np.exp(-gate)) * (y_LD @ at["w3"][i].T)) @ at["w2"][i].T
    return norm(x_LD, at["rms_final"]) @ at.get("wcls", at["token_embedding"]).T


def half_split(kernel_LOD: np.ndarray, heads: int) -> np.ndarray:
    """Rows of each head in Hugging Face's order: first the even ones of llama2.c, then the odd."""
    layers, out, width = kernel_LOD.shape
    pairs = kernel_LOD.reshape(layers, heads, out // heads // 2, 2, width)
    return pairs.swapaxes(2, 3).reshape(kernel_LOD.shape)


def write_model(checkpoint: Checkpoint, folder: Path, permute: bool = True) -> None:
    """config.json and model.safetensors of a LlamaForCausalLM.

    `permute=False` leaves queries and keys as they are in the file, which is wrong.
    """
    at = dict(checkpoint.tensors)
    if permute:
        at["wq"] = half_split(at["wq"], checkpoint.n_heads)
        at["wk"] = half_split(at["wk"], checkpoint.n_kv_heads)
    names = {
        "rms_att_weight": "input_layernorm",
        "wq": "self_attn.q_proj",
        "wk": "self_attn.k_proj",
        "wv": "self_attn.v_proj",
        "wo": "self_attn.o_proj",
        "rms_ffn_weight": "post_attention_layernorm",
        "w1": "mlp.gate_proj",
        "w2": "mlp.down_proj",
        "w3": "mlp.up_proj",
    }
    tensors = {
        f"model.layers.{i}.{theirs}.weight": np.ascontiguousarray(at[ours][i])
        for ours, theirs in names.items()
        for i in range(checkpoint.n_layers)
    }
    tensors["model.embed_tokens.weight"] = at["token_embedding"]
    tensors["model.norm.weight"] = at["rms_final"]
    if "wcls" in at:
        tensors["lm_head.weight"] = at["wcls"]
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": checkpoint.dim,
        "intermediate_size": checkpoint.hidden_dim,
        "num_hidden_layers": checkpoint.n_layers,
        "num_attention_heads": checkpoint.n_heads,
        "num_key_value_heads": checkpoint.n_kv_heads,
        "vocab_size": abs(checkpoint.vocab_size),
        "max_position_embeddings": checkpoint.max_seq_len,
        "tie_word_embeddings": "wcls" not in at,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "bos_token_id": BOS,
        "eos_token_id": EOS,
        "dtype": "float32",
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def read_pieces(path: Path) -> dict[str, float]:
    """The pieces of text in a tokenizer's file with their scores; the n-th has the id FIRST + n."""
    data = path.read_bytes()
    found, start = [], 4
    while start < len(data):
        score, size = struct.unpack("<fi", data[start : start + 8])
        found.append((data[start + 8 : start + 8 + size].decode(), score))
        start += 8 + size
    assert tuple(piece for piece, _ in found[len(SPECIALS) : FIRST]) == BYTES
    pieces = dict(found[FIRST:])
    assert len(pieces) == len(found) - FIRST
    return pieces


def greedy_ids(pieces: dict[str, float], text: str) -> list[int]:
    """BOS and the text's ids: of all neighbours, the first with the best score are merged."""
    ids = {piece: FIRST + n for n, piece in enumerate(pieces)}
    ids |= {piece: len(SPECIALS) + byte for byte, piece in enumerate(BYTES)}
    parts: list[str] = []
    # A space begins every text.
    for character in f" {text}" if text else "":
        known = character in pieces
        parts += [character] if known else [BYTES[byte] for byte in character.encode()]

    def score(left, right):
        return pieces.get(left + right, -math.inf)

    scores = [score(*pair) for pair in pairwise(parts)]
    while scores and (best := max(scores)) > -math.inf:
        i = scores.index(best)
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
        del scores[i]
        for j in {i - 1, i} & set(range(len(scores))):
            scores[j] = score(parts[j], parts[j + 1])
    return [BOS, *(ids[part] for part in parts)]


def write_tokenizer(pieces: dict[str, float], folder: Path) -> None:
    """tokenizer.json and tokenizer_config.json with the ids of `greedy_ids`.

    The better a piece's score, the earlier the merges of any two pieces into it.
    """
    import tokenizers as tk

    vocab = {piece: i for i, piece in enumerate([*SPECIALS, *BYTES, *pieces])}
    merges = [
        (piece[:cut], piece[cut:])
        for piece in sorted(pieces, key=lambda piece: -pieces[piece])
        for cut in range(1, len(piece))
        if piece[:cut] in pieces and piece[cut:] in pieces
    ]
    model = tk.models.BPE(
        vocab=vocab, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True
    )
    backend = tk.Tokenizer(model)
    backend.add_special_tokens(list(SPECIALS))
    backend.normalizer = tk.normalizers.Prepend(" ")
    backend.decoder = tk.decoders.Sequence(
        [tk.decoders.ByteFallback(), tk.decoders.Fuse(), tk.decoders.Strip(" ", 1, 0)]
    )
    backend.post_processor = tk.processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", BOS)]
    )
    folder.mkdir(parents=True, exist_ok=True)
    backend.save(str(folder / "tokenizer.json"))
    unknown, beginning, end = SPECIALS
    described = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": unknown,
        "bos_token": beginning,
        "eos_token": end,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(described))


def data_folder() -> Path:
    """The folder that W2S_TEST_DATA names; skips the test if it is unset or has no stories260K."""
    root = os.environ.get("W2S_TEST_DATA")
    if not root:
        pytest.skip("W2S_TEST_DATA is not set: no real weights")
    if not (Path(root) / "weights" / "stories260K").is_dir():
        pytest.skip(f"W2S_TEST_DATA: {root} has no weights/stories260K")
    return Path(root)


def read_stories260k(root: Path) -> tuple[Checkpoint, dict[str, float]]:
    """The real model, and the pieces of its tokenizer."""
    folder = root / "weights" / "stories260K"
    return read_checkpoint(folder / "stories260K.bin"), read_pieces(folder / "tok512.bin")
