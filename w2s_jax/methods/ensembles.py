"""Several supervisors as one: bagging and AdaBoost over weak models. In names: m members."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from w2s_jax.config.options import Option
from w2s_jax.core.errors import InputError
from w2s_jax.data.task import KINDS
from w2s_jax.data.tokenize import soft_labels
from w2s_jax.methods.labels import log_odds, probabilities_of
from w2s_jax.methods.registry import Students, register, require_slice1
from w2s_jax.metrics.classification import predicted_classes
from w2s_jax.planning.plan import MethodPlanner, PlanBuilder
from w2s_jax.store.token_labels import chosen_of

if TYPE_CHECKING:
    from w2s_jax.phases.labelling import CompletionLabels, Labels, LabelWork

#: Distance between the seeds of members.
_SEED_STEP = 1_000_003
# Probabilities and error rates stay this far from 0 and 1, so that logarithms are finite.
CLIP = 1e-6


def _resampled(work: "LabelWork", *, member: int) -> "Labels | CompletionLabels":
    """Ground truth of slice 1, drawn with replacement."""
    documents = work.documents("slice1")
    if work.phase.completion is not None:
        rows_N = resample(len(documents), work.phase.seed + member)
        return {"slice1": work.targets("slice1").select(rows_N)}
    chosen = documents.select(resample(len(documents), work.phase.seed + member))
    return {"slice1": (chosen.ids_N, chosen.targets_NC)}


def _mean_logits(work: "LabelWork") -> "Labels":
    """The mean of the members' logits."""
    made: Labels = {}
    for split in work.phase.label_splits:
        members = [work.labels(split, name) for name in work.members]
        made |= work.of_all(split, mean_logits(members))
    return made


def _majority(work: "LabelWork") -> "CompletionLabels":
    """The most probable completion among those with the answer of most members."""
    made = {}
    for split in work.phase.label_splits:
        members = [work.token_labels(split, name) for name in work.members]
        answers = [work.answers(labels) for labels in members]
        logp_mN = np.stack([labels.total_logprobs_N for labels in members])
        made[split] = chosen_of(members, majority(answers, logp_mN))
    return made


def _adaboost(work: "LabelWork") -> tuple[list[float], np.ndarray]:
    """The members' weights, and the weights of slice 1 after them."""
    documents = work.documents("slice1")
    weights_N, alphas = np.full(len(documents), 1 / len(documents)), []
    for name in work.members:
        truth_N = work.truth("slice1")
        soft_NC = work.labels("slice1", name)
        wrong_N = predicted_classes(soft_NC) != truth_N
        wrong_N &= ~np.isnan(truth_N)  # on a tie no member is wrong
        alpha, weights_N = adaboost_round(weights_N, wrong_N, soft_NC.shape[1])
        alphas.append(alpha)
    return alphas, weights_N


def _boosted(work: "LabelWork", *, member: int) -> "Labels":
    """Ground truth of slice 1, drawn by the weights of AdaBoost after the members so far."""
    documents, (_, weights_N) = work.documents("slice1"), _adaboost(work)
    rng = np.random.default_rng((work.phase.seed, member))
    index_N = rng.choice(len(documents), len(documents), p=weights_N / weights_N.sum())
    chosen = documents.select(np.sort(index_N))
    return {"slice1": (chosen.ids_N, chosen.targets_NC)}


def _vote(work: "LabelWork") -> "Labels":
    """The members' vote, weighted by AdaBoost."""
    alphas, _ = _adaboost(work)
    made: Labels = {}
    for split in work.phase.label_splits:
        members = [work.labels(split, name) for name in work.members]
        made |= work.of_all(split, vote(members, alphas))
    return made


@register(
    "bagging",
    label_makers={"resampled": _resampled, "mean_logits": _mean_logits, "majority": _majority},
    students="`+bagging`",
    kinds=KINDS,
    summary="Supervisors with other seeds on resampled documents; the student learns the mean of "
    "their logits, or the answer of most of them",
    source="Breiman 1996",
    members=Option(5, "Number of supervisors", low=2),
    resample=Option(True, "Resample the documents, or (False) only change the seeds"),
)
def bagging(planner: MethodPlanner, *, members: int, resample: bool) -> Students:
    """Students of the mean of several supervisors."""
    require_slice1(planner.builder, "bagging")
    builder, parents = planner.builder, {}
    for number in range(1, members + 1):
        more: dict[str, Any] = {}
        if resample:
            sample = builder.labels(
                "resampled", "weak", ("slice1",), {}, label=f"sample {number}", member=number
            )
            more = {"parents": {"labels": sample}, "subset": planner.size("slice1")}
        parents[f"member{number}"] = builder.trained(
            "weak",
            "weak",
            "slice1",
            seed=_seed(builder, number),
            label=f"member {number}",
            label_splits=planner.label_splits,
            **more,
        )
    how = "majority" if builder.resolved.roles["weak"].completion else "mean_logits"
    labels = builder.labels(how, "weak", planner.label_splits, parents)
    return planner.students("bagging", labels)


@register(
    "boosting",
    label_makers={"boosted": _boosted, "vote": _vote},
    students="`+boosting`",
    summary="AdaBoost by resampling: each supervisor draws the errors of those before more often. "
    "The student learns the weighted vote, as probabilities of the additive logistic model. Of "
    "more than two classes it is SAMME",
    source="Freund and Schapire 1997; Zhu et al. 2009",
    members=Option(5, "Number of supervisors", low=2),
)
def boosting(planner: MethodPlanner, *, members: int) -> Students:
    """Students of the vote of boosted supervisors."""
    require_slice1(planner.builder, "boosting")
    builder = planner.builder
    parents: dict[str, str] = {}
    for number in range(1, members + 1):
        sample = builder.labels(
            "boosted", "weak", ("slice1",), parents, label=f"sample {number}", member=number
        )
        member = builder.trained(
            "weak",
            "weak",
            "slice1",
            parents={"labels": sample},
            subset=planner.size("slice1"),
            seed=_seed(builder, number),
            label=f"boosted {number}",
            label_splits=("slice1", *planner.label_splits),
        )
        parents = parents | {f"member{number}": member}
    labels = builder.labels("vote", "weak", planner.label_splits, parents)
    return planner.students("boosting", labels)


def _seed(builder: PlanBuilder, number: int) -> int:
    """The seed of a member; the first has the run's own."""
    return (builder.settings.seed + (number - 1) * _SEED_STEP) % 2**32


def resample(num: int, seed: int) -> np.ndarray:
    """Return a bootstrap sample: `num` indices below `num`, drawn with replacement, int64 [N]."""
    return np.random.default_rng(seed).integers(num, size=num)


def _members(members: Sequence[ArrayLike], weights: ArrayLike | None) -> tuple[np.ndarray, ...]:
    """Return P(label 1) [m, N], or probabilities of more classes [m, N, C]; and weights [m]."""
    if not len(members):
        raise InputError("ensemble: at least one member is needed")
    p_m = np.stack([probabilities_of(member) for member in members])
    weights_m = np.ones(len(p_m)) if weights is None else np.asarray(weights, np.float64)
    if weights_m.shape != (len(p_m),):
        raise ValueError(f"weights: expected shape ({len(p_m)},), got {weights_m.shape}")
    return p_m, weights_m


def mean_logits(members: Sequence[ArrayLike], weights: ArrayLike | None = None) -> np.ndarray:
    """Return soft labels whose log-odds are the (weighted) mean of the members'.

    Of more than two classes, the log-probabilities are, up to a constant of each document.

    Args:
      members: soft labels [N, C], or P(label 1) [N], of each supervisor.
      weights: of the members, divided by the sum of their magnitudes; None: all equal. A negative
        weight (AdaBoost's for a member worse than chance) reverses a member.

    Returns:
      float32 [N, C].

    Raises:
      InputError: for no members, or weights that are all 0.
    """
    p_m, weights_m = _members(members, weights)
    total = np.abs(weights_m).sum()
    if not total > 0:
        raise InputError(f"weights: {weights_m.tolist()}; at least one must not be 0")
    if p_m.ndim == 2:
        return _from_log_odds((weights_m / total) @ log_odds(p_m, CLIP))
    log_p_mNC = np.log(np.clip(p_m, CLIP, 1 - CLIP))
    return _from_scores(np.tensordot(weights_m / total, log_p_mNC, axes=1))


def majority(answers: Sequence[Sequence[str]], logp_mN: np.ndarray) -> np.ndarray:
    """Return the member whose completion represents the answer of most members, int64 [N].

    Of answers that equally many members give, the one with the largest sum of the completions'
    probabilities wins; of the members that give it, the most probable completion; then the first.

    Args:
      answers: m lists of N answers.
      logp_mN: log-probabilities of the completions; NaN counts as the lowest.
    """
    logp_mN = np.nan_to_num(logp_mN, nan=-np.inf)
    chosen = []
    for n, given in enumerate(zip(*answers, strict=True)):
        members: dict[str, list[int]] = {}
        for member, answer in enumerate(given):
            members.setdefault(answer, []).append(member)
        # '' is no answer, which wins only where nobody has one.
        known = {answer: own for answer, own in members.items() if answer} or members
        best = max(known.values(), key=lambda own: (len(own), np.exp(logp_mN[own, n]).sum()))
        chosen.append(max(best, key=lambda member: logp_mN[member, n]))
    return np.array(chosen, np.int64)


def adaboost_round(
    weights_N: ArrayLike, wrong_N: ArrayLike, classes: int = 2
) -> tuple[float, np.ndarray]:
    """Compute a round of discrete AdaBoost (Freund & Schapire 1997; SAMME, Zhu et al. 2009).

    With e the weighted error rate (clipped to [1e-6, 1 - 1e-6]) and C classes, alpha =
    1/2 ln((1 - e) (C - 1) / e); the weights of wrong documents grow by e^alpha, those of the others
    shrink by e^-alpha.

    Args:
      weights_N: non-negative weights of the documents, of any sum.
      wrong_N: bool; whether the member trained with them is wrong.
      classes: C.

    Returns:
      alpha, and the next weights, float64 [N] of sum 1.
    """
    weights_N, wrong_N = np.asarray(weights_N, np.float64), np.asarray(wrong_N, bool)
    error = float(np.clip(weights_N[wrong_N].sum() / weights_N.sum(), CLIP, 1 - CLIP))
    alpha = 0.5 * (math.log((1 - error) / error) + math.log(classes - 1))
    weights_N = weights_N * np.exp(np.where(wrong_N, alpha, -alpha))
    return alpha, weights_N / weights_N.sum()


def vote(members: Sequence[ArrayLike], alphas: ArrayLike) -> np.ndarray:
    """Return the members' weighted vote as soft labels.

    With F = sum of alpha * (+1 where a member predicts 1, else -1), P(label 1) = sigmoid(2 F), the
    probability that AdaBoost estimates (Friedman, Hastie & Tibshirani 2000). Of more classes it is
    softmax(2 G), G_c the sum of alpha over the members that predict c (Zhu et al. 2009, equation
    7), which is the same with two.

    Args:
      members: as in `mean_logits`.
      alphas: weight of each, from `adaboost_round`.

    Returns:
      float32 [N, C].

    Raises:
      InputError: for no members.
    """
    p_m, alphas_m = _members(members, alphas)
    if p_m.ndim == 2:
        return _from_log_odds(2 * (alphas_m @ np.where(p_m > 0.5, 1.0, -1.0)))
    predicts_mNC = p_m.argmax(-1)[..., None] == np.arange(p_m.shape[-1])
    return _from_scores(2 * np.tensordot(alphas_m, predicts_mNC, axes=1))


def _from_log_odds(log_odds_N: np.ndarray) -> np.ndarray:
    from scipy.special import expit

    return soft_labels(expit(log_odds_N))


def _from_scores(scores_NC: np.ndarray) -> np.ndarray:
    from scipy.special import softmax

    return np.asarray(softmax(scores_NC, axis=1), np.float32)
