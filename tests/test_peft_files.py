"""Folders with PEFT's adapters."""

import dataclasses
import json
import shutil

import jax
import mutations
import numpy as np
import pytest
from checkpoints import (
    one,
    tiny,
    whole,
)
from refusals import error
from safetensors.numpy import load_file, save_file

from w2s_jax import models, sharding
from w2s_jax.models import checkpoint_files as files
from w2s_jax.models import hf_models, importing, lora, sources
from w2s_jax.models.convert import convert


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


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """A folder with 'base' and 'adapters', not to be changed."""
    folder = tmp_path_factory.mktemp("llama")
    adapted(folder, "llama")
    return folder


MEDIUM = [pytest.param(name, marks=pytest.mark.medium) for name in ("gpt_neox", "llama", "roberta")]


@pytest.mark.parametrize("model_type", ("gpt2", *MEDIUM))
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
def test_adapters_that_cannot_be_loaded_get_one_line(tmp_path, monkeypatch, llama, fields, words):
    shutil.copytree(llama / "adapters", tmp_path / "adapters")
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "adapters" / files.ADAPTER_CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    for call in (models.load, sources.find):
        assert words in error(call, tmp_path / "adapters")
    assert mutations.fails(mutations.check_model, tmp_path / "adapters") is not None


def test_adapters_that_do_not_fit_get_one_line(tmp_path, caplog, llama):
    shutil.copytree(llama / "adapters", tmp_path / "adapters")
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
