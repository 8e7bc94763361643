"""Makes the phases of each kind from a resolved config. Pure; imports no JAX."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from w2s_jax.config import LossSettings, PretrainSettings, Settings, TrainSettings
from w2s_jax.core import errors
from w2s_jax.data.packing import steps_per_epoch
from w2s_jax.models.config import ModelConfig
from w2s_jax.planning.phase import Phase
from w2s_jax.planning.resolve import Resolved

#: Raised when a fix changes the results of a kind of phase; part of its fingerprint.
SEMANTICS = {
    "pretrain": 1,
    "features": 1,
    "labels": 1,
    "probe": 1,
    "weak": 1,
    "student": 1,
    "ceiling": 1,
}

#: Ground truth is learnt by plain cross-entropy.
GROUND_TRUTH_LOSS = LossSettings("xent", "xent", ())

#: Train settings that change memory or speed but no result.
_EXECUTION_ONLY = ("microbatch_size", "remat", "max_shapes")
#: Later train settings: part of a fingerprint only where they are not these.
_LATE = {
    "adapt": "full",
    "param_dtype": "float32",
    "dropout": 0.0,
    "ema": 0.0,
    "label_smoothing": 0.0,
}


def ceiling_slice(settings: Settings) -> str:
    """The slice whose ground truth the ceiling learns."""
    return "slice2" if settings.protocol.halves == "shared" else "slice1"


def _steps(train: TrainSettings, num_documents: int) -> int:
    if train.steps is not None:
        return train.steps
    return max(1, int(train.epochs * steps_per_epoch(num_documents, train.batch_size)))


def _require_a_batch(field: str, train: TrainSettings, count: int, split: str) -> None:
    if count < train.batch_size:
        raise errors.InputError(
            f"{field}.batch_size: {train.batch_size} is more than the {count} documents of {split} "
            f"that it would be trained on; allowed: at most {count} (or raise task.train_docs)"
        )


def _train_spec(train: TrainSettings) -> dict[str, Any]:
    fields = {f.name for f in dataclasses.fields(TrainSettings)}
    # Whether text is streamed shows in the digest of the data.
    skipped = {"epochs", "steps", "streaming", "last_layers", *_EXECUTION_ONLY}
    skipped |= {name for name, value in _LATE.items() if getattr(train, name) == value}
    if train.adapt == "last_layers":
        skipped.remove("last_layers")
    if train.adapt == "probe":
        # Features and head are float32.
        skipped |= {"compute_dtype", "param_dtype"}
    return {name: getattr(train, name) for name in sorted(fields - skipped)}


def _model_spec(resolved: Resolved, role: str, model: ModelConfig, init: bool) -> dict[str, Any]:
    """A model, and its parameters if the phase is the first to take them from a `Source`."""
    source = resolved.roles[role].source
    if source is None:
        return {"model": model.to_dict()}
    # What a model is called depends on where it lies.
    spec: dict[str, Any] = {"model": model.to_dict() | {"name": ""}}
    return spec if init else spec | {"weights": source.digest}


def pretrain_phase(resolved: Resolved, role: str) -> Phase | None:
    settings = resolved.settings.roles[role]
    data = resolved.roles[role]
    if "pretrain" not in data.digests:
        return None
    # Next tokens are read out nowhere.
    train, model = settings.pretrain, dataclasses.replace(data.model, read_out="last")
    streamed = "pretrain" in data.streams
    total_steps = _steps(train, 0 if streamed else len(data.splits["pretrain"]))
    spec = {
        "semantics": SEMANTICS["pretrain"],
        "kind": "pretrain",
        **_model_spec(resolved, role, model, init=False),
        "train": _train_spec(train),
        "steps": total_steps,
        "seed": train.seed,
        "data": data.digests["pretrain"],
    }
    if streamed:
        spec["row_length"] = train.chunk_length
    return _language_model(role, model.name, "pretrain", spec, model, train, total_steps, {})


def generative_phase(
    resolved: Resolved, role: str, split: str, epochs: float, parents: Mapping[str, str]
) -> Phase:
    """Next-token training on the unlabelled texts of a split, whose labels nobody looks at."""
    settings, data = resolved.settings, resolved.roles[role]
    pretrain = settings.roles[role].pretrain
    train = dataclasses.replace(
        pretrain, source=None, streaming=False, epochs=epochs, steps=None, seed=settings.seed
    )
    model = dataclasses.replace(data.model, read_out="last")
    _require_a_batch(f"{role}.pretrain", train, len(data.splits[split]), split)
    total_steps = _steps(train, len(data.splits[split]))
    spec = {
        "semantics": SEMANTICS["pretrain"],
        "kind": "pretrain",
        **_model_spec(resolved, role, model, init="init" in parents),
        "train": _train_spec(train),
        "steps": total_steps,
        "seed": train.seed,
        "split": split,
        "data": data.digests[split],
        "parents": dict(parents),
    }
    label = f"{model.name} on {split}"
    return _language_model(role, label, split, spec, model, train, total_steps, parents)


def _language_model(
    role: str,
    label: str,
    split: str,
    spec: Mapping[str, Any],
    model: ModelConfig,
    train: PretrainSettings,
    total_steps: int,
    parents: Mapping[str, str],
) -> Phase:
    return Phase(
        kind="pretrain",
        role=role,
        label=label,
        spec=spec,
        model=model,
        train=train,
        total_steps=total_steps,
        seed=train.seed,
        loss=None,
        inputs={"train": split},
        parents=parents,
        label_splits=(),
        select="",
        eval_every=None,
    )


def features_phase(resolved: Resolved, role: str, parents: Mapping[str, str]) -> Phase:
    """What heads see of every document that a role's frozen model meets, and a head to start from.

    `seed` makes the parameters where nothing else does.
    """
    settings, data = resolved.settings, resolved.roles[role]
    splits = sorted(name for name in data.splits if name.startswith("slice"))
    if role == "strong" and ceiling_slice(settings) == "slice2":
        splits.remove("slice1")
    splits += sorted({"test", "validation"} & set(data.splits))
    train = settings.roles[role].train
    spec = {
        "semantics": SEMANTICS["features"],
        "kind": "features",
        **_model_spec(resolved, role, data.model, init="init" in parents),
        "compute_dtype": train.compute_dtype,
        "param_dtype": train.param_dtype,
        "label_tokens": list(data.label_tokens),
        "data": {name: data.digests[name] for name in sorted(splits)},
        "parents": dict(parents),
        "texts": data.splits["test"].num_texts,
    }
    if not parents and data.source is None:
        spec["seed"] = settings.seed
    return Phase(
        kind="features",
        role=role,
        label=data.model.name,
        spec=spec,
        model=data.model,
        train=dataclasses.replace(train, adapt="full"),
        total_steps=0,
        seed=settings.seed,
        loss=None,
        inputs={},
        parents=parents,
        label_splits=tuple(splits),
        select="",
        eval_every=None,
        num_texts=data.splits["test"].num_texts,
        label_tokens=data.label_tokens,
    )


def labels_phase(
    resolved: Resolved,
    kind: str,
    role: str,
    splits: tuple[str, ...],
    parents: Mapping[str, str],
    options: Mapping[str, Any],
    label: str,
) -> Phase:
    """Labels that no training of a model yields; `seed` decides what is drawn."""
    settings, data = resolved.settings, resolved.roles[role]
    model = data.model
    spec = {
        "semantics": SEMANTICS["labels"],
        "kind": "labels",
        "method": kind,
        "options": {k: list(v) if isinstance(v, tuple) else v for k, v in options.items()},
        **_model_spec(resolved, role, model, init="init" in parents),
        "seed": settings.seed,
        "label_tokens": list(data.label_tokens),
        "data": {name: data.digests[name] for name in sorted({*splits, "slice1", "slice2"})},
        "parents": dict(parents),
    }
    if kind == "outside":
        spec["file"] = resolved.digests["labels"]
    train = settings.roles[role].train
    spec["dtypes"] = [train.compute_dtype, train.param_dtype]
    evaluated = [name for name in ("validation", "test") if name in splits]
    return Phase(
        kind="labels",
        role=role,
        label=label,
        spec=spec,
        model=model,
        train=dataclasses.replace(train, adapt="full"),
        total_steps=0,
        seed=settings.seed,
        loss=None,
        inputs={name: name for name in evaluated},
        parents=parents,
        label_splits=splits,
        select="",
        eval_every=None,
        method=(kind, tuple(sorted(options.items()))),
        label_tokens=data.label_tokens,
    )


def finetune_phase(
    resolved: Resolved,
    kind: str,
    role: str,
    train_split: str,
    parents: Mapping[str, str],
    *,
    loss: LossSettings | None = None,
    label_splits: tuple[str, ...] = (),
    probe: bool = False,
    purpose: str = "",
    label: str = "",
    subset: int | None = None,
    seed: int | None = None,
    select: str | None = None,
    suffixed: bool = False,
    train: TrainSettings | None = None,
) -> Phase:
    """A phase that finetunes a role's model on one split (by ground truth unless it has a loss).

    With `probe` it trains a head on features; `purpose` is the kind of the phase that follows, if
    one does. `seed`, `select` and `train` None: by the settings (only students select).
    """
    settings, data = resolved.settings, resolved.roles[role]
    own = settings.roles[role]
    train, model = train or (own.probe if probe else own.train), data.model
    if train.adapt == "probe_then_full":
        train = dataclasses.replace(train, adapt="full")
    if train.adapt == "lora":
        model = model.with_adapters(own.lora.rank, own.lora.alpha, own.lora.targets)
    count = subset or len(data.splits[train_split])
    _require_a_batch(f"{role}.{'probe' if probe else 'train'}", train, count, train_split)
    total_steps = _steps(train, count)
    used_loss = loss or GROUND_TRUTH_LOSS
    learner = purpose or kind
    if select is None:
        select = settings.protocol.early_stopping if learner == "student" else "none"
    select = "" if select == "none" else select
    seed = settings.seed if seed is None else seed
    eval_every = settings.eval_every
    if select and eval_every is None:
        eval_every = max(1, total_steps // 10)
    inputs = {"train": train_split, "test": "test"}
    if "validation" in data.splits:
        inputs["validation"] = "validation"
    digested = {*inputs.values(), *label_splits}
    begun = not {"init", "features"}.isdisjoint(parents)
    spec = {
        "semantics": SEMANTICS[kind],
        "kind": kind,
        **_model_spec(resolved, role, model, init=begun),
        "train": _train_spec(train),
        "steps": total_steps,
        "seed": seed,
        "loss": {"kind": used_loss.kind, "options": dict(used_loss.options)},
        "head_init": data.head_init,
        "label_tokens": list(data.label_tokens),
        "early_stopping": {"by": select, "every": eval_every} if select else None,
        "inputs": dict(sorted(inputs.items())),
        "data": {name: data.digests[name] for name in sorted(digested)},
        "parents": dict(parents),
    }
    if data.splits[train_split].num_texts > 1:
        spec["texts"] = data.splits[train_split].num_texts
    if subset is not None:
        spec["subset"] = True
    if suffixed:
        spec["suffixed"] = True
    label = label or (used_loss.label if learner == "student" else "")
    return Phase(
        kind=kind,
        role=role,
        label=f"{purpose} {label}".strip(),
        spec=spec,
        model=model,
        train=train,
        total_steps=total_steps,
        seed=seed,
        loss=used_loss,
        inputs=inputs,
        parents=parents,
        label_splits=label_splits,
        select=select,
        eval_every=eval_every,
        subset=subset,
        suffixed=suffixed,
        num_texts=data.splits[train_split].num_texts,
        head_init=data.head_init,
        label_tokens=data.label_tokens,
    )
