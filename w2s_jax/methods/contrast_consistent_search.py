"""Contrast-consistent search: a truth direction from pairs of completions, without labels.

Burns et al. 2022, "Discovering latent knowledge in language models without supervision". A document
is completed by each of two labels; a probe of the hidden states is trained to give probabilities
that add up to one and are not both a half. In names also: t tries.
"""

from typing import TYPE_CHECKING, Any

import numpy as np

from w2s_jax.config.options import Option
from w2s_jax.core.lazy import Array, jax, jnp
from w2s_jax.data.prompts import with_suffix
from w2s_jax.data.tokenize import soft_labels
from w2s_jax.methods.labels import p_of
from w2s_jax.methods.registry import Students, register, require_label_tokens
from w2s_jax.planning.plan import MethodPlanner, Student
from w2s_jax.planning.templates import TEMPLATES

if TYPE_CHECKING:
    from w2s_jax.phases.labelling import Labels, LabelWork
    from w2s_jax.planning.templates import Prompts


def _contrast(
    work: "LabelWork", *, tries: int, iterations: int, templates: tuple[str, ...] = ()
) -> "Labels":
    """Predictions of probes that are fitted on slice 2 without its labels: the mean over templates.

    Each template has its own probe. Which of its two ends is label 1 is chosen by agreement with
    the weak labels.
    """
    found = [
        _predictions(work, both_orders, tries=tries, iterations=iterations)
        for both_orders in work.prompts(templates)
    ]
    made: Labels = {}
    for split in work.phase.label_splits:
        p_N = np.mean([p_of_split[split] for p_of_split in found], axis=0)
        made |= work.of_all(split, soft_labels(p_N))
    return made


def _predictions(
    work: "LabelWork", both_orders: tuple["Prompts", ...], *, tries: int, iterations: int
) -> dict[str, np.ndarray]:
    """Return P(label 1) of each split by the probe of a template.

    Features are normalised for each template and each order of a pair by themselves. The probe of
    pairs is fitted on both orders together, and p = (p + 1 - p') / 2, where p' is its prediction
    with the texts swapped.
    """
    pairs: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    for split in ("slice2", *work.phase.label_splits):
        pairs[split] = []
        for prompts in both_orders:
            label_0, label_1 = prompts.label_tokens
            sides = []
            for token in (label_1, label_0):
                completed = with_suffix(
                    prompts.splits[split], token, work.max_length, suffix=work.data.suffix
                )
                sides.append(normalised(work.model_features(completed)))
            pairs[split].append((sides[0], sides[1]))
    plus_ND, minus_ND = (np.concatenate(sides) for sides in zip(*pairs["slice2"], strict=True))
    probe = fit_ccs(plus_ND, minus_ND, seed=work.phase.seed, tries=tries, steps=iterations)

    def predict(split: str) -> np.ndarray:
        found = []
        for prompts, (plus_ND, minus_ND) in zip(both_orders, pairs[split], strict=True):
            p_N = predict_ccs(probe, plus_ND, minus_ND)
            found.append(1 - p_N if prompts.swapped else p_N)
        return np.stack(found).mean(0)

    p_N = predict("slice2")
    flipped = not np.allclose(oriented(p_N, work.labels("slice2")[:, 1]), p_N)
    predictions = {split: predict(split) for split in work.phase.label_splits}
    return {split: 1 - p_N if flipped else p_N for split, p_N in predictions.items()}


@register(
    "contrast_consistent_search",
    label_makers={"contrast_consistent_search": _contrast},
    two_classes=True,
    students="`contrast_consistent_search`",
    summary="A direction in the features of each document completed by either label token. Labels "
    "only tell its two ends apart. Averaged over the task's templates, each with its own probe. "
    "Decoders only",
    source="Burns et al. 2022",
    tries=Option(10, "Random starts, of which the best is taken", low=1),
    iterations=Option(1000, "Steps of the optimizer", low=1),
    templates=TEMPLATES,
)
def contrast_consistent_search(
    planner: MethodPlanner, *, templates: str, **options: Any
) -> Students:
    """A student that is a direction in the strong model's features."""
    builder, naive = planner.builder, planner.naive
    name = "contrast_consistent_search"
    names = planner.templates(templates)
    require_label_tokens(planner, name, names)
    if names:
        options["templates"] = names
    parents = builder.init("strong") | {"labels": naive.weak}
    phase = builder.labels(name, "strong", builder.evaluated, parents, **options)
    return {name: Student(phase, "", name, naive.weak, naive.ceiling)}


def normalised(features_ND: np.ndarray) -> np.ndarray:
    """Return features with mean 0 and standard deviation 1 in each dimension, float32.

    It is applied to the features of each completion separately, so that the probe cannot tell the
    two completions apart. A constant dimension becomes 0.
    """
    features_ND = np.asarray(features_ND, np.float64)
    centred_ND = features_ND - features_ND.mean(0)
    std_D = centred_ND.std(0)
    # A constant dimension has only rounding errors left.
    constant_D = std_D <= 1e-6 * np.abs(features_ND).max(0, initial=0)
    return np.where(constant_D, 0, centred_ND / np.where(constant_D, 1, std_D)).astype(np.float32)


def fit_ccs(
    plus_ND: np.ndarray,
    minus_ND: np.ndarray,
    *,
    seed: int,
    tries: int = 10,
    steps: int = 1000,
    learning_rate: float = 1e-2,
    weight_decay: float = 1e-2,
) -> dict[str, np.ndarray]:
    """Fit a probe from several random starts, and return the one of the least loss.

    Minimises the mean of (p+ - (1 - p-))^2 + min(p+, p-)^2, p = sigmoid(features @ kernel + bias),
    by AdamW on all documents at once. All tries are one program. The loss does not determine which
    end of the direction is label 1; see `oriented`.

    Args:
      plus_ND, minus_ND: `normalised` features of the documents completed by label 1 and by label 0.
      seed: seed of the starts.
      tries: number of random starts.
      steps: optimizer steps.
      learning_rate, weight_decay: of AdamW.

    Returns:
      {'kernel': float32 [D], 'bias': float32 []}.
    """
    plus, minus = jnp.asarray(plus_ND, jnp.float32), jnp.asarray(minus_ND, jnp.float32)
    kernels_tD = jax.random.normal(jax.random.key(seed), (tries, plus.shape[1]))
    kernels_tD = kernels_tD / jnp.linalg.norm(kernels_tD, axis=1, keepdims=True)
    params_t = {"kernel": kernels_tD, "bias": jnp.zeros(tries)}
    fit = jax.jit(_fit_all, static_argnums=5)
    params_t, loss_t = fit(params_t, plus, minus, learning_rate, weight_decay, steps)
    # A try that diverged is never the best.
    best = int(np.argmin(np.nan_to_num(np.asarray(loss_t), nan=np.inf)))
    return {name: np.asarray(value_t[best]) for name, value_t in params_t.items()}


def ccs_loss(params: dict[str, Array], plus_ND: Array, minus_ND: Array) -> Array:
    """Return the loss that `fit_ccs` minimizes: consistency and confidence, float32 scalar."""
    plus_N, minus_N = _p(params, plus_ND), _p(params, minus_ND)
    return jnp.mean((plus_N - (1 - minus_N)) ** 2 + jnp.minimum(plus_N, minus_N) ** 2)


def _p(params: dict[str, Array], features_ND: Array) -> Array:
    logits_N = jnp.matmul(features_ND, params["kernel"], precision="highest")
    return jax.nn.sigmoid(logits_N + params["bias"])


def _fit_all(
    params_t: dict[str, Array],
    plus_ND: Array,
    minus_ND: Array,
    learning_rate: float,
    weight_decay: float,
    steps: int,
) -> tuple[dict[str, Array], Array]:
    """Return all tries' parameters after training, and their losses [t]."""
    import optax

    optimizer = optax.adamw(learning_rate, weight_decay=weight_decay)

    def fit(params: dict[str, Array]) -> tuple[dict[str, Array], Array]:
        def step(_: int, carry: tuple) -> tuple:
            params, state = carry
            grads = jax.grad(ccs_loss)(params, plus_ND, minus_ND)
            updates, state = optimizer.update(grads, state, params)
            return optax.apply_updates(params, updates), state

        params, _ = jax.lax.fori_loop(0, steps, step, (params, optimizer.init(params)))
        return params, ccs_loss(params, plus_ND, minus_ND)

    return jax.vmap(fit)(params_t)


def predict_ccs(
    params: dict[str, np.ndarray], plus_ND: np.ndarray, minus_ND: np.ndarray
) -> np.ndarray:
    """Return P(label 1) = 1/2 (p+ + 1 - p-), float32 [N]; features as in `fit_ccs`."""
    from scipy.special import expit

    plus_N, minus_N = (
        expit(np.asarray(features_ND, np.float64) @ params["kernel"] + params["bias"])
        for features_ND in (plus_ND, minus_ND)
    )
    return (0.5 * (plus_N + 1 - minus_N)).astype(np.float32)


def oriented(p_N: np.ndarray, weak_N: np.ndarray) -> np.ndarray:
    """Return `p_N` or 1 - `p_N`, whichever agrees more with the weak labels, float32 [N].

    Args:
      p_N: P(label 1) or P(label 0).
      weak_N: weak labels: P(label 1) [N], or soft labels [N, 2].
    """
    p_N = p_of(p_N)
    agreement = np.mean((p_N > 0.5) == (p_of(weak_N) > 0.5))
    return np.asarray(p_N if agreement >= 0.5 else 1 - p_N, np.float32)
