"""Encoders against golden outputs of PyTorch; read-outs; round trips of their files."""

import dataclasses
import functools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checkpoints import assert_same_bits, family_of_type, one, tensors_of, tiny, whole
from refusals import error
from safetensors.numpy import save_file

from w2s_jax import models, sharding
from w2s_jax.core import errors
from w2s_jax.models import checkpoint_files as files
from w2s_jax.models import families, heads, importing, network
from w2s_jax.models.config import READ_OUTS, ModelConfig
from w2s_jax.models.convert import convert

#: Golden model -> the read-out that it is imported with.
NAMES = {"bert": "first", "minilm": "mean", "roberta": "first", "xlm_roberta": "pooler"}

SMALL = ModelConfig(
    name="small",
    vocab_size=32,
    max_positions=24,
    d_model=16,
    num_layers=2,
    num_heads=2,
    num_kv_heads=2,
    head_dim=8,
    d_mlp=24,
    init_std=0.2,
    activation="gelu",
    bidirectional=True,
    position_offset=2,
    token_types=2,
    pooler=True,
    read_out="pooler",
)


@functools.cache
def _load(folder):
    return importing.import_huggingface(folder, one())


@pytest.fixture
def model(golden, request):
    """(config, parameters, head, inputs, outputs) of a golden model, by name."""
    folder = golden / "models" / request.param
    found = _load(folder)
    inputs, outputs = np.load(folder / "inputs.npz"), np.load(folder / "outputs.npz")
    return found.config, found.params, found.head, inputs, outputs


def parametrize(names=tuple(NAMES)):
    return pytest.mark.parametrize("model", names, indirect=True)


@functools.partial(jax.jit, static_argnums=(0, 5))
def run(config, params, tokens, segments, read_outs, scan):
    hidden = models.forward(config, params, tokens, segments, scan=scan)
    return hidden, heads.read_out(config, params, hidden, segments, read_outs)


def packed(tokens, lengths, width=64):
    """Pack two documents per row: tokens, segments, and the flat index of each document's start."""
    count = len(lengths)
    rows, segments = np.zeros((2, count // 2, width), np.int32)
    starts = []
    for i, n in enumerate(lengths):
        start = i % 2 * int(lengths[i - 1])
        rows[i // 2, start : start + n] = tokens[i, :n]
        segments[i // 2, start : start + n] = 1 + i % 2
        starts.append(i // 2 * width + start)
    return rows, segments, np.array(starts)


@parametrize()
def test_outputs_match_pytorch_padded_packed_and_alone(model):
    """The first case is unrolled, the others are scanned."""
    config, params, head, inputs, outputs = model
    config = dataclasses.replace(config, read_out="pooler")
    tokens, lengths = inputs["input_ids"], inputs["lengths"]
    seen = []

    def check(i, hidden, pooled):
        np.testing.assert_allclose(hidden, outputs["hidden"][i, : lengths[i]], atol=1e-4)
        np.testing.assert_allclose(pooled, outputs["pooled"][i], atol=1e-4)
        if head is not None:
            logits = heads.class_logits(head, pooled[None, None])[0]
            np.testing.assert_allclose(logits, outputs["logits"][i], atol=1e-4)
        seen.append(i)

    padded = tokens, inputs["attention_mask"].astype(np.int32), 32 * np.arange(len(lengths))
    for scan, (rows, segments, starts) in enumerate((padded, packed(tokens, lengths))):
        ends = (starts + lengths - 1)[:, None]
        hidden, pooled = map(np.asarray, run(config, params, rows, segments, ends, bool(scan)))
        flat = hidden.reshape(-1, config.d_model)
        for i, (start, n) in enumerate(zip(starts, lengths, strict=True)):
            check(i, flat[start : start + n], pooled[i, 0])
    n = int(lengths[4])
    alone = tokens[4:5, :n], np.ones((1, n), np.int32), np.array([[n - 1]])
    hidden, pooled = run(config, params, *alone, True)
    check(4, hidden[0], pooled[0, 0])
    assert len(seen) == 2 * len(lengths) + 1


@parametrize()
def test_the_imported_read_out_is_the_one_of_the_folder(model, request):
    config, params, head, inputs, outputs = model
    assert config.read_out == NAMES[request.node.callspec.params["model"]]
    assert (head is not None) == (config.read_out == "pooler") and config.pooler
    rows, segments, starts = packed(inputs["input_ids"], inputs["lengths"])
    ends = (starts + inputs["lengths"] - 1)[:, None]
    ours = run(config, params, rows, segments, ends, True)[1][:, 0]
    wanted = {"first": outputs["hidden"][:, 0], "pooler": outputs["pooled"]}
    if config.read_out == "mean":
        wanted["mean"] = outputs["mean"]
    np.testing.assert_allclose(ours, wanted[config.read_out], atol=1e-5)


@parametrize()
def test_bfloat16_stays_within_three_percent(model):
    """Parameters and activations in bfloat16: the error's root mean square over the truth's."""
    config, params, _, inputs, outputs = model
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    segments = inputs["attention_mask"].astype(np.int32)
    ends = (32 * np.arange(6) + inputs["lengths"] - 1)[:, None]
    hidden, pooled = run(
        dataclasses.replace(config, read_out="pooler"),
        half, inputs["input_ids"], segments, ends, True,
    )  # fmt: skip
    assert hidden.dtype == pooled.dtype == jnp.bfloat16
    real = np.asarray(hidden, np.float32) * segments[..., None]
    for ours, truth in ((real, outputs["hidden"]), (pooled[:, 0], outputs["pooled"])):
        off = np.linalg.norm(np.asarray(ours, np.float32) - truth)
        assert off < 0.03 * np.linalg.norm(truth)


@pytest.mark.parametrize("read_out", READ_OUTS)
@pytest.mark.parametrize("bidirectional", [True, False])
def test_read_outs_are_the_plain_formulas_in_packed_rows(read_out, bidirectional):
    """Pairs of texts; the last document is empty and points into padding."""
    if read_out == "pooler" and not bidirectional:
        return
    own = {} if bidirectional else dict(token_types=0, pooler=False)
    config = dataclasses.replace(SMALL, bidirectional=bidirectional, read_out=read_out, **own)
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(3, 12, 16)).astype(np.float32)
    spans = [(0, 0, 5), (0, 5, 12), (1, 0, 1), (1, 1, 9), (2, 0, 12), (1, 9, 10)]
    segments = np.zeros((3, 12), np.uint16)
    for row, start, stop in spans:
        segments[row, start:stop] = 1 + segments[row].max()
    spans += [(1, 10, 12), (1, 10, 12)]
    ends = np.array([12 * row + stop - 1 for row, _, stop in spans]).reshape(4, 2)
    params = {
        "pooler": {
            "kernel": rng.normal(size=(16, 16)).astype(np.float32),
            "bias": rng.normal(size=16).astype(np.float32),
        }
    }
    ours = jax.jit(heads.read_out, static_argnums=0)(config, params, hidden, segments, ends)
    assert ours.shape == (4, 2, 16) and ours.dtype == jnp.float32
    for i, (row, start, stop) in enumerate(spans):
        text = hidden[row, start:stop].astype(float)
        wanted = {"last": text[-1], "first": text[0], "mean": text.mean(axis=0)}
        pooler = {name: value.astype(float) for name, value in params["pooler"].items()}
        wanted["pooler"] = np.tanh(text[0] @ pooler["kernel"] + pooler["bias"])
        np.testing.assert_allclose(ours[i // 2, i % 2], wanted[read_out], atol=1e-5)


def test_means_are_summed_in_float32():
    config = dataclasses.replace(SMALL, read_out="mean")
    hidden = jnp.ones((1, 1001, 16), jnp.bfloat16).at[0, 0].set(100)
    segments = jnp.ones((1, 1001), jnp.int32)
    mean = heads.read_out(config, {}, hidden, segments, jnp.array([[1000]]))
    assert mean.dtype == jnp.bfloat16
    np.testing.assert_array_equal(mean.astype(jnp.float32), np.float32(jnp.bfloat16(1100 / 1001)))


@pytest.mark.parametrize("read_out", READ_OUTS)
def test_the_gradient_of_a_read_out_stays_in_its_text(read_out):
    config = dataclasses.replace(SMALL, read_out=read_out)
    params = network.init_params(config, 0, one())
    segments = np.repeat([1, 2, 0], [4, 6, 2])[None]
    ends = np.array([[9], [11]])  # of the second text, and of padding with no weight

    def value(hidden):
        return jnp.sum(heads.read_out(config, params, hidden, segments, ends)[0])

    hidden = np.random.default_rng(0).normal(size=(1, 12, 16)).astype(np.float32)
    gradient = jax.jit(jax.grad(value))(hidden)[0]
    slots = {"last": [9], "mean": range(4, 10)}.get(read_out, [4])
    assert np.flatnonzero(np.abs(gradient).max(axis=1)).tolist() == list(slots)
    if read_out != "pooler":
        np.testing.assert_allclose(gradient[np.array(slots)], 1 / len(slots), rtol=1e-6)


def test_a_token_attends_to_its_whole_text_and_nothing_else():
    params = network.init_params(SMALL, 0, one())
    tokens = np.random.default_rng(0).integers(0, 32, (1, 20))
    segments = np.repeat([1, 2, 0], [8, 9, 3])[None]
    ends = np.array([[7], [16]])
    base = np.asarray(run(SMALL, params, tokens, segments, ends, False)[0])[0]
    for changed in range(17):
        other = tokens.copy()
        other[0, changed] = (other[0, changed] + 1) % 32
        hidden = np.asarray(run(SMALL, params, other, segments, ends, False)[0])[0]
        moves = np.abs(hidden - base).max(axis=1) > 1e-6
        np.testing.assert_array_equal(moves[:17], segments[0, :17] == segments[0, changed])


@pytest.mark.medium
@pytest.mark.parametrize(("read_out", "remat"), [("mean", "block"), ("pooler", "dots")])
def test_gradients_are_finite_and_equal_scanned_unrolled_and_rematerialised(read_out, remat):
    config = dataclasses.replace(SMALL, read_out=read_out)
    params = network.init_params(config, 0, one())
    tokens = np.random.default_rng(0).integers(0, 32, (2, 18))
    segments = np.stack([np.repeat([1, 2, 0], [8, 7, 3]), np.repeat([1, 0], [3, 15])])
    ends = np.array([[7], [14], [20], [17]])

    def value(scan, remat):
        def loss(params):
            hidden = models.forward(config, params, tokens, segments, scan=scan, remat=remat)
            return jnp.sum(jnp.sin(heads.read_out(config, params, hidden, segments, ends)))

        return jax.jit(jax.value_and_grad(loss))(params)

    reference = value(False, "none")
    gradients = jax.tree.leaves_with_path(reference[1])
    assert all(np.isfinite(g).all() for _, g in gradients)
    unused = {"pooler"} if read_out == "mean" else set()
    for path, gradient in gradients:
        assert np.any(gradient) == (path[0].key not in unused), path
    # Only the first row of the token types is used.
    assert not np.any(reference[1]["token_type_embedding"][1])
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        value(True, remat),
        reference,
    )


@pytest.mark.parametrize(
    ("model", "shape"),
    [("minilm", (1, 8, 1)), ("xlm_roberta", (2, 2, 2))],
    indirect=["model"],
)
def test_sharded_parameters_give_the_same_outputs(model, shape):
    config, params, _, inputs, _ = model
    mesh = sharding.mesh_of(shape)
    shardings = jax.tree.map(lambda a: a.sharding, network.abstract_params(config, mesh))
    spread = jax.device_put(params, shardings)
    if shape == (2, 2, 2):
        kernel = spread["pooler"]["kernel"]
        assert kernel.sharding.shard_shape(kernel.shape) == (12, 12)
    tokens = np.concatenate([inputs["input_ids"], inputs["input_ids"][:2]])
    segments = np.concatenate([inputs["attention_mask"], inputs["attention_mask"][:2]])
    ends = (32 * np.arange(8) + segments.sum(1) - 1)[:, None]
    alone = run(config, params, tokens, segments, ends, True)
    rows = jax.device_put((tokens, segments), sharding.rows(mesh, leading=0))
    ours = run(config, spread, *rows, jax.device_put(ends, sharding.replicated(mesh)), True)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), ours, alone)


def test_fresh_parameters_are_counted_and_the_same_bits_on_any_mesh():
    alone = network.init_params(SMALL, 3, one())
    spread = network.init_params(SMALL, 3, sharding.mesh_of((2, 2, 2)))
    assert_same_bits(whole(alone), whole(spread))
    for changes in ({}, dict(token_types=0), dict(pooler=False, read_out="mean"), dict(d_mlp=8)):
        config = dataclasses.replace(SMALL, **changes)
        abstract = network.abstract_params(config, one())
        assert sum(x.size for x in jax.tree.leaves(abstract)) == config.num_parameters()
        assert ("pooler" in abstract) == config.pooler
        assert ("token_type_embedding" in abstract) == (config.token_types > 0)


def test_unsupported_encoders_are_refused():
    params = network.init_params(SMALL, 0, one())
    hidden = jnp.zeros((1, 4, 16))
    for call, arguments in (
        (network.unembedding, (SMALL, params)),
        (heads.language_model_logits, (SMALL, params, hidden)),
        (heads.init_class_head, ("unembedding", SMALL, params, (3, 4), one())),
    ):
        assert "small: is an encoder, which has no unembedding" in error(call, *arguments)
    assert heads.init_class_head("zeros", SMALL, params, (3, 4), one())["kernel"].shape == (16, 2)
    decoder = dict(bidirectional=False, token_types=0, pooler=False, read_out="last")
    for changes, words in (
        (dict(tied_embeddings=False), "model.tied_embeddings: False; allowed in an encoder: True"),
        (dict(window=4), "model.window: 4; allowed in an encoder: 0"),
        (dict(post_norms=True), "model.post_norms: True; allowed in an encoder: False"),
        (decoder | dict(pooler=True), "model.pooler: True; allowed in a decoder: False"),
        (decoder | dict(token_types=1), "model.token_types: 1; allowed in a decoder: 0"),
        (
            dict(pooler=False),
            "model.read_out: 'pooler', but small has no pooler; allowed: last, first",
        ),
        (
            dict(read_out="pooled"),
            "unknown value 'pooled' (did you mean 'pooler'?)",
        ),
    ):
        assert words in error(ModelConfig, **SMALL.to_dict() | changes)


def test_class_logits_add_the_bias_if_there_is_one():
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(5, 2, 16)).astype(np.float32)
    for classes, ours in ((2, hidden[:, :1]), (2, hidden[:, 0]), (1, hidden)):
        head = {"kernel": rng.normal(size=(16, classes)).astype(np.float32)}
        plain = heads.class_logits(head, ours)
        head["bias"] = np.arange(1.0, 1 + classes, dtype=np.float32)
        wanted = plain + np.resize(head["bias"], 2)[None]
        np.testing.assert_allclose(heads.class_logits(head, ours), wanted, rtol=1e-6)
        abstract = heads.abstract_class_head(SMALL, one(), classes, bias=True)
        assert jax.tree.map(np.shape, head) == jax.tree.map(lambda a: a.shape, abstract)
    assert set(heads.abstract_class_head(SMALL, one())) == {"kernel"}


def _files(folder, change, **config):
    """Change a folder's tensors, and fields of its config.json."""
    tensors = change(tensors_of(folder))
    save_file(tensors, folder / files.SINGLE, metadata={"format": "pt"})
    record = json.loads((folder / "config.json").read_text()) | config
    (folder / "config.json").write_text(json.dumps(record))
    return tensors


@pytest.mark.parametrize("model_type", ["bert", "roberta"])
def test_files_with_heads_for_masked_tokens_and_old_names_are_read(tmp_path, model_type):
    tiny(model_type, tmp_path)
    expected = whole(models.load(tmp_path, one())[1])
    stem = {"bert": "Bert", "roberta": "Roberta"}[model_type]

    def old(tensors):
        spare = {
            f"{model_type}.embeddings.position_ids": np.arange(48)[None],
            "cls.predictions.bias": np.zeros(64),
            "cls.seq_relationship.weight": np.zeros((2, 32)),
        }
        if model_type == "roberta":
            spare = {"lm_head.dense.bias": np.zeros(32), "roberta.embeddings.position_ids": spare}
            spare = {name: np.zeros(3) for name in spare}
        names = {f"{model_type}.{name}": array for name, array in tensors.items()}
        return spare | {
            name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
                "LayerNorm.bias", "LayerNorm.beta"
            ): array
            for name, array in names.items()
        }

    _files(tmp_path, old, architectures=[f"{stem}ForMaskedLM"])
    config, params = models.load(tmp_path, one())
    assert_same_bits(whole(params), expected)
    _files(tmp_path, lambda tensors: {k: v for k, v in tensors.items() if "pooler" not in k})
    without, params = models.load(tmp_path, one())
    assert config.pooler and without == dataclasses.replace(config, pooler=False)
    assert "pooler" not in params and params["embedding_norm"]["bias"].any()
    _files(tmp_path, lambda t: t | {"encoder.layer.7.output.dense.bias": np.zeros(32)})
    assert "'encoder.layer.7.output.dense.bias': unexpected" in error(models.load, tmp_path, one())


def test_the_pooling_of_sentence_transformers_is_the_read_out(tmp_path, caplog):
    tiny("bert", tmp_path)
    pooling = tmp_path / "1_Pooling" / "config.json"
    pooling.parent.mkdir()

    def read_out(record):
        pooling.write_text(json.dumps(record))
        return models.load(tmp_path, one())[0].read_out

    mean, cls = "pooling_mode_mean_tokens", "pooling_mode_cls_token"
    assert read_out({mean: True, cls: False}) == "mean"
    assert read_out({mean: False, cls: True}) == "first"
    assert read_out({"pooling_mode_lasttoken": True}) == "last"
    assert not caplog.records
    assert read_out({"pooling_mode_max_tokens": True, mean: False}) == "first"
    assert "pooling_mode_max_tokens; read-outs are" in caplog.text
    assert read_out({mean: True, cls: True}) == "first"
    assert f"{pooling}: expected a JSON object" in error(read_out, [mean])
    pooling.write_text("{")
    assert str(pooling) in error(models.load, tmp_path, one())


def test_a_golden_classifier_comes_back_as_transformers_saved_it(golden, tmp_path):
    folder = golden / "models" / "xlm_roberta"
    found = _load(folder)
    assert found.head is not None and found.head["bias"].shape == (2,)
    out = tmp_path / "out"
    models.export_huggingface(
        found.config, found.params, out, head=found.head, source=found.huggingface
    )
    assert_same_bits(tensors_of(out), tensors_of(folder))
    written, read = files.read_config(out), files.read_config(folder)
    assert {key: written[key] for key in read if key in written and key != "dtype"} == {
        key: read[key] for key in read if key in written and key != "dtype"
    }
    assert written["hidden_dropout_prob"] == 0.1

    # Through a converted folder, without the bias, and with the extra pooler of old files.
    convert(str(out), tmp_path / "ours", "orbax")
    config, params = models.load_with_head(tmp_path / "ours", one())
    assert config == found.config
    assert_same_bits(whole(params), whole({"backbone": found.params, "head": found.head}))
    del params["head"]["bias"]
    models.export_huggingface(config, params["backbone"], tmp_path / "plain", head=params["head"])
    tensors = tensors_of(tmp_path / "plain")
    assert not tensors.pop("classifier.out_proj.bias").any()
    wanted = tensors_of(folder)
    del wanted["classifier.out_proj.bias"]
    assert_same_bits(tensors, wanted)
    _files(out, lambda t: t | {"roberta.pooler.dense.weight": np.ones((24, 24), np.float32)})
    assert_same_bits(whole(models.load(out, one())[1]), whole(found.params))
    models.export_huggingface(config, params["backbone"], tmp_path / "bare")
    assert files.read_config(tmp_path / "bare")["architectures"] == ["XLMRobertaModel"]
    assert "pooler.dense.weight" in tensors_of(tmp_path / "bare")


def test_heads_that_transformers_cannot_express_are_refused(golden, tmp_path):
    found = _load(golden / "models" / "minilm")
    head = {"kernel": jnp.zeros((24, 2))}
    export = functools.partial(models.export_huggingface, folder=tmp_path / "out", head=head)
    message = error(export, found.config, found.params)
    assert "its head reads 'mean', but BertForSequenceClassification reads 'pooler'" in message
    models.export_huggingface(found.config, found.params, tmp_path / "bare")
    assert_same_bits(tensors_of(tmp_path / "bare"), tensors_of(golden / "models" / "minilm"))
    tiny("llama", tmp_path / "llama")
    config, params = models.load(tmp_path / "llama", one())
    head["bias"] = jnp.zeros(2)
    message = error(export, config, params)
    assert "its head has a bias, but LlamaForSequenceClassification has none" in message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "array", "words"),
    [
        ("classifier.out_proj.bias", np.zeros(3, np.float32), "shape [3]; expected"),
        ("classifier.out_proj.weight", np.zeros((3, 24), np.float32), "shape [2]; expected [3]"),
        ("classifier.dense.weight", None, "tensor 'classifier.dense.weight' is missing"),
        ("classifier.out_proj.weight", None, "'classifier.out_proj.weight' is missing"),
    ],
)
def test_a_classifier_that_does_not_fit_is_refused(golden, tmp_path, name, array, words):
    shutil.copytree(golden / "models" / "xlm_roberta", tmp_path / "in")

    def change(tensors):
        return {k: v for k, v in tensors.items() if k != name} | (
            {} if array is None else {name: array}
        )

    _files(tmp_path / "in", change)
    assert words in error(models.load_with_head, tmp_path / "in", one())


@pytest.mark.parametrize("offset", [0, 2])
def test_encoders_without_a_family_are_exported_as_models_of_one(tmp_path, offset):
    config = dataclasses.replace(SMALL, position_offset=offset)
    params = network.init_params(config, 0, one())
    models.export_huggingface(config, params, tmp_path / "out")
    found = importing.import_huggingface(tmp_path / "out", one())
    assert found.config.family == {0: "bert", 2: "roberta"}[offset]
    assert_same_bits(whole(found.params), whole(params))


def test_families_of_encoders_are_known_by_their_classes():
    for architecture, name in (
        ("BertForPreTraining", "bert"),
        ("RobertaForSequenceClassification", "roberta"),
        ("XLMRobertaModel", "xlm-roberta"),
    ):
        found = families.family_of({"architectures": [architecture]}, "here")
        assert found is family_of_type(name)
    with pytest.raises(errors.InputError, match="did you mean 'BertForMaskedLM'"):
        families.family_of({"architectures": ["BertForMaskedLMs"]}, "here")
