"""Convolutional networks of images: their forward pass, their size, and what a run refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from image_problem import write_task
from refusals import error
from scipy.signal import correlate
from training_problem import descent as descent
from training_problem import flat, relative

from w2s_jax import sharding, testing
from w2s_jax.config import TrainSettings
from w2s_jax.config.validation import validate
from w2s_jax.data import packing
from w2s_jax.data.documents import ImageSpace
from w2s_jax.data.tokenize import TokenizedDocuments
from w2s_jax.models import budget, convolution, network
from w2s_jax.models.image_models import IMAGE_MODELS, image_model
from w2s_jax.planning.resolve import resolve
from w2s_jax.training import optimizer
from w2s_jax.training.batch_sources import compile_for, put_batches
from w2s_jax.training.prediction import Predictor
from w2s_jax.training.spec import StepSpec
from w2s_jax.training.state import init_state

SPACE = ImageSpace((5, 7, 3), first=2, values=11)


@pytest.fixture(scope="module")
def mesh():
    return sharding.mesh_of((1, 1, 1), jax.devices()[:1])


@pytest.fixture(scope="module")
def model(mesh):
    config = image_model("cnn-4", SPACE)
    params = network.init_params(config, 0, mesh)
    # Biases of zero would hide their absence.
    return config, jax.tree.map(
        lambda x: x + 0.1 * jax.random.normal(jax.random.key(x.size), x.shape), params
    )


def reference(config, params, images):
    """The features of float64 images [N, H, W, C], by SciPy's correlations and plain loops."""
    features = []
    for image in images:
        x = image
        for name in ("convolution_1", "convolution_2"):
            layer = jax.tree.map(np.float64, params[name])
            kernel = layer["kernel"].reshape(3, 3, x.shape[-1], -1)
            maps = [
                sum(
                    correlate(x[..., i], kernel[..., i, o], mode="same", method="direct")
                    for i in range(x.shape[-1])
                )
                for o in range(kernel.shape[-1])
            ]
            x = np.maximum(np.stack(maps, -1) + layer["bias"], 0)
            x = np.array(
                [
                    [x[y : y + 2, z : z + 2].max((0, 1)) for z in range(0, x.shape[1], 2)]
                    for y in range(0, x.shape[0], 2)
                ]
            )
        dense = np.float64(params["dense_kernel"]), np.float64(params["dense_bias"])
        features.append(np.maximum(x.reshape(-1) @ dense[0] + dense[1], 0))
    return np.array(features)


def documents_of(images, space, before=1):
    """Documents of `before` tokens 0 and the pixels."""
    pixels = images.reshape(len(images), -1).astype(np.int32) + space.first
    tokens = np.pad(pixels, ((0, 0), (before, 0)))
    offsets = np.arange(len(images) + 1, dtype=np.int64) * tokens.shape[1]
    ids, labels = np.arange(len(images), dtype=np.uint64), np.zeros(len(images), np.float32)
    return TokenizedDocuments(ids, tokens.reshape(-1), offsets, labels)


@pytest.mark.parametrize("before", [0, 1])
@pytest.mark.parametrize("per_device", [False, True])
def test_features_of_packed_documents_equal_scipys(model, mesh, before, per_device):
    config, params = model
    images = np.random.default_rng(0).integers(0, 11, (13, *SPACE.shape))
    predict = Predictor(
        config,
        documents_of(images, SPACE, before),
        mesh,
        batch_size=4,
        per_device=per_device,
        features=True,
    )
    got = predict({"backbone": params})
    wanted = reference(config, params, images / 10)
    assert got.shape == (13, 1, config.d_model) and (wanted > 0).mean() > 0.2
    np.testing.assert_allclose(got[:, 0], wanted, rtol=1e-5, atol=1e-5)


def test_several_images_in_a_row_do_not_mix(model):
    config, params = model
    images = np.random.default_rng(1).integers(0, 11, (3, *SPACE.shape))
    size = SPACE.size
    flat = np.zeros((2, 2 * size + 5), np.uint8)
    flat[0, :size], flat[0, size + 1 : 2 * size + 1] = (images[i].reshape(-1) + 2 for i in (0, 1))
    flat[1, 3 : size + 3] = images[2].reshape(-1) + 2
    last = np.array([[size - 1], [2 * size], [flat.shape[1] + size + 2]], np.int32)
    got = convolution.image_features(config, params, jnp.asarray(flat), jnp.asarray(last))
    np.testing.assert_allclose(
        got[:, 0], reference(config, params, images / 10), rtol=1e-5, atol=1e-5
    )


def test_bfloat16_is_close(model):
    config, params = model
    pixels = np.random.default_rng(2).integers(2, 13, (4, SPACE.size), dtype=np.uint8)
    last = np.arange(1, 5)[:, None] * SPACE.size - 1
    exact, rough = (
        convolution.image_features(config, params, jnp.asarray(pixels), jnp.asarray(last), dtype)
        for dtype in ("float32", "bfloat16")
    )
    assert rough.dtype == jnp.bfloat16
    np.testing.assert_allclose(rough.astype(np.float32), exact, atol=0.05 * float(exact.max()))


@pytest.mark.parametrize("name", IMAGE_MODELS)
@pytest.mark.parametrize("shape", [(28, 28, 1), (1, 1, 1), (5, 7, 3)])
def test_the_number_of_parameters_is_that_of_the_arrays(mesh, name, shape):
    config = image_model(name, ImageSpace(shape))
    arrays = jax.tree.leaves(network.abstract_params(config, mesh))
    assert config.num_parameters() == sum(x.size for x in arrays)
    assert config.d_model == 4 * IMAGE_MODELS[name]


def test_flops_are_those_counted_by_hand():
    config = image_model("cnn-4", ImageSpace((8, 8, 1)))
    # 64 positions of 9 weights to 4 channels; 16 of 36 to 8; 2 * 2 * 8 to 16.
    weights = 64 * 9 * 4 + 16 * 36 * 8 + 32 * 16
    assert config.image_flops() == 2 * weights
    assert 64 * budget.flops_per_token(config, 64) == pytest.approx(2 * weights)
    assert 64 * budget.train_flops_per_token(config, 64) == pytest.approx(6 * weights)


def config_of(data_dir, **changes):
    config = testing.tiny_config(data_dir)
    config.task.name = "shapes"
    config.task.validation_docs = 20
    config.task.train_docs = 80
    config.pretrain.source = None
    config.weak.model, config.strong.model = "cnn-4", "cnn-8"
    config.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
    return config


@pytest.mark.parametrize(
    "field,value,parts",
    [
        ("weak.train.adapt", "lora", ["cnn-4 is a convolutional", "full, probe"]),
        ("strong.train.adapt", "last_layers", ["cnn-8 is a convolutional", "full, probe"]),
        ("weak.pretrain.source", "task", ["does not predict tokens", "None"]),
        ("weak.read_out", "mean", ["as a whole", "None"]),
        ("weak.train.dropout", 0.1, ["has no dropout", "0.0"]),
        ("strong.train.remat", "block", ["recomputes nothing", "'none'"]),
        ("strong.tokenizer", "bytes", ["reads no text"]),
        ("task.max_length", 40, ["cuts the 64 pixels", "weak.model=cnn-4"]),
    ],
)
def test_settings_of_transformers_are_refused(tmp_path, field, value, parts):
    write_task(tmp_path)
    config = config_of(tmp_path, **{field: value})
    text = error(resolve, validate(config))
    assert text.startswith(field)
    for part in parts:
        assert part in text, text


def test_text_is_refused(tmp_path):
    testing.write_tiny_task(tmp_path)
    config = config_of(tmp_path, **{"task.name": "tiny"})
    text = error(resolve, validate(config))
    assert text.startswith("weak.model: 'cnn-4'") and "no images" in text


@pytest.mark.parametrize("method", ["generative", "prompting", "contrast_consistent_search"])
def test_methods_of_language_models_are_refused(tmp_path, method):
    from w2s_jax.planning.plan import plan

    write_task(tmp_path)
    config = config_of(tmp_path, **{"method.name": method})
    assert "cnn-8" in error(lambda: plan(resolve(validate(config))))


def test_a_step_is_the_same_in_microbatches_and_on_a_mesh(descent):
    config = image_model("cnn-4", SPACE)
    rng = np.random.default_rng(3)
    documents = documents_of(rng.integers(0, 11, (24, *SPACE.shape)), SPACE)
    targets_NC = np.eye(3, dtype=np.float32)[rng.integers(0, 3, 24)]
    one = sharding.mesh_of((1, 1, 1), jax.devices()[:1])
    params = {
        "backbone": jax.device_get(network.init_params(config, 0, one)),
        "head": {"kernel": rng.normal(size=(config.d_model, 3)).astype(np.float32)},
    }

    def after(mesh, micro):
        train = TrainSettings(batch_size=8, microbatch_size=micro, learning_rate=0.5)
        spec = StepSpec(config, train, 3, ("xent", ()), columns=3)
        packed = packing.pack(
            documents,
            np.arange(24, dtype=np.int32).reshape(3, 8),
            num_microbatches=8 // micro,
            row_multiple=sharding.row_shards(mesh),
        )
        batches = put_batches(packed, targets_NC, mesh, spec.extras)
        start = jax.device_put(params, sharding.replicated(mesh))
        state = init_state(start, optimizer.make_optimizer(train), 3, mesh)
        state = batches.advance(compile_for(batches, spec, mesh), state, 0, 3)
        return flat(jax.device_get(state.params)), flat(jax.device_get(state.history))

    wanted, rows = after(one, 8)
    assert relative(flat(params), wanted) > 1e-3
    for mesh, micro in ((one, 2), (sharding.mesh_of((4, 2, 1)), 8)):
        got, own_rows = after(mesh, micro)
        assert relative(got, wanted) < 1e-5
        np.testing.assert_allclose(own_rows, rows, rtol=1e-4, atol=1e-6)
