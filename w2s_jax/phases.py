"""How one phase is run: train, keep the parameters, predict, label, and record the result."""

import functools
import logging
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from rich.console import Console

from w2s_jax import artifacts, compilation, errors, metrics, parameters, sharding, storage
from w2s_jax.artifacts import PhaseFolder
from w2s_jax.config import PretrainSettings, Settings
from w2s_jax.data import packing
from w2s_jax.data.stream import stream_batches
from w2s_jax.data.tokenize import hard_labels
from w2s_jax.files import read_json, sha256, write_json
from w2s_jax.inference import (
    Predictor,
    fits_on_one_device,
    logits_of_features,
    probabilities,
    soft_labels,
)
from w2s_jax.logs import PhaseLog
from w2s_jax.models.attention import row_preferences
from w2s_jax.parameters import Parameters
from w2s_jax.perf import hlo
from w2s_jax.perf.profile import Profiler
from w2s_jax.plan import Phase
from w2s_jax.resolve import Resolved, RoleInput
from w2s_jax.training import loop
from w2s_jax.training.batches import (
    ResidentBatches,
    StreamedBatches,
    put_batches,
    put_feature_batches,
)
from w2s_jax.training.checkpoints import Checkpoints
from w2s_jax.training.dispatch import runner
from w2s_jax.training.optimizer import make_optimizer
from w2s_jax.training.spec import StepSpec
from w2s_jax.training.state import init_state
from w2s_jax.training.vocabulary import Vocabulary, embedding, occurring

log = logging.getLogger(__name__)

#: Kinds of phases whose parameters other phases start from: they are kept in any case.
STARTS = ("pretrain", "features", "probe")


@dataclass(frozen=True)
class Context:
    """What every phase of a run shares."""

    resolved: Resolved
    store: Path
    mesh: Mesh
    console: Console
    should_stop: Callable[[], bool]
    wandb_run: Any = None
    profile: tuple[int, int] | None = None
    dump_hlo: bool = False

    @property
    def settings(self) -> Settings:
        """The run's settings."""
        return self.resolved.settings

    def folder(self, phase_name: str) -> PhaseFolder:
        """Where a phase lives."""
        return PhaseFolder(self.store / phase_name)

    def data(self, phase: Phase) -> RoleInput:
        """The model and the documents of a phase's role."""
        return self.resolved.roles[phase.role]


def run_phase(phase: Phase, context: Context) -> None:
    """Runs a phase whose parents are complete, up to its result.json.

    Whatever an earlier attempt left is used if it is whole: the final parameters, else the newest
    checkpoint.
    """
    folder, source = context.folder(phase.name), context.data(phase).source
    write_json(
        folder.config,
        {
            "kind": phase.kind,
            "spec": phase.spec,
            **parameters.record(phase, source, context.store),
            "execution": _execution(phase, context),
        },
    )
    result: dict[str, Any] = {
        "kind": phase.kind,
        "model": phase.model.name,
        "parameters": phase.model.num_parameters(),
        "execution": _execution(phase, context),
    }
    if phase.kind == "features":
        result |= _compute_features(phase, context, folder)
    else:
        parameters.keep_tokenizer(context.data(phase).tokenizer, folder)
        params, trained = _trained(phase, context, folder)
        result |= trained
        if phase.loss is not None:
            result |= _predict(phase, context, folder, params)
    files = [folder.predictions] if phase.loss is not None else []
    result["sha256"] = {path.name: sha256(path) for path in files}
    # The final parameters are stored by now, so these have had their day.
    shutil.rmtree(folder.steps, ignore_errors=True)
    write_json(folder.result, result)
    if phase.kind not in STARTS and not context.settings.checkpoint.keep_final:
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


def _compute_features(phase: Phase, context: Context, folder: PhaseFolder) -> dict[str, Any]:
    """Stores what the heads of a frozen model see of its documents."""
    started, compiled = time.monotonic(), compilation.compile_clock().seconds
    data, mesh = context.data(phase), context.mesh
    backbone = parameters.backbone(phase, data.source, context.store, mesh)
    found = {}
    for split in phase.label_splits:
        predictor = Predictor(
            phase.model,
            data.splits[split],
            mesh,
            compute_dtype=phase.train.compute_dtype,
            per_device=fits_on_one_device(backbone),
            features=True,
        )
        features_NKD = predictor({"backbone": backbone})
        _check_finite(phase, features_NKD, "features")
        found[split] = (data.splits[split].ids_N, features_NKD)
    artifacts.save_features(folder, found, parameters.features_head(phase, backbone, mesh))
    sizes = {split: len(ids_N) for split, (ids_N, _) in found.items()}
    shape = next(iter(found.values()))[1].shape[1:]
    return {
        "features": {"splits": sizes, "shape": list(shape)},
        "seconds": time.monotonic() - started,
        "compile_seconds": compilation.compile_clock().seconds - compiled,
    }


def _trained(
    phase: Phase, context: Context, folder: PhaseFolder
) -> tuple[Parameters, dict[str, Any]]:
    """The phase's final parameters and the record of their training; trains if need be."""
    source = context.data(phase).source
    start = parameters.initial(phase, source, context.store, context.mesh)
    if folder.trained.exists():
        problem = storage.damage(folder.final)
        if problem is None:
            return parameters.load(phase, start, folder), read_json(folder.trained)
        log.warning("%s is damaged (%s); training again", folder.final, problem)
        folder.trained.unlink()
    params, trained = _train(phase, context, folder, start)
    with storage.storage_errors(f"{phase.title}: saving the final parameters", folder.path):
        parameters.save(phase, params, folder)
        write_json(folder.trained, trained)
    return params, trained


def _train(
    phase: Phase, context: Context, folder: PhaseFolder, start: Parameters
) -> tuple[Parameters, dict[str, Any]]:
    """Trains from `start`; the resulting parameters, and the record of how it went.

    In the record `seconds` is wall time, of all attempts together, and `compile_seconds` the part
    of it in which something was traced, compiled or fetched from the cache of programs.
    """
    settings, train, mesh = context.settings, phase.train, context.mesh
    vocabulary = _vocabulary(phase, context)
    batches, real_token_share = _batches(phase, context, vocabulary)
    num_texts = phase.spec.get("texts", 1)
    loss = None if phase.loss is None else (phase.loss.kind, phase.loss.options)
    model, params, whole = phase.model, start.trained, lambda trained: trained
    if vocabulary is not None:
        model, params = vocabulary.config(model), vocabulary.cut(params)
        whole = functools.partial(vocabulary.whole, rows_VD=embedding(start.trained))
    spec = StepSpec(model, train, phase.total_steps, loss, num_texts)
    state = init_state(params, make_optimizer(train), phase.total_steps, mesh)
    schedule = loop.Schedule(
        total_steps=phase.total_steps,
        batch_size=train.batch_size,
        eval_every=phase.eval_every,
        select=phase.select,
        checkpoint_seconds=60 * settings.checkpoint.every_minutes,
    )
    watch = functools.partial(hlo.dumping, folder=folder.path / "hlo") if context.dump_hlo else None
    profiler = _profiler(phase, context, folder)
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
                runner(spec, mesh, start.frozen | _features(phase, context), batches, watch),
                state,
                batches,
                schedule,
                [reporter],
                checkpoints=saved,
                evaluate=_evaluator(phase, context, start.frozen, whole),
                should_stop=context.should_stop,
                profiler=profiler,
            )
    except (errors.TrainingFailed, errors.Interrupted) as error:
        raise type(error)(f"{phase.title}: {error}") from None
    finally:
        saved.close()
        batches.close()
    history = jax.device_get(state.history)[: phase.total_steps]
    tail = history[-max(1, len(history) // 10) :, 0]
    trained = {
        "steps": phase.total_steps,
        "kept_step": clock.members[0].best_step if phase.select else phase.total_steps,
        "train_loss": float(np.mean(tail)),
        "real_token_share": real_token_share(),
        "seconds": clock.seconds,
        "compile_seconds": clock.compile_seconds,
    }
    return Parameters(whole(best), start.frozen), trained


def _vocabulary(phase: Phase, context: Context) -> Vocabulary | None:
    """The tokens that a classifier is trained on, where that saves something."""
    if phase.loss is None:
        return None
    documents = context.data(phase).splits[phase.inputs["train"]]
    return occurring(documents, phase.model, phase.train)


def _profiler(phase: Phase, context: Context, folder: PhaseFolder) -> Profiler | None:
    """What traces the steps that the user asked for, as far as the phase has them."""
    if context.profile is None:
        return None
    start, stop = context.profile
    if start >= phase.total_steps:
        context.console.print(
            f"{phase.title}: no profile from step {start} on, there are {phase.total_steps} steps",
            highlight=False,
            markup=False,
        )
        return None
    stop = min(stop, phase.total_steps)
    return Profiler(start, stop, folder.path / "profile", context.console)


def _features(phase: Phase, context: Context) -> dict[str, Any]:
    """What a probe is trained on, in place of a frozen model; {} of other phases."""
    if phase.train.adapt != "probe":
        return {}
    features_NKD = _split_features(phase, context, phase.inputs["train"])
    return {"features_NKD": jax.device_put(features_NKD, sharding.replicated(context.mesh))}


def _split_features(phase: Phase, context: Context, split: str) -> np.ndarray:
    folder = context.folder(phase.parents["features"])
    return artifacts.load_features(folder, split, context.data(phase).splits[split].ids_N)


def _batches(
    phase: Phase, context: Context, vocabulary: Vocabulary | None
) -> tuple[ResidentBatches | StreamedBatches, Callable[[], float]]:
    """The phase's batches, and what tells the share of their slots that are not empty."""
    train, mesh, data = phase.train, context.mesh, context.data(phase)
    num_microbatches = train.batch_size // (train.microbatch_size or train.batch_size)
    split = phase.inputs["train"]
    if split in data.streams:
        assert isinstance(train, PretrainSettings) and data.tokenizer is not None
        stream = stream_batches(
            data.streams[split],
            data.tokenizer,
            batch_size=train.batch_size,
            row_length=train.chunk_length,
            seed=phase.seed,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
        streamed = StreamedBatches(stream, num_microbatches, phase.total_steps, mesh)
        return streamed, lambda: streamed.real_token_share
    documents = data.splits[split]
    if vocabulary is not None:
        documents = vocabulary.documents(documents)
    order_SB = packing.training_order(
        documents.ids_N,
        batch_size=train.batch_size,
        num_steps=phase.total_steps,
        seed=phase.seed,
    )
    if train.adapt == "probe":
        return put_feature_batches(order_SB, _targets(phase, context, "train"), mesh), lambda: 1.0
    packed = packing.pack(
        documents,
        order_SB,
        num_microbatches=num_microbatches,
        row_multiple=sharding.row_shards(mesh),
        max_shapes=train.max_shapes,
        **row_preferences(phase.model),
    )
    targets_NC = None if phase.loss is None else _targets(phase, context, "train")
    return put_batches(packed, targets_NC, mesh), lambda: packed.real_token_share


def _targets(phase: Phase, context: Context, role: str) -> np.ndarray:
    """Soft labels of a split, float32 [N, 2]: weak ones for a student, else ground truth."""
    split = phase.inputs[role]
    documents = context.data(phase).splits[split]
    if "labels" in phase.parents:
        weak = context.folder(phase.parents["labels"])
        return artifacts.load_labels(weak, split, documents.ids_N)
    return soft_labels(documents.targets_N)


def _evaluator(
    phase: Phase, context: Context, frozen: Any, whole: Callable[[Any], Any]
) -> loop.Evaluate | None:
    """Agreement with the labels that the phase learns from, on validation documents.

    The score to maximise is that agreement, then a lower cross-entropy to the soft labels. `whole`
    gives all trained parameters, whatever part of them the state holds.
    """
    if phase.eval_every is None or phase.loss is None or "validation" not in phase.inputs:
        return None
    documents = context.data(phase).splits[phase.inputs["validation"]]
    targets_NC = _targets(phase, context, "validation").astype(np.float64)
    predictor: list[Callable[[Any], np.ndarray]] = []

    def evaluate(trained: Any) -> list[dict[str, Any]]:
        params = Parameters(whole(trained), frozen).joined()
        if not predictor:
            predictor.append(_predictor(phase, context, phase.inputs["validation"], params))
        p_NC = probabilities(predictor[0](params)).astype(np.float64)
        agreement = float(np.mean((p_NC[:, 1] > 0.5) == (targets_NC[:, 1] > 0.5)))
        log_p_NC = np.log(np.maximum(p_NC, 1e-30))
        cross_entropy = float(-np.mean(np.sum(targets_NC * log_p_NC, axis=1)))
        row = {"agreement": agreement, "cross_entropy": cross_entropy}
        truth_N = hard_labels(documents.labels_N)
        if not np.isnan(truth_N).any():
            row["accuracy"] = float(np.mean((p_NC[:, 1] > 0.5) == (truth_N > 0.5)))
        return [{**row, "score": [agreement, -cross_entropy]}]

    return evaluate


def _predictor(
    phase: Phase, context: Context, split: str, params: Any
) -> Callable[[Any], np.ndarray]:
    """What gives the class logits of a split, float32 [N, 2], under parameters like `params`."""
    if phase.train.adapt == "probe":
        run: Callable[[Any], np.ndarray] = functools.partial(
            logits_of_features, features_NKD=_split_features(phase, context, split)
        )
    else:
        run = Predictor(
            phase.model,
            context.data(phase).splits[split],
            context.mesh,
            compute_dtype=phase.train.compute_dtype,
            per_device=fits_on_one_device(params),
        )

    def predict(params: Any) -> np.ndarray:
        logits_NC = run(params)
        _check_finite(phase, logits_NC, "logits")
        return logits_NC

    return predict


def _check_finite(phase: Phase, values: np.ndarray, what: str) -> None:
    """No NaN reaches labels, metrics, features or predictions."""
    bad = int((~np.isfinite(values)).any(axis=tuple(range(1, values.ndim))).sum())
    if bad:
        raise errors.TrainingFailed(
            f"{phase.title}: the model's {what} of {bad} of {len(values)} documents are not finite"
        )


def _predict(
    phase: Phase, context: Context, folder: PhaseFolder, parts: Parameters
) -> dict[str, Any]:
    """Predicts validation and test, stores predictions and (weak phases) labels; the metrics."""
    documents_of = context.data(phase).splits
    splits = [s for s in ("validation", "test") if s in phase.inputs]
    params = parts.joined()
    p = {
        split: probabilities(_predictor(phase, context, split, params)(params))
        for split in dict.fromkeys((*splits, *phase.label_splits))
    }
    columns: dict[str, list[Any]] = {
        name: [] for name in ("id", "split", "p", "label", "ground_truth")
    }
    result: dict[str, Any] = {"metrics": {}}
    for split in splits:
        documents = documents_of[split]
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
        labels = {s: (documents_of[s].ids_N, p[s]) for s in phase.label_splits}
        artifacts.save_labels(folder, labels)
        sizes = {split: len(ids_N) for split, (ids_N, _) in labels.items()}
        result["labels"] = {"kind": "class", "splits": sizes}
    return result
