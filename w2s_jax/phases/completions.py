"""Completions that a phase computes with its parameters: labels, predictions, evaluations.

Shapes in names: N documents, S samples of each, T most tokens of a completion, k tokens of a
stored distribution.
"""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from w2s_jax.core import processes, signals
from w2s_jax.data import judging
from w2s_jax.data.completions import prompts_of
from w2s_jax.data.documents import Document
from w2s_jax.data.tokenize import TokenizedDocuments
from w2s_jax.metrics.answers import answer_metrics, same_answers
from w2s_jax.models.generation import Completions, Generator
from w2s_jax.models.inference import fits_on_one_device
from w2s_jax.phases import kept_batches, prediction
from w2s_jax.phases.completed import completed_documents, token_labels_of
from w2s_jax.phases.context import Context
from w2s_jax.phases.kept_batches import KeptBatches
from w2s_jax.phases.parameters import Parameters
from w2s_jax.planning.phase import Phase
from w2s_jax.store import artifacts, token_labels
from w2s_jax.store.artifacts import PhaseFolder
from w2s_jax.store.token_labels import TokenLabels
from w2s_jax.training.answer_scores import completion_logprobs


def complete(
    phase: Phase,
    context: Context,
    params: Any,
    split: str,
    *,
    documents: TokenizedDocuments | None = None,
    keep: Path | None = None,
    **sampling: Any,
) -> TokenLabels:
    """Return the completions of a split's prompts by a phase's model.

    Args:
      phase: the phase; its role's tokenizer makes texts of tokens.
      context: of the run.
      params: {'backbone': parameters}.
      split: the split; its name is part of the names of kept batches.
      documents: in place of the split's.
      keep: folder in which finished batches are kept, for an attempt after this one.
      **sampling: arguments of `Generator`: `top_k`, and what is not to be greedy. With S samples
        the labels have N * S rows, those of a document one after another.

    Raises:
      Interrupted: a stop was requested; finished batches are kept if there is a folder.
      TrainingFailed: log-probabilities are not finite.
    """
    data, completion = context.data(phase), phase.completion
    assert completion is not None and data.tokenizer is not None
    if documents is None:
        documents = data.splits[split]
    backbone, dtype = params["backbone"], phase.train.compute_dtype
    generator = Generator(
        phase.model,
        context.mesh,
        max_new_tokens=completion.max_new_tokens,
        eos=completion.end,
        compute_dtype=dtype,
        per_device=fits_on_one_device(backbone, dtype),
        **sampling,
    )
    prompts, ids_N = prompts_of(documents), documents.ids_N
    kept = None if keep is None else _kept(keep, split, generator, prompts, ids_N)
    found = {} if kept is None else kept.found()
    batches: list[dict[str, np.ndarray]] = list(found.values())
    for number, done in generator.batches(backbone, prompts, ids_N, skip=set(found)):
        batches.append(_arrays(done))
        if kept is not None:
            kept.keep(number, batches[-1])
            # Nothing is lost: what is kept is not computed again.
            if context.should_stop():
                raise signals.interruption(f"while {phase.title} completes {split}")
    labels = _joined(batches, ids_N)
    assert len(labels["ids"]) == len(ids_N) * sampling.get("num_samples", 1)
    prediction.check_finite(phase, labels["logprobs"], f"completions of {split}")
    texts = [
        data.tokenizer.decode(tokens_T[:length])
        for tokens_T, length in zip(labels["tokens"], labels["lengths"].tolist(), strict=True)
    ]
    return TokenLabels(
        labels["ids"],
        texts,
        labels["tokens"],
        labels["lengths"],
        labels["logprobs"],
        labels.get("top_ids"),
        labels.get("top_logprobs"),
    )


def _kept(
    keep: Path, split: str, generator: Generator, prompts: Sequence[np.ndarray], ids_N: np.ndarray
) -> KeptBatches:
    digest = hashlib.sha256()
    for dispatch in generator.plan(prompts, ids_N):
        digest.update(np.ascontiguousarray(dispatch.rows_B).tobytes() + b";")
    return KeptBatches(keep, split, digest.hexdigest())


def _arrays(done: Completions) -> dict[str, np.ndarray]:
    """Return the arrays of finished completions, to be kept."""
    fields = {
        "rows": done.rows_B,
        "samples": done.sample_B,
        "tokens": done.tokens_BT,
        "lengths": done.lengths_B,
        "logprobs": done.logprobs_BT1,
        "top_ids": done.top_ids_BTk,
        "top_logprobs": done.top_logprobs_BTk,
    }
    return {name: x for name, x in fields.items() if x is not None}


def _joined(batches: Sequence[dict[str, np.ndarray]], ids_N: np.ndarray) -> dict[str, np.ndarray]:
    """Return batches as one, in the order of documents and samples."""
    joined = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
    order = np.lexsort((joined["samples"], joined["rows"]))
    joined = {name: values[order] for name, values in joined.items()}
    return joined | {"ids": ids_N[joined["rows"]]}


# --- labels and predictions ----------------------------------------------------------------------


def predict(
    phase: Phase, context: Context, folder: PhaseFolder, parts: Parameters
) -> dict[str, Any]:
    """Complete validation, test and label splits; store predictions and labels; return a record."""
    params = parts.joined()
    keep, made = folder.path / "completions", {}
    inputs = {s: phase.inputs[s] for s in ("validation", "test") if s in phase.inputs}
    for split in dict.fromkeys((*inputs.values(), *phase.label_splits)):
        top_k = phase.label_top_k if split in phase.label_splits else 0
        made[split] = complete(phase, context, params, split, keep=keep, top_k=top_k)
    result = store(phase, context, folder, {name: made[split] for name, split in inputs.items()})
    if phase.label_splits:
        labels = {split: made[split] for split in phase.label_splits}
        token_labels.save(folder, labels)
        result["labels"] = token_labels.record(labels)
    kept_batches.discard(keep)
    return result


def store(
    phase: Phase, context: Context, folder: PhaseFolder, made: dict[str, TokenLabels]
) -> dict[str, Any]:
    """Store the predictions of 'validation' and 'test', and return their metrics."""
    if not made:
        return {}
    columns: dict[str, list[Any]] = {name: [] for name in artifacts.ANSWER_COLUMNS}
    result: dict[str, Any] = {"metrics": {}}
    for name, found in made.items():
        documents = documents_of(context, phase.inputs.get(name, name), found.ids_N)
        answers = answers_of(context, found.texts)
        correct = right(context, answers, documents)
        columns["id"] += found.ids_N.tolist()
        columns["split"] += [name] * len(documents)
        columns["text"] += list(found.texts)
        columns["answer"] += answers
        columns["target"] += [document.target for document in documents]
        columns["correct"] += correct
        columns["logprob"] += found.total_logprobs_N.tolist()
        result["metrics"][name] = answer_metrics(correct, scores(context, answers, documents))
    processes.on_first("predictions", lambda: artifacts.write_answers(folder.predictions, columns))
    return result


def documents_of(context: Context, split: str, ids_N: np.ndarray) -> list[Document]:
    """Return documents of a split by their ids."""
    by_id = {document.id: document for document in context.resolved.documents[split]}
    return [by_id[id_] for id_ in ids_N.tolist()]


def answers_of(context: Context, texts: Sequence[str]) -> list[str]:
    """Return the answer in each completion.

    Raises:
      InputError: the task's function fails.
    """
    task = context.resolved.task
    assert task is not None
    return [judging.answer_of(task, text) for text in texts]


def right(context: Context, answers: Sequence[str], documents: Sequence[Document]) -> list[bool]:
    """Return whether each answer is right.

    Raises:
      InputError: the task's function fails.
    """
    task = context.resolved.task
    assert task is not None
    pairs = zip(answers, documents, strict=True)
    return [judging.is_right(task, answer, document) for answer, document in pairs]


def scores(
    context: Context, answers: Sequence[str], documents: Sequence[Document]
) -> dict[str, list[float | None]]:
    """Return the values of the task's scores, by their names.

    Raises:
      InputError: a function of the task fails.
    """
    task = context.resolved.task
    assert task is not None
    found: dict[str, list[float | None]] = {name: [] for name in task.scores}
    for answer, document in zip(answers, documents, strict=True):
        for name, value in judging.scores_of(task, answer, document).items():
            found[name].append(value)
    return found


# --- evaluation while training -------------------------------------------------------------------


def evaluator(
    phase: Phase, context: Context, parameters_of: Callable[[Any], Parameters]
) -> Callable[[Any], dict[str, Any]]:
    """Return the function that evaluates trained parameters on validation prompts.

    It measures how often the answer is that of the labels that the phase learns. The score to
    maximise is that agreement (or, for an oracle, the accuracy), then a lower cross-entropy to
    the labels' tokens.
    """
    split = phase.inputs["validation"]
    documents = context.data(phase).splits[split]
    originals = documents_of(context, split, documents.ids_N)
    labelled = completed_documents(phase, context, split, documents)
    labels = token_labels_of(phase, context, split, documents)
    texts = [d.target or "" for d in originals] if labels is None else labels.texts
    wanted = answers_of(context, texts)

    def evaluate(trained: Any) -> dict[str, Any]:
        params = parameters_of(trained).joined()
        found = complete(phase, context, params, split)
        answers = answers_of(context, found.texts)
        agreement = float(same_answers(answers, wanted).mean())
        accuracy = float(np.mean(right(context, answers, originals)))
        logp_NK, lengths_NK = completion_logprobs(
            phase.model,
            params,
            labelled,
            context.mesh,
            compute_dtype=phase.train.compute_dtype,
            per_device=fits_on_one_device(params["backbone"], phase.train.compute_dtype),
        )
        cross_entropy = float(-logp_NK.sum() / lengths_NK.sum())
        best_by = accuracy if phase.select == "ground_truth" else agreement
        return {
            "agreement": agreement,
            "cross_entropy": cross_entropy,
            "accuracy": accuracy,
            "score": [best_by, -cross_entropy],
        }

    return evaluate
