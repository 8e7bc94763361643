"""`w2s bench data`: speed of tokenising and packing, and how full packed rows are.

The texts and lengths are synthetic, in the two mixes that all benchmarks use (log-normal lengths in
tokens; short: mean 25, sigma 0.45, 8 to 120; long: mean 150, sigma 0.6, 20 to 512). With a config,
its task is measured as well.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from ml_collections import config_dict
from rich.console import Console

from w2s_jax.data import packing
from w2s_jax.data.tokenize import TokenizedDocuments
from w2s_jax.data.tokenizers import ByteTokenizer, load_tokenizer
from w2s_jax.perf.measuring import Record, print_table

#: mix -> mean, sigma of the logarithm, minimum and maximum length in tokens.
MIXES = {"short": (25, 0.45, 8, 120), "long": (150, 0.6, 20, 512)}
BATCH_SIZE = 32
EPOCH_DOCUMENTS = 10_000
MANY_DOCUMENTS = 100_000
TEXTS = 2_000
REPEATS = 3


def bench(console: Console, config: config_dict.ConfigDict | None = None) -> list[Record]:
    """Measure packing and tokenising, and print a table of each.

    Args:
      console: where to print.
      config: a recipe whose task is measured too.

    Returns:
      One record per row of the tables.

    Raises:
      InputError: the config or its data are invalid.
    """
    packed = [_pack_record(mix, mix_documents(mix, EPOCH_DOCUMENTS)) for mix in MIXES]
    packed += [_pack_record(mix, mix_documents(mix, MANY_DOCUMENTS)) for mix in MIXES]
    tokenized = [_tokenize_record("words", "bytes", ByteTokenizer(), _words(TEXTS))]
    tokenized += _trained_records(_words(TEXTS))
    if config is not None:
        more_packed, more_tokenized = _config_records(config)
        packed += more_packed
        tokenized += more_tokenized
    _print_packed(packed, console)
    _print_tokenized(tokenized, console)
    return packed + tokenized


def mix_documents(mix: str, count: int, seed: int = 0) -> TokenizedDocuments:
    """Return `count` documents of random tokens, with the length distribution of a mix."""
    mean, sigma, least, most = MIXES[mix]
    rng = np.random.default_rng(seed)
    lengths = rng.lognormal(np.log(mean) - sigma**2 / 2, sigma, count)
    lengths_N = np.clip(np.round(lengths), least, most).astype(np.int64)
    return TokenizedDocuments(
        ids_N=rng.integers(0, 2**63, count).astype(np.uint64),
        tokens_T=rng.integers(1, 50_000, lengths_N.sum()).astype(np.int32),
        offsets=np.concatenate([[0], np.cumsum(lengths_N)]),
        labels_N=np.zeros(count, np.float32),
    )


def _best_seconds(run: Callable[[], Any], clock: Callable[[], float]) -> float:
    """Return the time of the fastest of `REPEATS` runs, in seconds of `clock`."""
    seconds = []
    for _ in range(REPEATS):
        started = clock()
        run()
        seconds.append(clock() - started)
    return min(seconds)


def _pack_record(name: str, documents: TokenizedDocuments, batch_size: int = BATCH_SIZE) -> Record:
    """Measure packing one epoch in training order: its speed and the share of slots it fills."""
    steps = packing.steps_per_epoch(len(documents), batch_size)

    def pack(max_shapes: int = packing.MAX_SHAPES) -> packing.PackedBatches:
        order_SB = packing.training_order(
            documents.ids_N, batch_size=batch_size, num_steps=steps, seed=0
        )
        return packing.pack(documents, order_SB, max_shapes=max_shapes)

    # Packing uses one core. Processor time does not depend on the load of the others.
    seconds = _best_seconds(pack, time.process_time)
    packed = pack()
    order_SBK = packed.documents_SB[..., None] * documents.num_texts
    lengths_SB = documents.piece_lengths_P[
        (order_SBK + np.arange(documents.num_texts)).reshape(steps, -1)
    ]
    sums_S = lengths_SB.sum(1)
    return {
        "bench": "data",
        "what": "pack",
        "mix": name,
        "documents": steps * batch_size,
        "batch_size": batch_size,
        "seconds": seconds,
        "documents_per_second": steps * batch_size / seconds,
        "shapes": len(packed.buckets),
        "rows": packed.buckets[0].tokens_SMRL.shape[2],
        "row_lengths": [bucket.tokens_SMRL.shape[3] for bucket in packed.buckets],
        "real_token_share": packed.real_token_share,
        "share_of_one_shape": pack(max_shapes=1).real_token_share,
        "bound_of_one_shape": float(sums_S.mean() / sums_S.max()),
        "share_when_padding": float(sums_S.sum() / (lengths_SB.max(1) * lengths_SB.shape[1]).sum()),
    }


def _words(count: int, seed: int = 0) -> list[str]:
    """Return texts of random words of 1 to 9 letters; word counts follow the long mix."""
    rng = np.random.default_rng(seed)
    letters = np.array(list("etaoinshrdlucmfwypvbgkjqxz"))
    odds = 1.0 / np.arange(1, 27)
    sizes = rng.integers(1, 10, 3_000)
    drawn = rng.choice(letters, sizes.sum(), p=odds / odds.sum())
    vocabulary = ["".join(part) for part in np.split(drawn, np.cumsum(sizes)[:-1])]
    lengths_N = mix_documents("long", count, seed).lengths_N
    picked = rng.zipf(1.3, lengths_N.sum()) % len(vocabulary)
    texts = np.split(np.array(vocabulary)[picked], np.cumsum(lengths_N)[:-1])
    return [" ".join(words) for words in texts]


def _tokenize_record(texts_name: str, name: str, tokenizer: Any, texts: Sequence[str]) -> Record:
    tokens_T, _ = tokenizer.encode_batch(texts)
    seconds = _best_seconds(lambda: tokenizer.encode_batch(texts), time.perf_counter)
    return {
        "bench": "data",
        "what": "tokenize",
        "texts": texts_name,
        "tokenizer": name,
        "documents": len(texts),
        "seconds": seconds,
        "documents_per_second": len(texts) / seconds,
        "tokens_per_second": len(tokens_T) / seconds,
    }


def _trained_records(texts: Sequence[str]) -> list[Record]:
    """Measure a byte-level BPE trained on the texts: in batches, and one text per call."""
    import tempfile
    from pathlib import Path

    import tokenizers

    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=4_000, show_progress=False)
    backend.train_from_iterator(texts, trainer)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tokenizer.json"
        backend.save(str(path))
        tokenizer = load_tokenizer(str(path))
        batched = _tokenize_record("words", "BPE, in batches", tokenizer, texts)

        class OneByOne:
            """Encode each text in a separate call."""

            def encode_batch(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
                parts = [tokenizer.encode_batch([text])[0] for text in texts]
                return np.concatenate(parts), np.array([len(part) for part in parts])

        alone = _tokenize_record("words", "BPE, one by one", OneByOne(), texts)
    return [batched, alone]


def _config_records(config: config_dict.ConfigDict) -> tuple[list[Record], list[Record]]:
    """Measure a config's own task: its slices, as the strong model is trained on them."""
    from w2s_jax.config.validation import validate
    from w2s_jax.data.loading import load
    from w2s_jax.planning.resolve import resolve

    settings = validate(config)
    strong = resolve(settings).roles["strong"]
    packed = [
        _pack_record(
            f"{settings.task.name} {name}", strong.splits[name], settings.strong.train.batch_size
        )
        for name in strong.splits
        if name.startswith("slice")
    ]
    if strong.tokenizer is None:
        return packed, []
    task = settings.task
    loaded = load(task.name, task.source, task.data_dir, settings.protocol.item_expansion)
    texts = [
        text
        for document in next(iter(loaded.documents.values()))
        for text in document.texts or (document.text or "",)
    ]
    record = _tokenize_record(task.name, strong.tokenizer.name, strong.tokenizer, texts)
    return packed, [record]


def _print_packed(records: Sequence[Record], console: Console) -> None:
    columns = ("mix", "documents", "documents/s", "real tokens", "shapes")
    print_table(
        console,
        "packing",
        (*columns, "one shape", "its bound", "padded"),
        [
            [
                record["mix"],
                f"{record['documents']:,}",
                f"{record['documents_per_second']:,.0f}",
                f"{record['real_token_share']:.1%}",
                str(record["shapes"]),
                f"{record['share_of_one_shape']:.1%}",
                f"{record['bound_of_one_shape']:.1%}",
                f"{record['share_when_padding']:.1%}",
            ]
            for record in records
        ],
        f"Batches of {BATCH_SIZE} (tasks: their own batch size), one data shard, processor time "
        "including ordering. real tokens: share of slots that hold a token, over an epoch; one "
        "shape: the same with a single batch shape; its bound: mean / longest batch; padded: the "
        "same with one document per row, padded to the longest of its batch.",
        text=("mix",),
    )


def _print_tokenized(records: Sequence[Record], console: Console) -> None:
    print_table(
        console,
        "tokenising",
        ("texts", "tokenizer", "documents", "documents/s", "tokens/s"),
        [
            [
                record["texts"],
                record["tokenizer"],
                f"{record['documents']:,}",
                f"{record['documents_per_second']:,.0f}",
                f"{record['tokens_per_second']:,.0f}",
            ]
            for record in records
        ],
        "Wall-clock time on all cores, without the token cache.",
        text=("texts", "tokenizer"),
    )
