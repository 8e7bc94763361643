"""MODEL@layers=K: the first K layers of a checkpoint, with its final norm."""

import dataclasses
import json

import checkpoints
import jax
import numpy as np
import pytest
from checkpoints import one, tiny, tokenizer, whole
from refusals import error
from safetensors.numpy import save_file

import w2s_jax
from w2s_jax import models, testing
from w2s_jax.cli.main import main
from w2s_jax.models import checkpoint_files as files
from w2s_jax.models import heads, hf_models, importing, loading, network, sources
from w2s_jax.models.convert import convert

LAYERS = 5
EVERY = [*checkpoints.TINY, *checkpoints.ENCODERS]
LAYER_KEYS = {"gpt2": "n_layer"}


def deep(model_type, folder, monkeypatch, layers=LAYERS):
    """A tiny model of the family with more layers."""
    sizes = checkpoints.SIZES | {"num_hidden_layers": layers}
    if model_type in ("gemma2", "gemma3_text"):
        sizes |= {"sliding_window": 4}
    if model_type == "qwen2":
        sizes |= {"sliding_window": 4, "use_sliding_window": True, "max_window_layers": 3}
    monkeypatch.setattr(checkpoints, "SIZES", sizes)
    return tiny(model_type, folder)


def normed(config, x, norm):
    """The final norm in float64."""
    x = np.asarray(x, np.float64)
    if config.norm == "layernorm":
        x = x - x.mean(-1, keepdims=True)
    x = x / np.sqrt((x**2).mean(-1, keepdims=True) + config.norm_epsilon)
    return x * (np.asarray(norm["scale"]) + config.unit_offset) + np.asarray(norm.get("bias", 0.0))


@pytest.mark.parametrize("model_type", EVERY)
def test_the_hidden_states_are_those_after_the_block_and_the_final_norm(
    model_type, tmp_path, monkeypatch
):
    deep(model_type, tmp_path / "model", monkeypatch)
    config, params = models.load(tmp_path / "model", one())
    tokens = np.random.default_rng(0).integers(3, 60, (2, 12))
    _, taps = network.forward_with_taps(config, params, tokens, tap=lambda x: x)
    for count in (1, 4):
        cut, few = models.load(f"{tmp_path / 'model'}@layers={count}", one())
        assert cut.name == f"{config.name}@layers={count}" and cut.num_layers == count
        assert {len(x) for x in jax.tree.leaves(few["blocks"])} == {count}
        hidden = models.forward(cut, few, tokens)
        wanted = taps[count - 1]
        if not config.bidirectional:
            wanted = normed(config, wanted, params["final_norm"])
        np.testing.assert_allclose(hidden, wanted, rtol=1e-4, atol=1e-5)
        if not config.bidirectional:
            # The heads are the same.
            ours = heads.language_model_logits(cut, few, hidden)
            theirs = heads.language_model_logits(config, params, wanted.astype(np.float32))
            np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("model_type", EVERY)
def test_an_export_is_the_same_model(model_type, tmp_path, monkeypatch):
    """Also where all of the layers that remain have a window, or none."""
    deep(model_type, tmp_path / "model", monkeypatch)
    for count in (1, 3, 4):
        given, new = f"{tmp_path / 'model'}@layers={count}", tmp_path / f"{count}"
        assert f"@layers={count}, " in convert(given, str(new), "huggingface")
        assert (
            json.loads((new / "config.json").read_text())[
                LAYER_KEYS.get(model_type, "num_hidden_layers")
            ]
            == count
        )
        cut, few = models.load(given, one())
        again, same = models.load(new, one())
        assert dataclasses.replace(cut, name="", init_std=0.0) == dataclasses.replace(
            again, name="", init_std=0.0
        )
        checkpoints.assert_same_bits(whole(few), whole(same))


def test_only_these_blocks_are_read(tmp_path, monkeypatch):
    deep("llama", tmp_path, monkeypatch)
    read = []

    def read_part(tensor, view, part):
        read.append(tensor.name)
        return original(tensor, view, part)

    original = importing.read_part
    monkeypatch.setattr(importing, "read_part", read_part)
    models.load(f"{tmp_path}@layers=2", one())
    assert {name.split(".")[2] for name in read if "layers" in name} == {"0", "1"}
    assert {"model.norm.weight", "lm_head.weight", "model.embed_tokens.weight"} < set(read)


def test_the_digest_is_that_of_the_whole_checkpoint_and_the_number(tmp_path, monkeypatch):
    tensors = deep("qwen3", tmp_path / "a", monkeypatch)
    deep("qwen3", tmp_path / "b", monkeypatch)
    first, second = (sources.find(f"{tmp_path / n}@layers=2") for n in "ab")
    assert first.digest == second.digest and first.layers == 2
    assert first.name == "a@layers=2" and first.config.num_layers == 2
    others = [sources.find(f"{tmp_path / 'a'}{suffix}").digest for suffix in ("", "@layers=3")]
    assert len({first.digest, *others}) == 3
    # A tensor that is left out counts.
    tensors["model.layers.4.mlp.up_proj.weight"][0, 0] += 1
    save_file(tensors, tmp_path / "b" / files.SINGLE, metadata={"format": "pt"})
    assert sources.find(f"{tmp_path / 'b'}@layers=2").digest != first.digest


def test_an_existing_path_of_that_name_wins(tmp_path, monkeypatch):
    deep("llama", tmp_path / "model@layers=2", monkeypatch)
    config, _ = models.load(tmp_path / "model@layers=2", one())
    assert config.num_layers == LAYERS
    cut, _ = models.load(f"{tmp_path / 'model@layers=2'}@layers=3", one())
    assert cut.num_layers == 3


def test_a_revision_of_the_hub_is_named_with_its_layers(tmp_path, monkeypatch):
    deep("gpt_neox", tmp_path / "snapshot", monkeypatch)
    asked = []

    def download(name, revision):
        asked.append((name, revision))
        return tmp_path / "snapshot"

    monkeypatch.setattr(hf_models, "_download", download)
    source = sources.find("org/name@step3000@layers=2")
    assert source.name == "name@step3000@layers=2" and source.config.num_layers == 2
    assert source.location == f"{tmp_path / 'snapshot'}@layers=2"
    assert models.load("org/name@layers=3", one())[0].num_layers == 3
    assert asked == [("org/name", "step3000"), ("org/name", None)]


def test_a_class_head_of_the_whole_model_is_left_out(tmp_path, monkeypatch):
    deep("llama", tmp_path, monkeypatch)
    head = np.ones((2, 32), np.float32)
    checkpoints.change(tmp_path, remove=["lm_head.weight"], **{"score.weight": head})
    checkpoints.configure(tmp_path, architectures=["LlamaForSequenceClassification"])
    assert "head" in loading.load_with_head(tmp_path, one())[1]
    assert "head" not in loading.load_with_head(f"{tmp_path}@layers=2", one())[1]


@pytest.mark.parametrize(
    "suffix,words",
    [
        ("@layer=4", ["'layer'", "did you mean 'layers'?"]),
        ("@layers=0", ["'0'", "at least 1"]),
        ("@layers=-1", ["'-1'", "at least 1"]),
        ("@layers=two", ["'two'", "the number of layers to keep"]),
        ("@layers=", ["''", "MODEL[@REVISION]@layers=K"]),
        ("@layers=2@main", ["'2@main'", "at the end"]),
        ("@layers=6", ["6", "allowed: 1 to 5"]),
    ],
)
@pytest.mark.parametrize("kind", ["huggingface", "orbax"])
def test_other_numbers_are_refused(suffix, words, kind, tmp_path, monkeypatch):
    folder = tmp_path / "model"
    deep("llama", folder, monkeypatch)
    if kind == "orbax":
        folder = tmp_path / "ours"
        convert(str(tmp_path / "model"), str(folder), "orbax")
    given = f"{folder}{suffix}"
    for call in (sources.find, models.load):
        message = error(call, given)
        assert given in message or "@layers=2" in message
        for word in words:
            assert word in message


def test_embedded_models_have_no_checkpoint():
    assert "gpt-d32 is pretrained within the run" in error(sources.find, "gpt-d32@layers=1")


def test_converted_models_and_phases_are_cut_too(tmp_path, monkeypatch):
    deep("gemma2", tmp_path / "model", monkeypatch)
    convert(str(tmp_path / "model"), str(tmp_path / "ours"), "orbax")
    cut, few = models.load(f"{tmp_path / 'ours'}@layers=3", one())
    wanted, same = models.load(f"{tmp_path / 'model'}@layers=3", one())
    assert cut == wanted
    checkpoints.assert_same_bits(whole(few), whole(same))
    # What is cut and converted keeps its name.
    convert(f"{tmp_path / 'model'}@layers=3", str(tmp_path / "cut"), "orbax")
    again, same = models.load(tmp_path / "cut", one())
    assert again.name == cut.name == "gemma2@layers=3"
    checkpoints.assert_same_bits(whole(few), whole(same))


def adapters(folder, last):
    """A folder with PEFT's adapters of the queries of the first block and of another one."""
    new = folder / f"adapters{last}"
    new.mkdir()
    draw = np.random.default_rng(last)
    tensors = {
        f"base_model.model.model.layers.{block}.self_attn.q_proj.lora_{part}.weight": draw.normal(
            size=shape
        ).astype(np.float32)
        for block in (0, last)
        for part, shape in (("A", (2, 32)), ("B", (32, 2)))
    }
    save_file(tensors, new / files.ADAPTER)
    record = {"peft_type": "LORA", "base_model_name_or_path": str(folder / "base"), "r": 2}
    (new / files.ADAPTER_CONFIG).write_text(json.dumps(record))
    return new


def test_adapters_of_blocks_that_are_left_out_are_refused(tmp_path, monkeypatch):
    deep("llama", tmp_path / "base", monkeypatch)
    low, high = (adapters(tmp_path, last) for last in (1, 3))
    _, merged = models.load(f"{low}@layers=2", one())
    _, full = models.load(low, one())
    for cut, all_ in zip(
        jax.tree.leaves(merged["blocks"]), jax.tree.leaves(full["blocks"]), strict=True
    ):
        np.testing.assert_array_equal(cut, all_[:2])
    message = error(models.load, f"{high}@layers=2", one())
    assert "adapts layer 4, but the model is cut after 2 (@layers=2)" in message
    # The base may be cut itself.
    record = json.loads((high / files.ADAPTER_CONFIG).read_text())
    for count, fits in ((2, False), (4, True)):
        record["base_model_name_or_path"] = f"{tmp_path / 'base'}@layers={count}"
        (high / files.ADAPTER_CONFIG).write_text(json.dumps(record))
        if fits:
            assert models.load(high, one())[0].num_layers == count
        else:
            assert "adapts layer 4" in error(models.load, high, one())
    assert "allowed: 1 to 4" in error(models.load, f"{high}@layers=5", one())


def test_w2s_models_shows_what_is_left(tmp_path, monkeypatch, capsys):
    deep("llama", tmp_path / "model", monkeypatch)
    for name, layers in (("EleutherAI/pythia-160m", 3), (str(tmp_path / "model"), 2)):
        assert main(["models", f"{name}@layers={layers}"]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[0] == f"{name}@layers={layers}"
        assert any(line.split() == ["layers", str(layers)] for line in lines)
    assert main(["models", "pythia-160m@layers=13"]) == 2
    assert "allowed: 1 to 12" in capsys.readouterr().err
    assert main(["models", "gpt-d32@layers=1"]) == 2


@pytest.mark.medium
def test_one_checkpoint_is_a_ladder(tmp_path, monkeypatch):
    """A run of two cuts of a checkpoint; the phases that build on a cut find it again."""
    data_dir = testing.write_tiny_task(tmp_path / "data")
    deep("llama", tmp_path / "llm", monkeypatch)
    tokenizer(tmp_path / "llm")
    config = testing.tiny_config(data_dir)
    config.pretrain.source = None
    config.mesh.data = 1
    config.losses = ("xent",)
    config.protocol.head_init = "zeros"
    config.weak.model = f"{tmp_path / 'llm'}@layers=1"
    config.strong.model = f"{tmp_path / 'llm'}@layers=3"
    config.strong.train.adapt = "lora"
    result = w2s_jax.run(config, tmp_path / "run")
    assert result["weak"]["model"] == "llm@layers=1"
    assert result["ceiling"]["model"] == "llm@layers=3"
    phase = tmp_path / "run" / "phases" / result["students"]["xent"]["phase"]
    found, params = models.load(phase)
    assert found.num_layers == 3 and found.name == "llm@layers=3"
    assert {len(x) for x in jax.tree.leaves(params["blocks"])} == {3}
    convert(str(phase), str(tmp_path / "peft"), "peft")
    again, same = models.load(tmp_path / "peft")
    assert again.num_layers == 3
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), params, same)
