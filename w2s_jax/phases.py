"""How one phase is run: train, keep the parameters, predict, label, and record the result."""

import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from rich.console import Console

from w2s_jax import artifacts, errors, metrics, sharding, storage
from w2s_jax.artifacts import PhaseFolder
from w2s_jax.config import PretrainSettings, Settings
from w2s_jax.data import packing
from w2s_jax.data.stream import stream_batches
from w2s_jax.data.tokenize import TokenizedDocuments, hard_labels
from w2s_jax.files import read_json, sha256, write_json
from w2s_jax.inference import Predictor, fits_on_one_device, probabilities, soft_labels
from w2s_jax.logs import PhaseLog
from w2s_jax.models import heads, network
from w2s_jax.plan import Phase
from w2s_jax.resolve import Resolved
from w2s_jax.training import loop
from w2s_jax.training.batches import ResidentBatches, StreamedBatches, put_batches
from w2s_jax.training.checkpoints import Checkpoints
from w2s_jax.training.optimizer import make_optimizer
from w2s_jax.training.state import init_state
from w2s_jax.training.step import StepSpec, train_step

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Context:
    """What every phase of a run shares."""

    resolved: Resolved
    store: Path
    mesh: Mesh
    console: Console
    should_stop: Callable[[], bool]
    wandb_run: Any = None

    @property
    def settings(self) -> Settings:
        """The run's settings."""
        return self.resolved.settings

    def folder(self, phase_name: str) -> PhaseFolder:
        """Where a phase lives."""
        return PhaseFolder(self.store / phase_name)

    def documents(self, split: str) -> TokenizedDocuments:
        """The documents of a split."""
        return self.resolved.splits[split]


def run_phase(phase: Phase, context: Context) -> None:
    """Runs a phase whose parents are complete, up to its result.json.

    Whatever an earlier attempt left is used if it is whole: the final parameters, else the newest
    checkpoint.
    """
    folder = context.folder(phase.name)
    write_json(
        folder.config,
        {"kind": phase.kind, "spec": phase.spec, "execution": _execution(phase, context)},
    )
    params, trained = _trained(phase, context, folder)
    result: dict[str, Any] = {
        "kind": phase.kind,
        "model": phase.model.name,
        "parameters": phase.model.num_parameters(),
        **trained,
        "execution": _execution(phase, context),
    }
    if phase.loss is not None:
        result |= _predict(phase, context, folder, params)
    files = [folder.predictions] if phase.loss is not None else []
    result["sha256"] = {path.name: sha256(path) for path in files}
    # The final parameters are stored by now, so these have had their day.
    shutil.rmtree(folder.steps, ignore_errors=True)
    write_json(folder.result, result)
    if phase.kind != "pretrain" and not context.settings.checkpoint.keep_final:
        shutil.rmtree(folder.final.parent, ignore_errors=True)


def _execution(phase: Phase, context: Context) -> dict[str, Any]:
    """How the phase is computed: recorded, and no part of the fingerprint."""
    return {
        "backend": jax.default_backend(),
        "device_kind": context.mesh.devices.flat[0].device_kind,
        "mesh": dict(context.mesh.shape),
        "microbatch_size": phase.train.microbatch_size or phase.train.batch_size,
        "remat": phase.train.remat,
        "versions": {name: metadata.version(name) for name in ("w2s_jax", "jax", "flax", "optax")},
    }


def _trained(phase: Phase, context: Context, folder: PhaseFolder) -> tuple[Any, dict[str, Any]]:
    """The phase's final parameters and the record of their training; trains if need be."""
    initial = _initial_params(phase, context)
    if folder.trained.exists():
        problem = storage.damage(folder.final)
        if problem is None:
            params = storage.load_tree(folder.final, storage.abstract(initial))
            return params, read_json(folder.trained)
        log.warning("%s is damaged (%s); training again", folder.final, problem)
        folder.trained.unlink()
    params, trained = _train(phase, context, folder, initial)
    with storage.storage_errors(f"{phase.title}: saving the final parameters", folder.path):
        storage.save_tree(folder.final, params)
        write_json(folder.trained, trained)
    return params, trained


def _initial_params(phase: Phase, context: Context) -> Any:
    """Pretrained parameters if the phase has a parent for them, else fresh ones; and a new head."""
    mesh = context.mesh
    if "init" in phase.parents:
        target = {"backbone": network.abstract_params(phase.model, mesh)}
        parent = context.folder(phase.parents["init"])
        backbone = storage.load_tree(parent.final, target)["backbone"]
    else:
        backbone = network.init_params(phase.model, phase.seed, mesh)
    if phase.loss is None:
        return {"backbone": backbone}
    head = heads.init_class_head(
        phase.spec["head_init"],
        phase.model,
        backbone,
        tuple(phase.spec["label_tokens"]),
        mesh,
        phase.spec.get("texts", 1),
    )
    return {"backbone": backbone, "head": head}


def _train(
    phase: Phase, context: Context, folder: PhaseFolder, params: Any
) -> tuple[Any, dict[str, Any]]:
    settings, train, mesh = context.settings, phase.train, context.mesh
    batches, real_token_share = _batches(phase, context)
    num_texts = phase.spec.get("texts", 1)
    loss = None if phase.loss is None else (phase.loss.kind, phase.loss.options)
    spec = StepSpec(phase.model, train, phase.total_steps, loss, num_texts)
    state = init_state(params, make_optimizer(train, phase.total_steps), phase.total_steps, mesh)
    schedule = loop.Schedule(
        total_steps=phase.total_steps,
        batch_size=train.batch_size,
        log_every=settings.log.every,
        eval_every=phase.eval_every,
        select=phase.select,
        checkpoint_seconds=60 * settings.checkpoint.every_minutes,
    )
    saved = Checkpoints(folder.steps, settings.checkpoint.keep)
    reporter = PhaseLog(
        folder.path,
        phase.title,
        phase.total_steps,
        settings.log,
        context.console,
        context.wandb_run,
    )
    try:
        with reporter:
            state, best, clock = loop.train(
                train_step(spec, mesh),
                state,
                batches,
                schedule,
                reporter,
                checkpoints=saved,
                evaluate=_evaluator(phase, context),
                should_stop=context.should_stop,
            )
    except (errors.TrainingFailed, errors.Interrupted) as error:
        raise type(error)(f"{phase.title}: {error}") from None
    finally:
        saved.close()
        batches.close()
    history = jax.device_get(state.history)
    tail = history[-max(1, len(history) // 10) :, 0]
    trained = {
        "steps": phase.total_steps,
        "kept_step": clock.best_step if phase.select else phase.total_steps,
        "train_loss": float(np.mean(tail)),
        "real_token_share": real_token_share(),
        "seconds": clock.seconds,
    }
    return best, trained


def _batches(
    phase: Phase, context: Context
) -> tuple[ResidentBatches | StreamedBatches, Callable[[], float]]:
    """The phase's batches, and what tells the share of their slots that hold a token."""
    train, mesh, resolved = phase.train, context.mesh, context.resolved
    num_microbatches = train.batch_size // (train.microbatch_size or train.batch_size)
    split = phase.inputs["train"]
    if split in resolved.streams:
        assert isinstance(train, PretrainSettings) and resolved.tokenizer is not None
        stream = stream_batches(
            resolved.streams[split],
            resolved.tokenizer,
            batch_size=train.batch_size,
            row_length=train.chunk_length,
            seed=phase.seed,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
        streamed = StreamedBatches(stream, num_microbatches, phase.total_steps, mesh)
        return streamed, lambda: streamed.real_token_share
    documents = context.documents(split)
    order_SB = packing.training_order(
        documents.ids_N,
        batch_size=train.batch_size,
        num_steps=phase.total_steps,
        seed=phase.seed,
    )
    packed = packing.pack(
        documents,
        order_SB,
        num_microbatches=num_microbatches,
        row_multiple=sharding.row_shards(mesh),
        max_shapes=train.max_shapes,
        attention_length=12 * phase.model.d_model,
    )
    targets_NC = None if phase.loss is None else _targets(phase, context, "train")
    return put_batches(packed, targets_NC, mesh), lambda: packed.real_token_share


def _targets(phase: Phase, context: Context, role: str) -> np.ndarray:
    """Soft labels of a split, float32 [N, 2]: weak ones for a student, else ground truth."""
    split = phase.inputs[role]
    documents = context.documents(split)
    if "labels" in phase.parents:
        weak = context.folder(phase.parents["labels"])
        return artifacts.load_labels(weak, split, documents.ids_N)
    return soft_labels(documents.targets_N)


def _evaluator(phase: Phase, context: Context) -> loop.Evaluate | None:
    """Agreement with the labels that the phase learns from, on validation documents.

    The score to maximise is that agreement, then a lower cross-entropy to the soft labels.
    """
    if phase.eval_every is None or phase.loss is None or "validation" not in phase.inputs:
        return None
    documents = context.documents(phase.inputs["validation"])
    targets_NC = _targets(phase, context, "validation").astype(np.float64)
    predictor: list[Predictor] = []

    def evaluate(params: Any) -> dict[str, Any]:
        if not predictor:
            predictor.append(_predictor(phase, context, documents, params))
        p_NC = probabilities(_finite(phase, predictor[0](params))).astype(np.float64)
        agreement = float(np.mean((p_NC[:, 1] > 0.5) == (targets_NC[:, 1] > 0.5)))
        log_p_NC = np.log(np.maximum(p_NC, 1e-30))
        cross_entropy = float(-np.mean(np.sum(targets_NC * log_p_NC, axis=1)))
        row = {"agreement": agreement, "cross_entropy": cross_entropy}
        truth_N = hard_labels(documents.labels_N)
        if not np.isnan(truth_N).any():
            row["accuracy"] = float(np.mean((p_NC[:, 1] > 0.5) == (truth_N > 0.5)))
        return {**row, "score": [agreement, -cross_entropy]}

    return evaluate


def _predictor(
    phase: Phase, context: Context, documents: TokenizedDocuments, params: Any
) -> Predictor:
    return Predictor(
        phase.model,
        documents,
        context.mesh,
        compute_dtype=phase.train.compute_dtype,
        per_device=fits_on_one_device(params),
    )


def _finite(phase: Phase, logits_NC: np.ndarray) -> np.ndarray:
    """The logits, if all are finite: no NaN reaches labels, metrics or predictions."""
    bad = int((~np.isfinite(logits_NC)).any(axis=1).sum())
    if bad:
        raise errors.TrainingFailed(
            f"{phase.title}: the model's logits of {bad} of {len(logits_NC)} documents are not "
            "finite"
        )
    return logits_NC


def _predict(phase: Phase, context: Context, folder: PhaseFolder, params: Any) -> dict[str, Any]:
    """Predicts validation and test, stores predictions and (weak phases) labels; the metrics."""
    splits = [s for s in ("validation", "test") if s in phase.inputs]
    wanted = dict.fromkeys((*splits, *phase.label_splits))
    p = {
        split: probabilities(
            _finite(phase, _predictor(phase, context, context.documents(split), params)(params))
        )
        for split in wanted
    }
    columns: dict[str, list[Any]] = {
        name: [] for name in ("id", "split", "p", "label", "ground_truth")
    }
    result: dict[str, Any] = {"metrics": {}}
    for split in splits:
        documents = context.documents(split)
        columns["id"].append(documents.ids_N)
        columns["split"] += [split] * len(documents)
        columns["p"].append(p[split][:, 1])
        columns["label"].append(_targets(phase, context, split)[:, 1])
        truth_N = hard_labels(documents.labels_N)
        columns["ground_truth"].append(truth_N)
        result["metrics"][split] = metrics.classification_metrics(p[split][:, 1], truth_N)
    merged = {k: v if k == "split" else np.concatenate(v) for k, v in columns.items()}
    artifacts.write_predictions(folder.predictions, merged)
    if phase.label_splits:
        labels = {s: (context.documents(s).ids_N, p[s]) for s in phase.label_splits}
        artifacts.save_labels(folder, labels)
        sizes = {split: len(ids_N) for split, (ids_N, _) in labels.items()}
        result["labels"] = {"kind": "class", "splits": sizes}
    return result
