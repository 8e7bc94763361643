"""Folders that users have: what is not used asks for nothing, and what is not as said is named."""

import json
import random

import mutations
import numpy as np
import pytest
from checkpoints import (
    ENCODERS,
    TINY,
    assert_same_bits,
    change,
    configure,
    family_of_type,
    one,
    tiny,
    tokenizer,
    whole,
)
from refusals import error
from safetensors.numpy import save_file

from w2s_jax import models
from w2s_jax.core.errors import InputError
from w2s_jax.data.tokenizers import load_tokenizer
from w2s_jax.models import checkpoint_files as files
from w2s_jax.models import families, sources
from w2s_jax.models.convert import convert

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
        mutations.attempt(path, check, 6, random.Random(name))


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
