"""GPT-2 from its Hugging Face folder: the training objective and one Adam step are PyTorch's.

`train_step.npz` holds soft labels of the six documents of `inputs.npz`, the cross-entropy of the
released code's model with the head `score_weight`, that head's gradient, and the logits after one
step of torch's Adam with the learning rate 1e-3. `grad_norms.json` has the gradient's norm of each
tensor.
"""

import dataclasses
import functools
import json

import jax
import numpy as np
import peers
import pytest

from w2s_jax import models, sharding
from w2s_jax.config import TrainSettings
from w2s_jax.data import packing
from w2s_jax.data.documents import Document
from w2s_jax.data.tokenize import tokenize
from w2s_jax.models import families
from w2s_jax.training.batch_sources import put_batches
from w2s_jax.training.gradient import loss_and_gradient
from w2s_jax.training.optimizer import make_optimizer
from w2s_jax.training.prediction import Predictor
from w2s_jax.training.programs import compile_step
from w2s_jax.training.spec import StepSpec
from w2s_jax.training.state import init_state

SETTINGS = TrainSettings(learning_rate=1e-3, schedule="constant", batch_size=6)


@dataclasses.dataclass(frozen=True)
class Problem:
    """The model on a mesh, its documents in one batch, and what is known of a step on it."""

    mesh: jax.sharding.Mesh
    spec: StepSpec
    params: dict
    documents: object
    batches: object
    truth: dict


@pytest.fixture(scope="module")
def problem(golden):
    folder, mesh = golden / "gpt2", sharding.mesh_of((1, 1, 1))
    config, backbone = models.load(folder, mesh)
    inputs, truth = np.load(folder / "inputs.npz"), dict(np.load(folder / "train_step.npz"))
    texts = zip(inputs["input_ids"].tolist(), inputs["lengths"], truth["labels"], strict=True)
    documents = tokenize(
        [
            Document(id=i, tokens=tuple(tokens[:n]), soft_label=float(label[1]))
            for i, (tokens, n, label) in enumerate(texts)
        ],
        None,
        max_length=None,
        overlong="error",
    )[0]
    head = jax.device_put(inputs["score_weight"].T, sharding.replicated(mesh))
    packed = packing.pack(documents, np.arange(6, dtype=np.int32)[None])
    return Problem(
        mesh=mesh,
        spec=StepSpec(config, SETTINGS, 1, ("xent", ())),
        params={"backbone": backbone, "head": {"kernel": head}},
        documents=documents,
        batches=put_batches(packed, truth["labels"], mesh),
        truth=truth,
    )


@pytest.fixture(scope="module")
def objective(problem):
    """(loss, gradients) of the batch, by the function that the training step differentiates."""
    batch = jax.tree.map(lambda x: x[0], problem.batches.at(0).batches)
    gradient = jax.jit(functools.partial(loss_and_gradient, problem.spec))
    found = gradient({}, problem.params, {}, batch, np.float32(0), ())
    return float(found.loss), jax.device_get(found.grads)


def test_the_class_logits_are_those_of_the_released_code(problem, golden):
    """The right ones and the released code's agree: none of these documents holds the token 0,
    which it takes for padding."""
    outputs = np.load(golden / "gpt2" / "outputs.npz")
    logits = Predictor(problem.spec.model, problem.documents, problem.mesh)(problem.params)
    np.testing.assert_allclose(logits, outputs["correct_logits"], rtol=0, atol=1e-5)
    np.testing.assert_allclose(logits, outputs["peer_logits"], rtol=0, atol=1e-5)


def test_the_gradient_of_every_tensor_has_the_norm_of_pytorchs(problem, objective, golden):
    """All 41 of them, under Hugging Face's names."""
    loss, grads = objective
    assert loss == pytest.approx(float(problem.truth["loss"]), rel=1e-6)
    wanted = json.loads((golden / "gpt2" / "grad_norms.json").read_text())
    config = problem.spec.model
    tensors = peers.disassemble(families.FAMILIES["gpt2"], config, grads["backbone"])
    ours = {f"lm.{name}": np.linalg.norm(tensor) for name, tensor in tensors.items()}
    ours["score.weight"] = np.linalg.norm(grads["head"]["kernel"])
    assert ours.keys() == wanted.keys() and len(wanted) == 41
    for name, norm in wanted.items():
        assert ours[name] == pytest.approx(norm, rel=1e-5), name


def test_the_gradient_of_the_head_is_pytorchs(problem, objective):
    kernel_DC = objective[1]["head"]["kernel"]
    scale = np.abs(problem.truth["score_grad"]).max()
    np.testing.assert_allclose(
        kernel_DC.T, problem.truth["score_grad"], rtol=0, atol=2e-6 * float(scale)
    )


def test_one_adam_step_ends_where_pytorchs_does(problem):
    """Logits after the step, to 1e-4 where the step moves them by 7.9.

    That is what float32 allows: Adam's first step is the learning rate times g / (|g| + 1e-8), so
    that of the smallest entries of a gradient hangs on its rounding. Noise of 1e-7 of each tensor's
    largest entry, half a unit in the last place, moves these logits by 3e-5 to 9e-5.
    """
    optimizer = make_optimizer(SETTINGS)
    # The step gives its input's buffers away.
    params = jax.tree.map(lambda x: x.copy(), problem.params)
    state = init_state(params, optimizer, 1, problem.mesh)
    state = compile_step(problem.spec, problem.mesh)(state, problem.batches.at(0))
    assert int(state.step) == 1
    predictor = Predictor(problem.spec.model, problem.documents, problem.mesh)
    before, after = predictor(problem.params), predictor(state.params)
    wanted = problem.truth["logits_after_one_adam_step_lr1e_3"]
    assert np.abs(after - before).max() > 7
    np.testing.assert_allclose(after, wanted, rtol=0, atol=1e-4)
