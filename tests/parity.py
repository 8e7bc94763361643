"""Prints the parity table of docs/parity.md: every golden model against PyTorch's numbers.

    python tests/parity.py

The models are read by `models.load` from their Hugging Face folders (tests/golden/README.md says
how those were made), in float32 on the CPU. A number is the largest absolute difference over all
documents: of the last hidden state, and of the language-model logits at all tokens; for encoders of
the hidden states of all tokens, and of what the pooler gives.
"""

import dataclasses
import os
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import numpy as np
import peers

from w2s_jax import models
from w2s_jax.models import heads


def layouts(tokens, lengths):
    """name -> (tokens [R, L], segment ids or None, where each document begins: (row, slot))."""
    count, longest = tokens.shape
    padding = (np.arange(longest) < np.array(lengths)[:, None]).astype(np.int32)
    yield "padded", tokens, padding, [(i, 0) for i in range(count)]
    packed, segments = np.zeros((2, 1, sum(lengths)), np.int32)
    starts = np.cumsum([0, *lengths[:-1]]).tolist()
    for i, (start, n) in enumerate(zip(starts, lengths, strict=True)):
        packed[0, start : start + n] = tokens[i, :n]
        segments[0, start : start + n] = i + 1
    yield "packed", packed, segments, [(0, start) for start in starts]


def differences(config, params, tokens, segments, starts, lengths, outputs):
    """Largest differences of (last hidden state, logits) or, of an encoder, (all, pooler)."""
    if config.bidirectional:
        return encoder_differences(config, params, tokens, segments, starts, lengths, outputs)
    hidden = models.forward(config, params, tokens, segments)
    logits = np.asarray(heads.language_model_logits(config, params, hidden))
    hidden = np.asarray(hidden)
    worst = np.zeros(2)
    for i, ((row, start), n) in enumerate(zip(starts, lengths, strict=True)):
        last = hidden[row, start + n - 1] - outputs["last_hidden"][i]
        mine = logits[row, start : start + n] - outputs["lm_logits"][i, :n]
        worst = np.maximum(worst, [np.abs(last).max(), np.abs(mine).max()])
    return worst


def encoder_differences(config, params, tokens, segments, starts, lengths, outputs):
    """Largest differences of (hidden states of all tokens, what the pooler gives)."""
    segments = np.ones(tokens.shape, np.int32) if segments is None else segments
    ends = [
        tokens.shape[1] * row + start + n - 1
        for (row, start), n in zip(starts, lengths, strict=True)
    ]
    hidden = models.forward(config, params, tokens, segments)
    config = dataclasses.replace(config, read_out="pooler")
    pooled = heads.read_out(config, params, hidden, segments, np.array(ends)[:, None])
    hidden = np.asarray(hidden)
    worst = [
        np.abs(hidden[row, start : start + n] - outputs["hidden"][i, :n]).max()
        for i, ((row, start), n) in enumerate(zip(starts, lengths, strict=True))
    ]
    return np.array([max(worst), np.abs(np.asarray(pooled)[:, 0] - outputs["pooled"]).max()])


def main():
    print("| model | padded | packed into one row | each document alone |")
    print("|---|---|---|---|")
    for name, folder in sorted(peers.golden_folders(Path(__file__).parent / "golden").items()):
        config, params = models.load(folder)
        inputs, outputs = np.load(folder / "inputs.npz"), np.load(folder / "outputs.npz")
        tokens, lengths = inputs["input_ids"], inputs["lengths"].tolist()
        cells = {
            layout: differences(config, params, rows, segments, starts, lengths, outputs)
            for layout, rows, segments, starts in layouts(tokens, lengths)
        }
        alone = [
            differences(
                config, params, tokens[i : i + 1, :n], None, [(0, 0)], [n],
                {key: outputs[key][i : i + 1] for key in outputs},
            )
            for i, n in enumerate(lengths)
        ]  # fmt: skip
        cells["alone"] = np.max(alone, axis=0)
        text = " | ".join(f"{h:.1e} / {x:.1e}" for h, x in cells.values())
        print(f"| {name} | {text} |", flush=True)


if __name__ == "__main__":
    main()
