"""Folders in Hugging Face's layout: imported with any sharding, exported bit for bit."""

import json

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from checkpoints import (
    ENCODERS,
    TINY,
    assert_same_bits,
    family_of_type,
    one,
    tensors_of,
    tiny,
    whole,
)
from flax import traverse_util
from peers import assemble
from refusals import error
from safetensors.numpy import load_file, save_file

from w2s_jax import models, sharding
from w2s_jax.core import errors
from w2s_jax.models import checkpoint_files as files
from w2s_jax.models import importing, network, partial_reads
from w2s_jax.models.config import embedded_model
from w2s_jax.models.convert import convert
from w2s_jax.store import trees

MESHES = ((1, 1, 1), (1, 8, 1), (2, 2, 2))


@pytest.mark.parametrize("model_type", TINY | ENCODERS)
def test_import_and_export_keep_every_bit(tmp_path, model_type):
    tensors = tiny(model_type, tmp_path / "in")
    found = importing.import_huggingface(tmp_path / "in", sharding.mesh_of((1, 8, 1)))
    # `peers.assemble` is another way to the same parameters.
    expected = assemble(family_of_type(model_type), found.config, tensors)
    assert_same_bits(whole(found.params), whole(expected))
    models.export_huggingface(
        found.config, found.params, tmp_path / "out", source=found.huggingface, shard_bytes=20_000
    )
    assert len(list((tmp_path / "out").glob("model-*-of-*.safetensors"))) > 1
    assert_same_bits(tensors_of(tmp_path / "out"), tensors)
    again = importing.import_huggingface(tmp_path / "out", one())
    assert again.config == found.config
    assert_same_bits(whole(again.params), whole(expected))
    assert again.huggingface["eos_token_id"] == 2


@pytest.mark.parametrize("family", ("gpt2", "gpt_neox", "llama"))
def test_golden_models_come_back_as_transformers_saved_them(golden, tmp_path, family):
    found = importing.import_huggingface(golden / family, one())
    models.export_huggingface(found.config, found.params, tmp_path / "out")
    assert_same_bits(tensors_of(tmp_path / "out"), tensors_of(golden / family))


@pytest.mark.parametrize("shape", MESHES)
@pytest.mark.parametrize("model_type", ("gpt2", "gpt_neox", "llama"))
def test_each_device_gets_its_slice(tmp_path, model_type, shape):
    tensors = tiny(model_type, tmp_path)
    mesh = sharding.mesh_of(shape)
    found = importing.import_huggingface(tmp_path, mesh)
    expected = whole(assemble(family_of_type(model_type), found.config, tensors))
    abstract = traverse_util.flatten_dict(network.abstract_params(found.config, mesh), sep=".")
    for name, array in traverse_util.flatten_dict(found.params, sep=".").items():
        assert array.sharding == abstract[name].sharding, name
        for shard in array.addressable_shards:
            np.testing.assert_array_equal(np.asarray(shard.data), expected[name][shard.index])


class Spy:
    """Count the elements read of each tensor."""

    def __init__(self, monkeypatch):
        self.reads = []
        real = files.read_box

        def read_box(tensor, box):
            data = real(tensor, box)
            self.reads.append((tensor.name, data.size))
            return data

        monkeypatch.setattr(partial_reads, "read_box", read_box)

    def total(self, name):
        return sum(size for read, size in self.reads if read == name)


def test_only_what_a_shard_needs_is_read(tmp_path, monkeypatch):
    tensors = tiny("llama", tmp_path)
    spy = Spy(monkeypatch)
    mesh = sharding.mesh_of((2, 2, 2))
    importing.import_huggingface(tmp_path, mesh)
    # Split over fsdp and tensor, the same twice over data: each element is read once.
    for name in ("lm_head.weight", "model.layers.1.mlp.up_proj.weight"):
        assert spy.total(name) == tensors[name].size
    query = "model.layers.0.self_attn.q_proj.weight"
    assert [size for name, size in spy.reads if name == query] == [tensors[query].size // 4] * 4
    # One device alone: rows of its heads, columns of its part of the width.
    view = family_of_type("llama").views(models.load(tmp_path, one())[0])
    view = view["blocks.attention.query.kernel"]
    stored = files.open_tensors(tmp_path)[query]
    part = partial_reads.read_part(stored, view, [(8, 16), (3, 4), (0, 8)])
    np.testing.assert_array_equal(part[:, 0], tensors[query][24:32, 8:16].T)
    assert spy.reads[-1] == (query, 64)


def test_boxes_of_fused_tensors_are_small():
    # GPT-2: columns [3, heads, size]; the heads 1 to 2 of the keys.
    box, sizes, local = partial_reads.covering_box(
        (32, 96), (32, 3, 4, 8), [(0, 4), (1, 2), (1, 3), (0, 8)]
    )
    assert box == [(0, 4), (40, 56)] and sizes == [4, 1, 2, 8]
    assert local == [(0, 4), (0, 1), (0, 2), (0, 8)]
    # GPT-NeoX: rows [heads, 3, size]; queries of head 2 alone, then of two heads.
    rows = [(2, 3), (0, 1), (0, 8), (0, 32)]
    assert partial_reads.covering_box((96, 32), (4, 3, 8, 32), rows)[0] == [(48, 56), (0, 32)]
    rows[0] = (2, 4)
    assert partial_reads.covering_box((96, 32), (4, 3, 8, 32), rows)[0] == [(48, 96), (0, 32)]


@pytest.mark.parametrize("stored", ("float16", "bfloat16", "float32"))
@pytest.mark.parametrize("wanted", importing.DTYPES)
def test_dtypes_are_cast_on_import(tmp_path, stored, wanted):
    kind = ml_dtypes.bfloat16 if stored == "bfloat16" else np.dtype(stored)
    tensors = tiny("gpt2", tmp_path / "in", kind)
    found = importing.import_huggingface(tmp_path / "in", sharding.mesh_of((1, 8, 1)), wanted)
    expected = whole(assemble(family_of_type("gpt2"), found.config, tensors))
    cast = {name: array.astype(jnp.dtype(wanted)) for name, array in expected.items()}
    assert_same_bits(whole(found.params), cast)
    if stored == "bfloat16":
        models.export_huggingface(found.config, found.params, tmp_path / "out", dtype="bfloat16")
        assert_same_bits(tensors_of(tmp_path / "out"), tensors)
        assert files.read_config(tmp_path / "out")["dtype"] == "bfloat16"


def test_names_without_prefix_and_spare_tensors(tmp_path):
    tensors = tiny("gpt2", tmp_path)
    expected = whole(models.load(tmp_path, one())[1])
    bare = {name.removeprefix("transformer."): array for name, array in tensors.items()}
    bare["h.0.attn.bias"] = np.ones((1, 1, 48, 48), bool)
    bare["h.1.attn.masked_bias"] = np.float32([-1e4])
    bare["lm_head.weight"] = bare["wte.weight"]
    save_file(bare, tmp_path / files.SINGLE)
    assert_same_bits(whole(models.load(tmp_path, one())[1]), expected)


def test_a_classifier_has_no_language_model_head(tmp_path, caplog):
    tiny("llama", tmp_path / "in")
    found = importing.import_huggingface(tmp_path / "in", one())
    kernel = jax.random.normal(jax.random.key(0), (32, 2))
    out = tmp_path / "out"
    models.export_huggingface(
        found.config, found.params, out, head={"kernel": kernel}, source=found.huggingface
    )
    record = files.read_config(out)
    assert record["architectures"] == ["LlamaForSequenceClassification"]
    assert record["id2label"] == {"0": "LABEL_0", "1": "LABEL_1"}
    assert "lm_head.weight" not in tensors_of(out)
    config, params = models.load_with_head(out, sharding.mesh_of((1, 8, 1)))
    np.testing.assert_array_equal(np.asarray(params["head"]["kernel"]), np.asarray(kernel))
    assert params["head"]["kernel"].dtype == jnp.float32
    assert "'lm_head.weight' is missing" in caplog.text
    assert not np.asarray(params["backbone"]["unembedding"]).any()
    assert config == found.config


def _rewrite(folder, change):
    tensors = load_file(folder / files.SINGLE)
    change(tensors)
    save_file(tensors, folder / files.SINGLE)


def _cut(folder):
    data = (folder / files.SINGLE).read_bytes()
    (folder / files.SINGLE).write_bytes(data[: len(data) // 2])


def _configure(**fields):
    def change(folder):
        record = json.loads((folder / "config.json").read_text()) | fields
        (folder / "config.json").write_text(json.dumps(record))

    return change


def _put(name, array):
    return lambda folder: _rewrite(folder, lambda tensors: tensors.update({name: array}))


def _index(weight_map):
    def change(folder):
        (folder / files.SINGLE).rename(folder / "model-00001-of-00001.safetensors")
        (folder / files.INDEX).write_text(json.dumps({"weight_map": weight_map}))

    return change


def _tokenizer(vocab, added=()):
    record = {"model": {"type": "BPE", "vocab": vocab}, "added_tokens": list(added)}
    return lambda folder: (folder / "tokenizer.json").write_text(json.dumps(record))


_ONE = "model-00001-of-00001.safetensors"
_UP = "model.layers.1.mlp.up_proj.weight"
DAMAGES = {
    "cut": (_cut, ("model.safetensors: is damaged or truncated", "not fully covered")),
    "garbage": (
        lambda f: (f / files.SINGLE).write_bytes(b"\xff" * 99),
        ("is damaged or truncated",),
    ),
    "empty": (lambda f: (f / files.SINGLE).write_bytes(b""), ("model.safetensors: is damaged",)),
    "lfs": (
        lambda f: (f / files.SINGLE).write_text("version https://git-lfs.github.com/spec/v1\n"),
        ("is a Git LFS pointer", "git lfs pull"),
    ),
    "missing": (
        lambda f: _rewrite(f, lambda tensors: tensors.pop(_UP)),
        ("model.safetensors: tensor", _UP, "is missing"),
    ),
    "no_head": (
        lambda f: _rewrite(f, lambda tensors: tensors.pop("lm_head.weight")),
        ("tensor 'lm_head.weight' is missing",),
    ),
    "unexpected": (
        _put("model.layers.2.mlp.up_proj.weight", np.zeros((48, 32), np.float32)),
        ("tensor 'model.layers.2.mlp.up_proj.weight': unexpected", "config.json", "nearest: 'mod"),
    ),
    "shape": (
        _put(_UP, np.zeros((32, 48), np.float32)),
        (f"tensor '{_UP}': shape [32, 48]; expected", "[48, 32]"),
    ),
    "dtype": (
        _put(_UP, np.zeros((48, 32), np.int64)),
        (f"tensor '{_UP}': type I64; allowed: F32, F16, BF16",),
    ),
    "architecture": (
        _configure(architectures=["LamaForCausalLM"]),
        ("unknown value 'LamaForCausalLM' (did you mean 'LlamaForCausalLM'?)", "config.json"),
    ),
    "option": (_configure(hidden_size="x"), ("hidden_size: 'x'; allowed",)),
    "size": (_configure(vocab_size=65), ("embed_tokens.weight': shape [64, 32]", "[65, 32]")),
    "config": (lambda f: (f / "config.json").unlink(), ("has no config.json",)),
    "no_json": (lambda f: (f / "config.json").write_text("{"), ("not valid JSON",)),
    "list": (
        lambda f: (f / "config.json").write_text("[]"),
        ("expected a JSON object, found list",),
    ),
    "pickle": (
        lambda f: (f / files.SINGLE).rename(f / "pytorch_model.bin"),
        ("'pytorch_model.bin' but no safetensors", "save_pretrained"),
    ),
    "nothing": (lambda f: (f / files.SINGLE).unlink(), ("has no safetensors",)),
    "other": (
        lambda f: (f / files.SINGLE).rename(f / "adapter_model.safetensors"),
        ("'adapter_model.safetensors', but neither model.safetensors",),
    ),
    "index_file": (
        _index({_UP: "model-00007.safetensors"}),
        (files.INDEX, "the file 'model-00007.safetensors'", _UP, "missing"),
    ),
    "index_tensor": (_index({"x.y": _ONE}), (f"{_ONE}: tensor 'x.y' is missing",)),
    "index_path": (_index({_UP: "../x.safetensors"}), ("'../x.safetensors' is not the name",)),
    "index_empty": (_index([]), (files.INDEX, "no 'weight_map'")),
    "vocabulary": (
        _tokenizer({"a": 63}, [{"id": 64, "content": "<pad>"}]),
        ("tokenizer.json: token '<pad>' has id 64", "64 rows", "embed_tokens.weight"),
    ),
    "tokenizer": (_tokenizer(3), ("tokenizer.json: is not a tokenizer",)),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_named_in_one_line(tmp_path, name):
    damage, words = DAMAGES[name]
    tiny("llama", tmp_path)
    damage(tmp_path)
    message = error(models.load, tmp_path, one())
    assert str(tmp_path) in message
    for word in words:
        assert word in message


def test_a_tokenizer_that_fits_is_fine(tmp_path):
    tiny("llama", tmp_path)
    _tokenizer({"a": 63})(tmp_path)
    unigram = {"model": {"type": "Unigram", "vocab": [["a", 0.0]] * 64}}
    models.load(tmp_path, one())
    (tmp_path / "tokenizer.json").write_text(json.dumps(unigram))
    models.load(tmp_path, one())
    assert "unknown value 'float64'" in error(models.load, tmp_path, one(), "float64")


def test_nothing_is_overwritten_and_no_partial_folder_remains(tmp_path, monkeypatch):
    tiny("llama", tmp_path / "in")
    config, params = models.load(tmp_path / "in", one())
    assert "already exists" in error(models.export_huggingface, config, params, tmp_path / "in")

    def full(path, tensors):
        raise OSError("No space left on device")

    monkeypatch.setattr(files, "write_shard", full)
    with pytest.raises(errors.StorageError, match="out: cannot be written .OSError: No space"):
        models.export_huggingface(config, params, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


@pytest.mark.parametrize("name", ("gpt-d16", "rotary-d32"))
def test_embedded_models_are_exported_as_models_of_a_family(tmp_path, name):
    config = embedded_model(name, vocab_size=29, max_positions=40)
    params = network.init_params(config, 0, one())
    models.export_huggingface(config, params, tmp_path / "out")
    found = importing.import_huggingface(tmp_path / "out", one())
    assert_same_bits(whole(found.params), whole(params))
    assert found.config.family == {"gpt-d16": "gpt2", "rotary-d32": "llama"}[name]
    tokens = jnp.arange(10)[None]
    np.testing.assert_array_equal(
        np.asarray(models.forward(found.config, found.params, tokens)),
        np.asarray(models.forward(config, params, tokens)),
    )


def test_convert_round_trip(tmp_path):
    tensors = tiny("gpt2", tmp_path / "in", ml_dtypes.bfloat16)
    tensors["score.weight"] = np.ones((1, 32), ml_dtypes.bfloat16)
    save_file(tensors, tmp_path / "in" / files.SINGLE)
    _configure(architectures=["GPT2ForSequenceClassification"])(tmp_path / "in")
    _tokenizer({"a": 0}, [{"id": 3, "content": "<pad>", "special": True}])(tmp_path / "in")
    line = convert(str(tmp_path / "in"), tmp_path / "ours", "orbax", dtype="bfloat16")
    assert "(orbax): gpt2, " in line
    final = tmp_path / "ours" / "checkpoints" / "final"
    assert trees.damage(final) is None
    _, params = models.load_with_head(tmp_path / "ours", sharding.mesh_of((1, 8, 1)))
    assert params["backbone"]["embedding"].dtype == jnp.bfloat16
    assert params["head"]["kernel"].shape == (32, 1)
    assert models.load(tmp_path / "ours", one(), "float32")[1]["embedding"].dtype == jnp.float32
    convert(str(tmp_path / "ours"), tmp_path / "out", "huggingface")
    assert_same_bits(tensors_of(tmp_path / "out"), tensors)
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (
        tmp_path / "in" / "tokenizer.json"
    ).read_bytes()
    assert files.read_config(tmp_path / "out")["eos_token_id"] == 2
    assert "unknown value 'orbac' (did you mean 'orbax'?)" in error(convert, "a", "b", "orbac")
    assert "--to: " in error(convert, str(tmp_path / "in"), tmp_path / "ours", "orbax")
    assert "--tokenizer: " in error(convert, "a", tmp_path / "n", "orbax", tokenizer="nowhere")
    next(p for p in final.rglob("*") if p.is_file()).write_bytes(b"x")
    with pytest.raises(errors.StorageError, match="damaged"):
        models.load(tmp_path / "ours", one())


def test_convert_on_the_command_line(tmp_path, golden, capsys):
    from w2s_jax.cli.main import main

    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    assert main(["convert", f"--from={golden}/llama", f"--to={ours}", "--format=orbax"]) == 0
    assert main(["convert", f"--from={ours}", f"--to={theirs}", "--format=huggingface"]) == 0
    before = (golden / "llama" / "model.safetensors").read_bytes()
    after = (theirs / "model.safetensors").read_bytes()
    header = int.from_bytes(before[:8], "little")
    assert (
        json.loads(before[8 : 8 + header]).keys() - {"__metadata__"}
        <= json.loads(after[8 : 8 + int.from_bytes(after[:8], "little")]).keys()
    )
    capsys.readouterr()
    for arguments, message in (
        ([f"--from={golden}/llama", f"--to={ours}", "--format=orbax"], str(ours)),
        ([f"--from={golden}/llama", f"--to={tmp_path}/x", "--format=orbix"], "'orbax'"),
        ([f"--from={golden}", f"--to={tmp_path}/x", "--format=orbax"], str(golden)),
    ):
        assert main(["convert", *arguments]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and message in error, error
    assert not (tmp_path / "x").exists()
