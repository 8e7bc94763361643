"""Exported classifiers: their padding, and the names of their classes."""

import dataclasses
import itertools
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from checkpoints import (
    change,
    configure,
    one,
    tiny,
    tokenizer,
)
from refusals import error

from w2s_jax import models
from w2s_jax.data import Task
from w2s_jax.data.tasks import TASKS
from w2s_jax.data.tokenizers import load_tokenizer
from w2s_jax.models import checkpoint_files as files
from w2s_jax.models import exporting
from w2s_jax.models.convert import convert
from w2s_jax.phases import running


def test_names_and_number_of_classes_survive_round_trips(tmp_path):
    """There and back, and in our own layout."""
    tiny("llama", tmp_path / "in")
    names = {"0": "contradiction", "1": "entailment", "2": "neutral"}
    kernel = jax.random.normal(jax.random.key(0), (32, 3))
    change(tmp_path / "in", **{"score.weight": np.asarray(kernel).T.copy()})
    fields = dict(architectures=["LlamaForSequenceClassification"], id2label=names)
    configure(tmp_path / "in", **fields)
    convert(str(tmp_path / "in"), tmp_path / "ours", "orbax")
    convert(str(tmp_path / "ours"), tmp_path / "out", "huggingface")
    record = files.read_config(tmp_path / "out")
    assert record["id2label"] == names
    assert record["label2id"] == {name: int(i) for i, name in names.items()}
    head = models.load_with_head(tmp_path / "out", one())[1]["head"]
    np.testing.assert_array_equal(np.asarray(head["kernel"]), np.asarray(kernel))


@pytest.mark.parametrize(
    ("given", "source", "names"),
    [
        (("no", "yes"), {"0": "a", "1": "b"}, ["no", "yes"]),
        (None, {"0": "a", "1": "b"}, ["a", "b"]),
        (None, {"0": "a", "1": "b", "2": "c"}, ["LABEL_0", "LABEL_1"]),
        (None, {"0": "a", "1": "a"}, ["LABEL_0", "LABEL_1"]),
        (None, ["a", "b"], ["LABEL_0", "LABEL_1"]),
        (None, None, ["LABEL_0", "LABEL_1"]),
    ],
)
def test_classes_are_named_as_given_or_as_in_the_source(given, source, names):
    assert exporting.class_names(2, given, {"id2label": source}) == names
    assert "expected 2 different names" in error(exporting.class_names, 2, ("x", "x"), None)


@pytest.mark.parametrize(("named", "expected"), [(["bad", "good"], "good"), (None, "LABEL_1")])
def test_a_trained_head_has_the_names_of_its_task(tmp_path, named, expected):
    """And not those of the classifier that its phase started from."""
    tiny("llama", tmp_path / "in")
    change(tmp_path / "in", **{"score.weight": np.ones((2, 32), np.float32)})
    configure(tmp_path / "in", id2label={"0": "spam", "1": "ham"})
    convert(str(tmp_path / "in"), tmp_path / "phase", "orbax")
    configure(tmp_path / "phase", kind="student", label_names=named)
    for source, target, format in (
        ("phase", "out", "huggingface"),
        ("phase", "ours", "orbax"),
        ("ours", "again", "huggingface"),
    ):
        convert(str(tmp_path / source), tmp_path / target, format)
    for name in ("out", "again"):
        assert files.read_config(tmp_path / name)["id2label"]["1"] == expected


FOLDERS = {"of 0 and 1": {}, "of names": {"classes": ("a", "b", "c")}}


def test_a_phase_of_a_task_with_names_records_them():
    def recorded(name, **phase):
        phase = SimpleNamespace(**{"classifies": True, "num_texts": 1} | phase)
        task = TASKS[name] if name in TASKS else Task(name, "", "", **FOLDERS[name])
        context = SimpleNamespace(resolved=SimpleNamespace(task=task))
        return running._label_names(phase, context)

    assert recorded("sst2") == {"label_names": ["negative", "positive"]}
    assert recorded("sst2", classifies=False) == recorded("sst2", num_texts=2) == {}
    assert recorded("of 0 and 1") == recorded("sciq") == {}
    assert recorded("of names") == {"label_names": ["a", "b", "c"]}


SPARE = {
    "named": (dict(special=["<pad>"], pad_token="<pad>"), 3, 64),
    "named as in some files": (
        dict(special=["<x>", "<p>"], pad_token={"__type": "AddedToken", "content": "<p>"}),
        *(4, 64),
    ),
    "not named": (dict(special=["<x>", "<|padding|>"]), 4, 64),
    "a better name": (dict(special=["<|vision_pad|>", "[PAD]"]), 4, 64),
    "reserved": (dict(special=["<|reserved_0|>"]), 3, 64),
    "the end of text": (dict(special=["<x>"], pad_token="<eos>"), 20, 64),
    "unknown": (dict(special=["<x>"], pad_token="<unk>"), 20, 64),
    "no row to spare": (dict(special=["<x>"], size=64), 64, 65),
    "beyond the rows": (dict(special=["<x>"], size=70), 70, 71),
}


@pytest.mark.parametrize("case", SPARE)
def test_classifiers_pad_with_a_token_that_no_text_has(tmp_path, case, caplog):
    options, pad, rows = SPARE[case]
    tiny("llama", tmp_path / "in")
    config, params = models.load(tmp_path / "in", one())
    named = {key: value for key, value in options.items() if key != "special"}
    tokenizer(tmp_path / "in", *options["special"], **named)
    head = {"kernel": np.ones((32, 2), np.float32)}
    source = {"pad_token_id": 2, "eos_token_id": 2, "id2label": {"0": "bad", "1": "good"}}
    folders = [tmp_path / name for name in ("in", "out", "again")]
    for before, after in itertools.pairwise(folders):
        models.export_huggingface(
            config, params, after, head=head, tokenizer_from=before, source=source
        )
        source = files.read_config(after)
        assert (source["pad_token_id"], source["vocab_size"]) == (pad, rows)
        assert source["id2label"] == {"0": "bad", "1": "good"}
        found = load_tokenizer(str(after))
        assert pad not in found.encode_batch(["good [PAD] <pad> <eos> x"])[0]
        config, found = models.load_with_head(after, one())
        params, head = found["backbone"], found["head"]
    assert caplog.text.count("added to the tokenizer") == (pad >= 20)
    table = np.asarray(params["embedding"])
    assert table.shape == (rows, 32) and not table[64:].any() and table[:64].all()
    for name in ("tokenizer.json", "tokenizer_config.json", files.SINGLE):
        out, again = ((folder / name).read_bytes() for folder in folders[1:])
        assert out == again


@pytest.mark.parametrize(
    ("model_type", "source", "pad", "rows"),
    [
        ("gpt2", {"pad_token_id": 5, "eos_token_id": [1, 2]}, 5, 64),
        ("gpt2", {"pad_token_id": 2, "eos_token_id": [1, 2]}, 64, 65),
        ("gpt2", {"pad_token_id": -1}, 64, 65),
        ("gpt2", None, 64, 65),
        ("bert", None, 0, 64),
        ("bert", {"pad_token_id": 5}, 5, 64),
        ("roberta", {"pad_token_id": 5}, 0, 64),
    ],
)
def test_without_a_tokenizer_the_padding_is_the_source_s_or_new(
    tmp_path, model_type, source, pad, rows
):
    tiny(model_type, tmp_path / "in")
    config, params = models.load(tmp_path / "in", one())
    read_out = "pooler" if config.bidirectional else "last"
    models.export_huggingface(
        dataclasses.replace(config, read_out=read_out),
        params,
        tmp_path / "out",
        head={"kernel": np.ones((32, 2), np.float32)},
        source=source,
    )
    record = files.read_config(tmp_path / "out")
    assert (record["pad_token_id"], record["vocab_size"]) == (pad, rows)
