"""Weak-to-strong reasoning: filtered completions, then preferences between completions.

After "Weak-to-strong reasoning" (arXiv 2407.13647). What they define for chains of thought applies
to any task whose completions end in an answer.
"""

import dataclasses
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from w2s_jax.config import PREFERENCES
from w2s_jax.config.options import Option
from w2s_jax.core.errors import InputError
from w2s_jax.data.documents import hash_keys, hash_order
from w2s_jax.data.tokenized import TokenizedDocuments, offsets_of
from w2s_jax.methods.registry import (
    Students,
    refused,
    register,
    require_full,
    require_slice1,
)
from w2s_jax.planning.plan import MethodPlanner
from w2s_jax.store.token_labels import Pairs

if TYPE_CHECKING:
    from w2s_jax.phases.labelling import CompletionLabels, LabelWork

T = TypeVar("T")
#: A completion, and whether it ended by itself.
_Completion = tuple[str, bool]
_SOURCE = "Yang et al. 2024, arXiv 2407.13647"


# --- stage I: agreement --------------------------------------------------------------------------


def _few_shot(work: "LabelWork", *, shots: int) -> "CompletionLabels":
    """Completions of the strong model, of which examples stand before each prompt."""
    found = {}
    for split in work.phase.label_splits:
        examples = work.documents("slice1")
        chosen = hash_order(examples.ids_N, "shots", work.phase.seed)[:shots]
        documents = behind_examples(work.documents(split), examples.select(chosen))
        found[split] = work.sampled(split, documents=documents, top_k=work.phase.label_top_k)
    return found


def behind_examples(
    documents: TokenizedDocuments, examples: TokenizedDocuments
) -> TokenizedDocuments:
    """Return prompts that begin with whole examples, as they are in training; no completions."""
    assert documents.prompt_lengths_P is not None
    before_T = examples.tokens_T
    starts_N = documents.offsets[:-1].tolist()
    prompts = [
        np.concatenate([before_T, documents.tokens_T[start : start + length]])
        for start, length in zip(starts_N, documents.prompt_lengths_P.tolist(), strict=True)
    ]
    lengths_N = documents.prompt_lengths_P + len(before_T)
    return TokenizedDocuments(
        ids_N=documents.ids_N,
        tokens_T=np.concatenate(prompts),
        offsets=offsets_of(lengths_N),
        labels_N=documents.labels_N,
        prompt_lengths_P=lengths_N,
    )


def _agreeing(work: "LabelWork", *, learn: str) -> "CompletionLabels":
    """The completions of questions to which supervisor and strong model give the same answer."""
    weak, strong = work.token_labels("slice2"), work.token_labels("slice2", "strong")
    same_N = agreeing(work.answers(weak), work.answers(strong))
    if not same_N.any():
        raise InputError(
            f"method.answer_agreement: none of the {len(same_N)} questions of slice2 has the same "
            "answer by the supervisor and the strong model; train them longer, or use another "
            "method"
        )
    kept = (weak if learn == "weak" else strong).select(same_N)
    # A fixed number of steps is planned before it is known how many agree.
    return {"slice2": kept.select(np.arange(len(same_N)) % len(kept.ids_N))}


def agreeing(weak: Sequence[str], strong: Sequence[str]) -> np.ndarray:
    """Return where both have the same answer, and have one, bool [N]."""
    return np.array([a == b and a != "" for a, b in zip(weak, strong, strict=True)], bool)


@register(
    "answer_agreement",
    label_makers={"few_shot": _few_shot, "agreeing": _agreeing},
    students="`+answer_agreement`",
    kinds=("generation",),
    summary="Only questions to which supervisor and strong model give the same answer, repeated so "
    "that the student trains as long as the naive one",
    source=f"{_SOURCE}, stage I",
    answers=Option(
        "student",
        "The strong model's answers: of the naive student, or of the pretrained model behind "
        "examples from slice 1",
        choices=("student", "few_shot"),
    ),
    shots=Option(4, "Examples of 'few_shot'", low=1),
    learn=Option("weak", "Whose completions are learnt", choices=("weak", "strong")),
    iterations=Option(1, "Rounds; each compares with the student of the one before", low=1),
)
def answer_agreement(
    planner: MethodPlanner, *, answers: str, shots: int, learn: str, iterations: int
) -> Students:
    """Students of the completions that supervisor and strong model agree on."""
    builder, weak = planner.builder, planner.naive.weak
    students: Students = {}
    for loss in planner.losses:
        if answers == "few_shot":
            _check_shots(planner, shots)
            start = builder.init("strong")
            strong = builder.labels("few_shot", "strong", ("slice2",), start, shots=shots)
        else:
            strong = _labelling_student(planner, weak, loss.label)
        for number in range(1, iterations + 1):
            labels = builder.labels(
                "agreeing", "strong", ("slice2",), {"labels": weak, "strong": strong}, learn=learn
            )
            last = number == iterations
            student = planner.student(
                "answer_agreement",
                labels,
                loss,
                supervisor=weak,
                subset=planner.size("slice2"),
                label_splits=() if last else ("slice2",),
            )
            strong = student.phase
        students[f"{loss.label}+answer_agreement"] = student
    return students


def _labelling_student(planner: MethodPlanner, weak: str, label: str) -> str:
    """Return the phase of the naive student of a loss, which also labels slice 2."""
    loss = next(loss for loss in planner.losses if loss.label == label)
    return planner.builder.trained(
        "student", "strong", "slice2", loss=loss, parents={"labels": weak}, label_splits=("slice2",)
    )


def _check_shots(planner: MethodPlanner, shots: int) -> None:
    """Refuse examples that slice 1 does not have, or the positions of the strong model not fit."""
    require_slice1(planner.builder, "answer_agreement")
    data, available = planner.builder.resolved.roles["strong"], planner.size("slice1")
    if shots > available:
        raise InputError(
            f"method.answer_agreement.shots: {shots}; allowed: at most {available}, the documents "
            "of slice1"
        )
    if data.model.positions != "learned":
        return
    lengths_N = np.sort(data.splits["slice1"].lengths_N)[-shots:]
    prompts_P = data.splits["slice2"].prompt_lengths_P
    assert prompts_P is not None and data.completion is not None
    needed = int(lengths_N.sum() + prompts_P.max()) + data.completion.max_new_tokens
    if needed > data.model.max_positions:
        raise InputError(
            f"method.answer_agreement.shots: {shots} examples, a prompt and its completion may "
            f"have {needed} tokens, which exceed the {data.model.max_positions} positions of "
            f"{data.model.name}; give fewer, or method.answer_agreement.answers=student"
        )


# --- stage II: preferences -----------------------------------------------------------------------


def _pairs(
    work: "LabelWork",
    *,
    samples: int,
    temperature: float,
    top_p: float,
    confidence: float,
    reversal: float,
    pairs: int,
) -> "CompletionLabels":
    """Pairs of completions by sampled answers of the strong model and those of the supervisor."""
    weak = work.token_labels("slice2")
    drawn = work.sampled(
        "slice2",
        num_samples=samples,
        temperature=temperature,
        top_p=top_p,
        seed=work.phase.seed,
    )
    ids_N = weak.ids_N
    # Completions with whether they ended, document by document.
    given = list(zip(drawn.texts, drawn.ended_N.tolist(), strict=True))
    answers, ended_N = work.answers(drawn), weak.ended_N.tolist()
    found: list[tuple[int, _Completion, _Completion]] = []
    for n, weak_answer in enumerate(work.answers(weak)):
        chosen = preference_pair(
            weak_answer,
            (weak.texts[n], ended_N[n]),
            answers[n * samples : (n + 1) * samples],
            given[n * samples : (n + 1) * samples],
            key=int(hash_keys(ids_N[n : n + 1], "pairs", work.phase.seed)[0]),
            confidence=confidence,
            reversal=reversal,
        )
        if chosen is not None:
            found.append((n, *chosen))
    if not found:
        raise InputError(
            f"method.preference_pairs.confidence: {confidence}: none of the {len(ids_N)} questions "
            f"of slice2 gives a pair among {samples} samples; lower it, or raise "
            "method.preference_pairs.temperature"
        )
    rows = [found[i % len(found)] for i in range(pairs)]
    made = Pairs(
        ids_N[[n for n, _, _ in rows]],
        [first[0] for _, first, _ in rows],
        [second[0] for _, _, second in rows],
        np.ones(pairs, np.float32),
        np.array([[first[1], second[1]] for _, first, second in rows], bool),
    )
    return {"slice2": made}


def preference_pair(
    weak_answer: str,
    weak_completion: T,
    answers: Sequence[str],
    completions: Sequence[T],
    *,
    key: int,
    confidence: float,
    reversal: float,
) -> tuple[T, T] | None:
    """Return (better, worse) completions of a question, or None.

    The confidence is the share of the most frequent answer among the samples (of equally frequent
    ones, the first). If it is at least `confidence` and the supervisor gives that answer, the pair
    is the supervisor's completion and a sample with another answer; if the supervisor gives another
    answer and the confidence is at least `reversal`, it is a sample with the most frequent answer
    and the supervisor's completion.

    Args:
      weak_answer, weak_completion: of the supervisor; a completion may be of any type.
      answers, completions: of the samples; '' is no answer, which is never the most frequent one.
      key: a hash that draws the sample.
      confidence, reversal: see above.
    """
    counts = Counter(answer for answer in answers if answer)
    if not counts:
        return None
    majority, count = counts.most_common(1)[0]
    share = count / len(answers)
    if share < confidence:
        return None
    if weak_answer == majority:
        others = [c for c, a in zip(completions, answers, strict=True) if a != majority]
        return (weak_completion, others[key % len(others)]) if others else None
    if share < reversal:
        return None
    same = [c for c, a in zip(completions, answers, strict=True) if a == majority]
    return same[key % len(same)], weak_completion


@register(
    "preference_pairs",
    label_makers={"pairs": _pairs},
    students="`<pair loss>+preference_pairs`",
    kinds=("generation",),
    pairs=True,
    summary="The naive student, then trained by a loss on pairs (`dpo`, `orpo`) of a sampled "
    "completion and the supervisor's, of which the more frequent answer counts as the better one",
    source=f"{_SOURCE}, stage II",
    samples=Option(10, "Completions sampled of each question", low=2, high=1000),
    temperature=Option(1.0, "Temperature of the samples", above=0),
    top_p=Option(0.95, "Nucleus of the samples", above=0, high=1),
    confidence=Option(0.6, "Least share of the most frequent answer", above=0, high=1),
    reversal=Option(0.8, "The same where it is not the supervisor's answer", above=0, high=1),
    epochs=Option(
        1.0, "Passes over as many pairs as slice 2 has documents; found ones are repeated", above=0
    ),
    learning_rate=Option(
        None, "Learning rate; None: a tenth of `strong.train.learning_rate`", above=0
    ),
)
def preference_pairs(
    planner: MethodPlanner, *, epochs: float, learning_rate: float | None, **options: Any
) -> Students:
    """Students that learn preferences between completions after the supervisor's completions."""
    builder, weak = planner.builder, planner.naive.weak
    require_full(builder, "strong", "preference_pairs")
    if not planner.pair_losses:
        kinds = ", ".join(PREFERENCES)
        raise refused(
            "preference_pairs", f"a loss on pairs ({kinds}) among losses", "there is none"
        )
    first = next(iter(planner.losses), None)
    if first is None:
        raise refused("preference_pairs", "a loss on completions among losses", "there is none")
    own = builder.settings.strong.train
    rate = learning_rate or (own.learning_rate or 0.0) / 10
    train = dataclasses.replace(own, epochs=epochs, steps=None, learning_rate=rate)
    start = planner.naive.students[first.label].phase
    labels = builder.labels(
        "pairs",
        "strong",
        ("slice2",),
        {"init": start, "labels": weak},
        pairs=planner.size("slice2"),
        **options,
    )
    return {
        f"{loss.label}+preference_pairs": planner.student(
            "preference_pairs",
            labels,
            loss,
            supervisor=weak,
            init={"init": start},
            subset=planner.size("slice2"),
            pairs=True,
            train=train,
        )
        for loss in planner.pair_losses
    }
