"""Exported classifiers give a text the same logits in any batch of transformers' PyTorch."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from checkpoints import ENCODERS, TINY, assert_same_bits, one, tensors_of, tiny, tokenizer, whole

from w2s_jax import models
from w2s_jax.models import checkpoint_files as files
from w2s_jax.models import importing

torch = pytest.importorskip("torch")

TEXTS = ["good", "a very long and very bad film", "bad film", "good film <eos>"]


def exported(model_type, folder, **config):
    """A classifier in folder/out, exported with the tokenizer in folder/in."""
    tiny(model_type, folder / "in")
    path = folder / "in" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    found = importing.import_huggingface(folder / "in", one())
    head = {"kernel": jax.random.normal(jax.random.key(1), (32, 2))}
    read_out = "pooler" if found.config.bidirectional else "last"
    models.export_huggingface(
        dataclasses.replace(found.config, read_out=read_out),
        found.params,
        folder / "out",
        head=head,
        source=found.huggingface,
        tokenizer_from=folder / "in",
    )
    return files.read_config(folder / "out")


def logits(folder, texts):
    """Of one batch; transformers pads it as the exported files say."""
    import transformers

    auto = transformers.AutoModelForSequenceClassification
    model, info = auto.from_pretrained(folder, output_loading_info=True, dtype="float32")
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    encoder = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    assert encoder.pad_token_id == model.config.pad_token_id
    batch = encoder(texts, padding=True, return_tensors="pt")
    inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
    with torch.no_grad():
        return model.eval()(**inputs).logits.numpy()


def assert_batches_equal_singles(folder):
    together = logits(folder, TEXTS)
    alone = np.concatenate([logits(folder, [text]) for text in TEXTS])
    np.testing.assert_allclose(together, alone, atol=2e-5)
    assert np.ptp(alone[:, 0]) > 1e-3


@pytest.mark.parametrize("model_type", TINY)
def test_batches_of_unequal_length_equal_singles_where_eos_was_the_padding(tmp_path, model_type):
    """The source pads with the end of text, which the last text has, and has no other token."""
    tokenizer(tmp_path / "in", pad_token="<eos>", size=64)
    record = exported(model_type, tmp_path, pad_token_id=2)
    assert_batches_equal_singles(tmp_path / "out")
    assert (record["pad_token_id"], record["vocab_size"]) == (64, 65)
    before, after = (tensors_of(tmp_path / name) for name in ("in", "out"))
    grown = {name for name, array in before.items() if after.get(name, array).shape != array.shape}
    (table,) = grown
    np.testing.assert_array_equal(after[table], np.pad(before[table], ((0, 1), (0, 0))))


@pytest.mark.parametrize("model_type", TINY | ENCODERS)
def test_what_transformers_saves_again_comes_back(tmp_path, model_type):
    import transformers

    tokenizer(tmp_path / "in", pad_token="<eos>", size=64)
    record = exported(model_type, tmp_path, id2label={"0": "bad", "1": "good"})
    auto = transformers.AutoModelForSequenceClassification
    auto.from_pretrained(tmp_path / "out", dtype="float32").save_pretrained(tmp_path / "back")
    ours, theirs = (models.load_with_head(tmp_path / name, one()) for name in ("out", "back"))
    assert ours[0] == theirs[0]
    assert_same_bits(whole(theirs[1]), whole(ours[1]))
    saved = files.read_config(tmp_path / "back")
    for key in ("id2label", "pad_token_id", "vocab_size"):
        assert saved[key] == record[key]
    assert saved["id2label"]["1"] == "good"


@pytest.mark.parametrize("model_type", ENCODERS)
def test_encoders_mask_their_padding(tmp_path, model_type):
    tokenizer(tmp_path / "in", "<pad>", pad_token="<pad>")
    record = exported(model_type, tmp_path, pad_token_id=3)
    assert_batches_equal_singles(tmp_path / "out")
    assert (record["pad_token_id"], record["vocab_size"]) == (3, 64)


@pytest.mark.parametrize("options", [dict(special=["<|padding|>"]), dict(special=[], size=30)])
def test_so_do_those_with_tokens_or_rows_to_spare(tmp_path, options):
    tokenizer(tmp_path / "in", *options["special"], size=options.get("size", 20))
    record = exported("llama", tmp_path, pad_token_id=None)
    assert record["vocab_size"] == 64
    assert_batches_equal_singles(tmp_path / "out")
