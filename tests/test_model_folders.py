"""Folders that users have: what is not used asks for nothing, and what is not as said is named."""

import dataclasses
import itertools
import json
import random
from types import SimpleNamespace

import jax
import mutations
import numpy as np
import pytest
from checkpoints import (
    ENCODERS,
    TINY,
    assert_same_bits,
    family_of_type,
    one,
    tiny,
    tokenizer,
    whole,
)
from refusals import error
from safetensors.numpy import load_file, save_file

from w2s_jax import models, sharding
from w2s_jax.core.errors import InputError
from w2s_jax.data.tokenizers import load_tokenizer
from w2s_jax.models import checkpoint_files as files
from w2s_jax.models import exporting, families, hf_models, importing, lora, sources
from w2s_jax.models.convert import convert
from w2s_jax.phases import running


def configure(folder, **fields):
    path = folder / files.CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def change(folder, remove=(), **tensors):
    kept = load_file(folder / files.SINGLE) | tensors
    save_file({name: x for name, x in kept.items() if name not in remove}, folder / files.SINGLE)


# --- tied embeddings -----------------------------------------------------------------------------

TIED = [
    *("gpt2", "gpt_neox"),
    *(pytest.param(n, marks=pytest.mark.medium) for n in ("opt", "llama", "qwen2", "gemma3_text")),
]


@pytest.mark.parametrize("model_type", TIED)
def test_a_tied_model_with_another_unembedding_is_not_tied(tmp_path, caplog, model_type):
    tiny(model_type, tmp_path)
    configure(tmp_path, tie_word_embeddings=True)
    change(tmp_path, remove=("lm_head.weight", "embed_out.weight"))
    config, tied = models.load(tmp_path, one())
    assert config.tied_embeddings
    name = "embed_out.weight" if model_type == "gpt_neox" else "lm_head.weight"
    # Equal, even in another dtype: tied, with the same digest of the config.
    table = np.asarray(tied["embedding"])
    change(tmp_path, **{name: table})
    assert models.load(tmp_path, one())[0] == config and "not tied" not in caplog.text
    other = table + np.float32(0.5) * (np.arange(64) == 63)[:, None].astype(np.float32)
    change(tmp_path, **{name: other})
    for _ in range(2):
        found, params = models.load(tmp_path, one())
    assert not found.tied_embeddings
    np.testing.assert_array_equal(np.asarray(params["unembedding"]), other.T)
    assert caplog.text.count(f"{tmp_path}: config.json ties the embeddings, but {name!r}") == 1
    models.export_huggingface(found, params, tmp_path / "out")
    again, params_again = models.load(tmp_path / "out", one())
    assert again == found
    assert_same_bits(whole(params_again), whole(params))
    assert sources.find(tmp_path).config == found
    # Only an unembedding: it is the embedding.
    del params["unembedding"]
    embedding = family_of_type(model_type).views(config)["embedding"].name
    change(tmp_path, remove=(embedding,), **{name: table})
    assert_same_bits(whole(models.load(tmp_path, one())[1]), whole(tied))


# --- rotary positions ----------------------------------------------------------------------------

NESTED = {"full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 5e5}}
REFUSED = {
    "nested": ("llama", {"rope_parameters": NESTED}, "unknown key 'full_attention'"),
    "nested where layers have types": ("qwen2", {"rope_parameters": NESTED}, "full_attention"),
    "nested and old": ("gemma2", {"rope_scaling": NESTED}, "rope_scaling: unknown key"),
    "flat": ("gemma3_text", {"rope_parameters": {"factor": 8.0}}, "unknown key 'factor'"),
    "misspelt": ("phi", {"rope_scaling": {"type": "linear", "factr": 2}}, "did you mean 'factor'"),
    "local": (
        "gemma3_text",
        {"rope_parameters": {"sliding_attention": {"factor": 2.0}}},
        "sliding_attention: unknown key 'factor'",
    ),
    "no object": ("mistral", {"rope_parameters": "linear"}, "rope_parameters: 'linear'"),
    "huge": ("qwen3", {"num_hidden_layers": 10**9}, "at most 10000"),
    "many layers": ("llama", {"num_hidden_layers": 9_999}, "describes 9999 layers"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_rope_sections_with_other_keys_are_refused(tmp_path, case):
    model_type, fields, words = REFUSED[case]
    tiny(model_type, tmp_path)
    configure(tmp_path, **{"rope_parameters": None, **fields})
    message = error(models.load, tmp_path, one())
    assert words in message and str(tmp_path) in message and "config.json" in message


LINEAR = {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}
NOTED = {
    "theta": ({"rope_theta": 5e5, "rope_parameters": {"rope_theta": 1e4}}, "rope_theta: 500000.0"),
    "type": ({"rope_scaling": {"type": "linear", "rope_type": "default"}}, "type 'linear'"),
    "both": (
        {"rope_scaling": {"type": "default"}, "rope_parameters": LINEAR},
        "rope_parameters differs from rope_scaling and is not used",
    ),
    "share": ({"partial_rotary_factor": 0.5}, "partial_rotary_factor: 0.5 is not used"),
    "other type's": ({"rope_scaling": {"rope_type": "default", "beta_fast": 32}}, "beta_fast"),
}


@pytest.mark.parametrize("case", NOTED)
def test_spellings_that_transformers_ignores_are_ignored_with_a_line(tmp_path, case, caplog):
    fields, words = NOTED[case]
    tiny("llama", tmp_path)
    configure(tmp_path, rope_parameters=None)
    plain = models.load(tmp_path, one())[0]
    assert not caplog.text
    configure(tmp_path, **fields)
    assert models.load(tmp_path, one())[0] == plain
    assert words in caplog.text and caplog.text.count(str(tmp_path)) == 1


# --- heads that are not used ---------------------------------------------------------------------

OTHER_HEADS = {
    "three classes": ("llama", "ForSequenceClassification", {"score.weight": (3, 32)}),
    "another width": ("llama", "ForSequenceClassification", {"score.weight": (2, 48)}),
    "tokens": ("qwen2", "ForTokenClassification", {"score.weight": (9, 32), "score.bias": (9,)}),
    "tokens of bert": ("bert", "ForTokenClassification", {"classifier.weight": (2, 32)}),
    "tokens of roberta": ("roberta", "ForTokenClassification", {"classifier.weight": (9, 32)}),
    "answers": ("bert", "ForQuestionAnswering", {"qa_outputs.weight": (2, 32)}),
    "answers of llama": ("llama", "ForQuestionAnswering", {"qa_outputs.weight": (2, 32)}),
    "choices": ("gpt2", "DoubleHeadsModel", {"multiple_choice_head.summary.weight": (1, 32)}),
    "value": ("gpt_neox", "ForCausalLM", {"v_head.summary.weight": (1, 32)}),
    "no such class": ("phi", "ForCausalLM", {"reward.0.weight": (3, 3), "reward.2.bias": (1,)}),
}


@pytest.mark.parametrize("case", OTHER_HEADS)
def test_a_head_that_is_not_used_asks_for_nothing(tmp_path, case, caplog):
    model_type, task, head = OTHER_HEADS[case]
    tensors = tiny(model_type, tmp_path)
    config, params = models.load(tmp_path, one())
    family = family_of_type(model_type)
    stem = family.classifier.removesuffix("ForSequenceClassification")
    if case == "answers of llama":  # whose class has another prefix
        tensors = {name.replace("model.", "transformer."): x for name, x in tensors.items()}
    if model_type in ENCODERS:
        tensors = {f"{model_type}.{name}": x for name, x in tensors.items()}
    tensors |= {name: np.ones(shape, np.float32) for name, shape in head.items()}
    save_file(tensors, tmp_path / files.SINGLE)
    configure(tmp_path, architectures=[stem + task])
    again, params_again = models.load(tmp_path, one())
    assert again == config
    assert_same_bits(whole(params_again), whole(params))
    named = "outside the backbone, and not used" in caplog.text
    assert named == (task != "ForSequenceClassification")
    if case == "another width":
        message = error(models.load_with_head, tmp_path, one())
        assert "tensor 'score.weight': shape [2, 48]; expected [2, 32]" in message
        assert "shape" in error(convert, str(tmp_path), tmp_path / "out", "orbax")
        convert(str(tmp_path), tmp_path / "out", "orbax", head=False)
    else:
        assert ("head" in models.load_with_head(tmp_path, one())[1]) == (case == "three classes")


def test_a_tensor_of_the_backbone_or_unembedding_is_not_a_head(tmp_path):
    tiny("gpt2", tmp_path)
    for name in ("lm_head.bias", "transformer.extra.weight", "h.7.ln_1.weight"):
        change(tmp_path, **{name: np.zeros(3, np.float32)})
        assert f"{name!r}: unexpected" in error(models.load, tmp_path, one())
        change(tmp_path, remove=(name,))


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


def test_a_phase_of_a_task_with_names_records_them():
    def recorded(task, **phase):
        phase = SimpleNamespace(**{"loss": "xent", "num_texts": 1} | phase)
        context = SimpleNamespace(settings=SimpleNamespace(task=SimpleNamespace(name=task)))
        return running._label_names(phase, context)

    assert recorded("sst2") == {"label_names": ["negative", "positive"]}
    assert recorded("sst2", loss=None) == recorded("sst2", num_texts=2) == {}
    assert recorded("my own folder") == recorded("sciq") == {}


# --- the padding of classifiers; with PyTorch in test_export_classifiers_torch --------------------

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


# --- tokenizers ----------------------------------------------------------------------------------


def test_a_special_token_that_no_text_has_needs_no_row(tmp_path):
    tiny("llama", tmp_path)
    tokenizer(tmp_path, "<x>", size=64)
    path = tmp_path / "tokenizer.json"
    record = json.loads(path.read_text())
    special = {"id": 64, "content": "<pad>", "special": True}
    special |= dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    record["added_tokens"].append(special)
    path.write_text(json.dumps(record))
    source = sources.find(tmp_path)
    found = load_tokenizer(str(tmp_path))
    assert (found.vocab_size, found.text_vocab_size) == (65, 64)
    sources.check_fits(source, found.text_vocab_size, found.name)
    assert found.encode_batch(["good <pad> film"])[0].max() < 64
    # But an ordinary token, and one that the tokenizer adds to texts, do.
    special["special"] = False
    path.write_text(json.dumps(record))
    assert "token '<pad>' has id 64, but the embedding has 64 rows" in error(sources.find, tmp_path)
    special["special"] = True
    record["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [
            {"SpecialToken": {"id": "<pad>", "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}},
        ],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {"<pad>": {"id": "<pad>", "ids": [64], "tokens": ["<pad>"]}},
    }
    path.write_text(json.dumps(record))
    assert "token '<pad>' has id 64" in error(sources.find, tmp_path)
    assert load_tokenizer(str(tmp_path)).text_vocab_size == 65


# --- adapters ------------------------------------------------------------------------------------


def adapted(folder, model_type):
    """The base in folder/base, its adapters for PEFT in folder/adapters; (config, merged model)."""
    tiny(model_type, folder / "base")
    found = importing.import_huggingface(folder / "base", one())
    config = found.config.with_adapters(3, 5.0, ["*"])
    draw = np.random.default_rng(2)
    params = jax.tree_util.tree_map_with_path(
        lambda path, x: (
            x + 0.2 * draw.standard_normal(x.shape).astype(np.float32)
            if lora.is_adapter(path[-1].key)
            else x
        ),
        lora.add(config, found.params, 0, one()),
    )
    head = {"kernel": jax.random.normal(jax.random.key(1), (32, 2))}
    config = dataclasses.replace(
        config, read_out="pooler" if config.bidirectional else config.read_out
    )
    base = str(folder / "base")
    lora.save_peft(config, params, folder / "adapters", base_model=base, head=head)
    return *lora.merge(config, params), head


MEDIUM = [pytest.param(name, marks=pytest.mark.medium) for name in ("gpt_neox", "llama")]


@pytest.mark.parametrize("model_type", ("gpt2", "roberta", *MEDIUM))
def test_adapters_are_loaded_onto_the_base_that_they_name(tmp_path, caplog, model_type):
    config, expected, head = adapted(tmp_path, model_type)
    found, params = models.load_with_head(tmp_path / "adapters", sharding.mesh_of((2, 2, 2)))
    assert found == config and "not used" not in caplog.text
    for name, array in whole(expected).items():
        np.testing.assert_allclose(np.asarray(whole(params["backbone"])[name]), array, atol=1e-6)
    np.testing.assert_array_equal(np.asarray(params["head"]["kernel"]), np.asarray(head["kernel"]))
    source = sources.find(tmp_path / "adapters")
    assert source.config == config and source.name == "adapters"
    digests = {source.digest, sources.find(tmp_path / "base").digest}
    record = tmp_path / "adapters" / files.ADAPTER_CONFIG
    changed = json.loads(record.read_text()) | {"lora_alpha": 6.0, "alpha_pattern": {}}
    record.write_text(json.dumps(changed))
    digests.add(sources.find(tmp_path / "adapters").digest)
    assert len(digests) == 3
    convert(str(tmp_path / "adapters"), tmp_path / "out", "huggingface")
    assert "Classification" in files.read_config(tmp_path / "out")["architectures"][0]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"base_model_name_or_path": "no/where"}, "the base model 'no/where', which is not found"),
        ({"base_model_name_or_path": None}, "base_model_name_or_path: 'None'; give the folder"),
        ({"base_model_name_or_path": "."}, "is not a model in Hugging Face's layout"),
        ({"peft_type": "IA3"}, "peft_type: 'IA3'; allowed: LORA"),
        ({"use_dora": True}, "use_dora: 'True'; allowed: False"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights: 'pissa'"),
        ({"lora_alpha": "x"}, "lora_alpha: 'x'; allowed: a number"),
        ({"alpha_pattern": {"(": 3}}, "alpha_pattern"),
    ],
)
def test_adapters_that_cannot_be_loaded_get_one_line(tmp_path, monkeypatch, fields, words):
    adapted(tmp_path, "llama")
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "adapters" / files.ADAPTER_CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    for call in (models.load, sources.find):
        assert words in error(call, tmp_path / "adapters")
    assert mutations.fails(mutations.check_model, tmp_path / "adapters") is not None


def test_adapters_that_do_not_fit_get_one_line(tmp_path, caplog):
    adapted(tmp_path, "llama")
    file = tmp_path / "adapters" / files.ADAPTER
    tensors = load_file(file)
    name = next(name for name in tensors if "q_proj.lora_A" in name)
    for changed, words in (
        ({name: tensors[name][:, 1:]}, "has shape [3, 31]; expected [3, 32]"),
        ({name.replace("layers.0", "layers.9"): tensors[name]}, "does not fit the base model"),
        ({name.replace("lora_A", "lora_magnitude"): tensors[name]}, "is not supported"),
    ):
        save_file(tensors | {k: np.ascontiguousarray(x) for k, x in changed.items()}, file)
        message = error(models.load, tmp_path / "adapters", one())
        assert words in message and str(file) in message
    file.unlink()
    assert "but no adapter_model.safetensors" in error(models.load, tmp_path / "adapters", one())
    # Beside a whole model, adapters are not applied.
    tiny("llama", tmp_path / "adapters")
    models.load(tmp_path / "adapters", one())
    assert "has model.safetensors and adapters, which are not applied" in caplog.text


def test_adapters_are_downloaded_with_their_tokenizer():
    names = [
        files.ADAPTER_CONFIG,
        files.ADAPTER,
        "tokenizer.json",
        "README.md",
        "adapter_model.bin",
    ]
    wanted = hf_models._wanted_files(names, "some/adapters")
    assert sorted(wanted) == sorted(names[:3])
    assert files.ADAPTER not in hf_models._wanted_files([*names, files.SINGLE], "some/model")


# --- files beside others -------------------------------------------------------------------------


def test_a_whole_file_beside_shards_is_used_and_said(tmp_path, caplog):
    tiny("gpt2", tmp_path)
    (tmp_path / files.INDEX).write_text(json.dumps({"weight_map": {"x": "y"}}))
    models.load(tmp_path, one())
    assert f"{tmp_path}: has model.safetensors and model.safetensors.index.json" in caplog.text


@pytest.mark.parametrize("listed", [True, False])
def test_modules_of_sentence_transformers_that_are_not_applied_are_said(tmp_path, caplog, listed):
    tiny("bert", tmp_path)
    names = ("Transformer", "Pooling", "Dense", "Normalize")
    paths = ["", *(f"{i}_{name}" for i, name in enumerate(names[1:], 1))]
    for path in paths[1:]:
        (tmp_path / path).mkdir()
    models.load(tmp_path, one())
    assert caplog.text.count("not applied: 2_Dense, 3_Normalize;") == 1
    if listed:
        record = [
            {"idx": i, "path": path, "type": f"sentence_transformers.models.{name}"}
            for i, (path, name) in enumerate(zip(paths, names, strict=True))
        ]
        (tmp_path / files.MODULES).write_text(json.dumps(record[:3]))
        models.load(tmp_path, one())
        assert "not applied: 2_Dense;" in caplog.text


# --- mutations -----------------------------------------------------------------------------------


@pytest.mark.parametrize("field", ["hidden_act", "model_type", "architectures", "layer_types"])
@pytest.mark.parametrize("value", [{"x": []}, [], [[]], 0.5, True, ["x", 1]], ids=str)
def test_config_values_of_another_type_get_one_line(tmp_path, field, value):
    tiny("qwen3", tmp_path)
    configure(tmp_path, **{field: value})
    if (message := mutations.fails(mutations.check_model, tmp_path)) is not None:
        assert field in message and "config.json" in message


def test_mutated_files_are_read_or_refused_in_one_line(tmp_path):
    cases = [*mutations.model_folders(tmp_path / "m"), *mutations.tokenizer_folders(tmp_path / "t")]
    assert len(cases) == len(TINY | ENCODERS) + 7
    for name, path, check in cases:
        mutations.attempt(path, check, 12, random.Random(name))


def test_every_family_of_one_config_is_found_by_name():
    """Classes for other tasks belong to the family of the stem."""
    for family in families.FAMILIES.values():
        if family.classifier:
            stem = family.classifier.removesuffix("ForSequenceClassification")
            record = {"architectures": [f"{stem}ForTokenClassification"]}
            assert families.family_of(record, "here") is family
    assert families.family_of({"architectures": "Gemma3TextModel"}, "here").name == "gemma3"
    with pytest.raises(InputError, match="architectures"):
        families.family_of({"architectures": [["x"]]}, "here")
