"""Phases of kind 'labels': how each kind makes labels of documents without training its own model.

Each maker takes a `Task` and the phase's options, and returns split -> (ids_N, soft_NC): what
students learn from, and predictions where the split is validation or test.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from w2s_jax.data.outside import matched, read_outside
from w2s_jax.data.tokenize import TokenizedDocuments, hard_labels
from w2s_jax.methods import contrast, ensembles, filtering, posterior, prompting, synthetic
from w2s_jax.metrics import classification
from w2s_jax.models import heads
from w2s_jax.phases import parameters, prediction
from w2s_jax.phases.context import Context
from w2s_jax.planning.phase import Phase
from w2s_jax.profiling import compilation
from w2s_jax.store import artifacts
from w2s_jax.store.artifacts import PhaseFolder
from w2s_jax.training.prediction import Predictor, fits_on_one_device, probabilities, soft_labels

#: split -> (ids_N uint64, soft float32 [N, 2])
Labels = dict[str, tuple[np.ndarray, np.ndarray]]
_EPSILON = 1e-6


@dataclass(frozen=True)
class Work:
    """What a maker has: the phase, and what its parents have left."""

    phase: Phase
    context: Context

    def documents(self, split: str) -> TokenizedDocuments:
        """The documents of a split."""
        return self.context.data(self.phase).splits[split]

    def truth(self, split: str) -> np.ndarray:
        """Ground truth, 0 or 1, float32 [N]."""
        return hard_labels(self.documents(split).labels_N)

    def labels(self, split: str, parent: str = "labels") -> np.ndarray:
        """A parent's labels of a split, float32 [N, 2]."""
        folder = self.context.folder(self.phase.parents[parent])
        return artifacts.load_labels(folder, split, self.documents(split).ids_N)

    def features(self, split: str) -> np.ndarray:
        """Features of a split's documents, float32 [N, K * D]."""
        folder = self.context.folder(self.phase.parents["features"])
        ids_N = self.documents(split).ids_N
        return artifacts.load_features(folder, split, ids_N).reshape(len(ids_N), -1)

    def of_all(self, split: str, soft_NC: np.ndarray) -> Labels:
        """Labels of all documents of a split."""
        return {split: (self.documents(split).ids_N, soft_NC.astype(np.float32))}

    @property
    def members(self) -> list[str]:
        """An ensemble's, in order."""
        return sorted(
            (name for name in self.phase.parents if name.startswith("member")),
            key=lambda name: int(name.removeprefix("member")),
        )


Maker = Callable[..., Labels]


def make_labels(phase: Phase, context: Context, folder: PhaseFolder) -> dict[str, Any]:
    """Makes a phase's labels and stores them; with predictions and metrics of validation and test.

    Raises:
      TrainingFailed: if some are not finite.
    """
    started, compiled = time.monotonic(), compilation.compile_clock().seconds
    assert phase.method is not None
    kind, options = phase.method
    labels = _MAKERS[kind](Work(phase, context), **dict(options))
    for split, (_, soft_NC) in labels.items():
        prediction.check_finite(phase, soft_NC, f"labels of {split}")
    artifacts.save_labels(folder, labels)
    sizes = {split: len(ids_N) for split, (ids_N, _) in labels.items()}
    result: dict[str, Any] = {"labels": {"kind": "class", "splits": sizes}}
    evaluated = {split: labels[split][1] for split in phase.inputs}
    result |= prediction.store(phase, context, folder, evaluated)
    for split, (_, soft_NC) in labels.items():
        truth_N = _truth_of(phase, context, split, labels[split][0])
        result.setdefault("label_accuracy", {})[split] = classification.classification_metrics(
            soft_NC[:, 1], truth_N
        )["accuracy"]
    return result | {
        "seconds": time.monotonic() - started,
        "compile_seconds": compilation.compile_clock().seconds - compiled,
    }


def _truth_of(phase: Phase, context: Context, split: str, ids_N: np.ndarray) -> np.ndarray:
    documents = context.data(phase).splits[split]
    truth = dict(zip(documents.ids_N.tolist(), hard_labels(documents.labels_N), strict=True))
    return np.array([truth[id_] for id_ in ids_N.tolist()], np.float32)


# --- supervisors ---------------------------------------------------------------------------------


def _outside(work: Work) -> Labels:
    """Labels from a file (people, a judge)."""
    path = work.context.settings.weak.labels
    assert path is not None
    found = read_outside(path)
    made: Labels = {}
    for split in work.phase.label_splits:
        soft_NC = matched(found, work.documents(split).ids_N, f"{path}: {split}")
        made |= work.of_all(split, soft_NC)
    return made


def _resampled(work: Work, *, member: int) -> Labels:
    """Slice 1 drawn with replacement, and its ground truth."""
    documents = work.documents("slice1")
    index_N = ensembles.resample(len(documents), work.phase.seed + member)
    chosen = documents.select(index_N)
    return {"slice1": (chosen.ids_N, soft_labels(chosen.targets_N))}


def _adaboost(work: Work) -> tuple[list[float], np.ndarray]:
    """The members' weights, and those of slice 1 after them."""
    documents = work.documents("slice1")
    weights_N, alphas = np.full(len(documents), 1 / len(documents)), []
    for name in work.members:
        wrong_N = (work.labels("slice1", name)[:, 1] > 0.5) != (work.truth("slice1") > 0.5)
        alpha, weights_N = ensembles.adaboost_round(weights_N, wrong_N)
        alphas.append(alpha)
    return alphas, weights_N


def _boosted(work: Work, *, member: int) -> Labels:
    """Slice 1 drawn by the weights that AdaBoost gives it after the members so far."""
    documents, (_, weights_N) = work.documents("slice1"), _adaboost(work)
    rng = np.random.default_rng((work.phase.seed, member))
    index_N = rng.choice(len(documents), len(documents), p=weights_N / weights_N.sum())
    chosen = documents.select(np.sort(index_N))
    return {"slice1": (chosen.ids_N, soft_labels(chosen.targets_N))}


def _mean_logits(work: Work) -> Labels:
    """The mean of the members' logits."""
    made: Labels = {}
    for split in work.phase.label_splits:
        members = [work.labels(split, name) for name in work.members]
        made |= work.of_all(split, ensembles.mean_logits(members))
    return made


def _vote(work: Work) -> Labels:
    """The members' vote, weighted by AdaBoost."""
    alphas, _ = _adaboost(work)
    made: Labels = {}
    for split in work.phase.label_splits:
        members = [work.labels(split, name) for name in work.members]
        made |= work.of_all(split, ensembles.vote(members, alphas))
    return made


def _synthetic(work: Work, *, structure: str) -> Labels:
    """Ground truth with as many errors as the weak model makes, of one kind."""
    made: Labels = {}
    for number, split in enumerate(work.phase.label_splits):
        truth_N, weak_NC = work.truth(split), work.labels(split)
        error_rate = float(np.mean((weak_NC[:, 1] > 0.5) != (truth_N > 0.5)))
        soft_NC = synthetic.synthetic_labels(
            structure,
            truth_N,
            error_rate,
            seed=work.phase.seed + number,
            lengths_N=work.documents(split).lengths_N,
            strong_p_N=work.labels(split, "strong")[:, 1]
            if "strong" in work.phase.parents
            else None,
            weak_soft_NC=weak_NC,
        )
        made |= work.of_all(split, soft_NC)
    return made


# --- labels made from labels ---------------------------------------------------------------------


def _kept(work: Work, keep_N: np.ndarray) -> Labels:
    return {"slice2": (work.documents("slice2").ids_N[keep_N], work.labels("slice2")[keep_N])}


def _confident(work: Work, *, share: float) -> Labels:
    """The most confident of each class."""
    return _kept(work, filtering.most_confident(work.labels("slice2"), share))


def _suspicion(work: Work, judge: str, neighbours: int) -> np.ndarray:
    options: dict[str, Any] = {} if judge == "logistic" else {"k": neighbours}
    return filtering.suspicious(judge, work.features("slice2"), work.labels("slice2"), **options)


def _judged_p(work: Work, judge: str, neighbours: int) -> np.ndarray:
    """P(label 1) by the student's activations, float [N]."""
    features_ND, soft_NC = work.features("slice2"), work.labels("slice2")
    if judge == "logistic":
        return filtering.logistic(features_ND, soft_NC, seed=work.phase.seed)
    return filtering.neighbours(features_ND, soft_NC, k=neighbours)


def _filtered(work: Work, *, judge: str, share: float, neighbours: int) -> Labels:
    """Without the most suspicious."""
    return _kept(work, filtering.drop_suspicious(_suspicion(work, judge, neighbours), share))


def _relabelled(work: Work, *, judge: str, share: float, neighbours: int) -> Labels:
    """The most suspicious with the labels that the activations suggest."""
    score_N = _suspicion(work, judge, neighbours)
    p_N, soft_NC = _judged_p(work, judge, neighbours), work.labels("slice2")
    return work.of_all("slice2", filtering.relabel_suspicious(score_N, p_N, soft_NC, share))


def _trusted(work: Work, *, share: float) -> Labels:
    """Without what the supervisor's own activations betray, by what they are where it errs."""
    split = "validation"
    right_M = (work.labels(split)[:, 1] > 0.5) == (work.truth(split) > 0.5)
    trust_N = filtering.trust(
        work.features(split), right_M, work.features("slice2"), work.phase.seed
    )
    return _kept(work, filtering.drop_untrusted(trust_N, share))


def _em_posterior(work: Work, *, rounds: int) -> Labels:
    """The posterior of the true labels, under a prior from the student's activations."""
    soft_NC = work.labels("slice2")
    p_N = filtering.logistic(work.features("slice2"), soft_NC, seed=work.phase.seed)
    p_N = np.clip(p_N, _EPSILON, 1 - _EPSILON)
    margin_N = np.log(p_N) - np.log1p(-p_N)
    return work.of_all("slice2", posterior.em_posterior(margin_N, soft_NC, rounds=rounds))


# --- a frozen model ------------------------------------------------------------------------------


def _backbone(work: Work) -> Any:
    phase, context = work.phase, work.context
    return parameters.backbone(phase, context.data(phase).source, context.store, context.mesh)


def _run(work: Work, backbone: Any, documents: TokenizedDocuments, *, features: bool) -> np.ndarray:
    """Logits of the label tokens [N, 2], or features [N, D], of a frozen model."""
    phase, context = work.phase, work.context
    params = {"backbone": backbone}
    if not features:
        tokens = context.data(phase).label_tokens
        assert len(tokens) == 2
        params["head"] = heads.init_class_head(
            "unembedding", phase.model, backbone, (tokens[0], tokens[1]), context.mesh
        )
    run = Predictor(
        phase.model,
        documents,
        context.mesh,
        compute_dtype=phase.train.compute_dtype,
        per_device=fits_on_one_device(backbone, phase.train.compute_dtype),
        features=features,
    )
    found = run(params)
    return found.reshape(len(documents), -1) if features else found


def _longest(phase: Phase) -> int | None:
    """How long a document may be."""
    return phase.model.max_positions if phase.model.positions == "learned" else None


def _prompted(work: Work, *, shots: int) -> Labels:
    """The label tokens' probabilities behind some solved examples and the document."""
    phase, backbone = work.phase, _backbone(work)
    data = work.context.data(phase)
    tokens = data.label_tokens
    weak = "labels" in phase.parents
    split = "slice2" if weak else "slice1"
    index_E = np.random.default_rng((phase.seed, shots)).permutation(len(work.documents(split)))
    index_E = index_E[:shots]
    said_N = work.labels(split)[:, 1] if weak else work.truth(split)
    made: Labels = {}
    for name in phase.label_splits:
        documents = prompting.few_shot(
            work.documents(name),
            work.documents(split).select(index_E),
            (said_N[index_E] > 0.5).astype(np.int64),
            tokens,
            _longest(phase),
            phase.seed,
            prefix=data.prefix,
            suffix=data.suffix,
        )
        logits_NC = _run(work, backbone, documents, features=False)
        made |= work.of_all(name, probabilities(logits_NC))
    return made


def _contrast(work: Work, *, tries: int, iterations: int) -> Labels:
    """The probe of contrast-consistent search, fitted on slice 2 without its labels.

    Which of its two ends is label 1 is chosen by agreement with the weak labels.
    """
    phase, backbone = work.phase, _backbone(work)
    data = work.context.data(phase)
    tokens = data.label_tokens
    found: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for split in ("slice2", *phase.label_splits):
        documents = work.documents(split)
        sides = []
        for token in (tokens[1], tokens[0]):
            followed = prompting.with_suffix(documents, token, _longest(phase), suffix=data.suffix)
            sides.append(contrast.normalised(_run(work, backbone, followed, features=True)))
        found[split] = (sides[0], sides[1])
    probe = contrast.fit_ccs(*found["slice2"], seed=phase.seed, tries=tries, steps=iterations)
    p_N = contrast.predict_ccs(probe, *found["slice2"])
    agreeing = contrast.oriented(p_N, work.labels("slice2")[:, 1])
    flipped = not np.allclose(agreeing, p_N)
    made: Labels = {}
    for split in phase.label_splits:
        p_N = contrast.predict_ccs(probe, *found[split])
        made |= work.of_all(split, soft_labels(1 - p_N if flipped else p_N))
    return made


_MAKERS: Mapping[str, Maker] = {
    "outside": _outside,
    "resampled": _resampled,
    "boosted": _boosted,
    "mean_logits": _mean_logits,
    "vote": _vote,
    "synthetic": _synthetic,
    "confident": _confident,
    "filtered": _filtered,
    "relabelled": _relabelled,
    "trusted": _trusted,
    "em_posterior": _em_posterior,
    "prompted": _prompted,
    "contrast_consistent_search": _contrast,
}
