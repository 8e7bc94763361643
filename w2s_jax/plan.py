"""plan(resolved): from a resolved config to phases, a DAG. Pure; imports no JAX.

A phase's fingerprint hashes everything that can change its result (data, model, loss, optimiser,
protocol switches, seeds, the semantics version of its kind, the fingerprints of the phases it
builds on) and nothing that can't (mesh, microbatch, rematerialisation, logging, paths).
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from w2s_jax.config import LossSettings, PretrainSettings, Role, Settings, TrainSettings
from w2s_jax.data.packing import steps_per_epoch
from w2s_jax.models import budget
from w2s_jax.models.config import ModelConfig
from w2s_jax.resolve import Resolved

#: Raised when a fix changes the results of a kind of phase; part of its fingerprint.
SEMANTICS = {"pretrain": 1, "features": 1, "probe": 1, "weak": 1, "student": 1, "ceiling": 1}

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

_WIDTHS = {"float32": 4, "bfloat16": 2}


@dataclass(frozen=True)
class Phase:
    """One unit of work: a model trained on one set of documents, and what it then predicts.

    Attributes:
      kind: 'pretrain', 'weak', 'student' or 'ceiling'; 'features' computes what the heads of a
        frozen model see; 'probe' trains a head alone before one of the others trains everything.
      role: 'weak' or 'strong': whose model and documents. Not part of the fingerprint, like label.
      label: loss label of a student, model of a pretraining, what a probe is for; else ''.
      spec: everything that can change the result, JSON-ready.
      model, train, total_steps, seed, loss, select: the same, typed. The model has adapters if
        some are trained.
      inputs: 'train', 'validation', 'test' -> name of a split.
      parents: 'init' (pretrained parameters), 'features', 'head' (probed), 'labels' (weak labels)
        -> phase name.
      label_splits: the splits whose class probabilities the phase stores as weak labels; of
        'features' those whose features it stores.
      select: students keep the step with the best weak-label agreement, evaluated `eval_every`.
      eval_every: steps between evaluations, or None.
    """

    kind: str
    role: str
    label: str
    spec: Mapping[str, Any]
    model: ModelConfig
    train: TrainSettings
    total_steps: int
    seed: int
    loss: LossSettings | None
    inputs: Mapping[str, str]
    parents: Mapping[str, str]
    label_splits: tuple[str, ...]
    select: bool
    eval_every: int | None

    @property
    def fingerprint(self) -> str:
        """16 hex digits of the sha256 of the canonical JSON of `spec`."""
        text = json.dumps(self.spec, sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def name(self) -> str:
        """The phase's folder: <kind>-<fingerprint>."""
        return f"{self.kind}-{self.fingerprint}"

    @property
    def title(self) -> str:
        """For people: 'student xent', 'pretrain gpt-d8', 'ceiling'."""
        return f"{self.kind} {self.label}".strip()


@dataclass(frozen=True)
class Plan:
    """Phases in an order in which each comes after its parents, without duplicates, and the roles.

    `weak` and `ceiling` are phase names; `students` maps loss labels to them.
    """

    phases: tuple[Phase, ...]
    weak: str
    ceiling: str
    students: Mapping[str, str]

    def phase(self, name: str) -> Phase:
        """The phase of that name."""
        return next(p for p in self.phases if p.name == name)


def plan(resolved: Resolved) -> Plan:
    """The phases of one run: pretraining, features, weak model, ceiling, one student a loss."""
    settings = resolved.settings
    phases: dict[str, Phase] = {}

    def add(phase: Phase) -> str:
        return phases.setdefault(phase.name, phase).name

    def trained(kind: str, role: str, split: str, **more: Any) -> str:
        """The phase that trains a role's model, behind those that it starts from."""
        parents = dict(inits[role]) | more.pop("parents", {})
        adapt = getattr(settings, role).train.adapt
        if adapt in ("probe", "probe_then_full"):
            probed = parents | {"features": features[role]}
            probed.pop("init", None)
            if adapt == "probe":
                return add(_finetune(resolved, kind, role, split, probed, probe=True, **more))
            first = _finetune(
                resolved,
                "probe",
                role,
                split,
                probed,
                loss=more.get("loss"),
                probe=True,
                purpose=kind,
            )
            parents["head"] = add(first)
        return add(_finetune(resolved, kind, role, split, parents, **more))

    inits, features = {}, {}
    for role in ("weak", "strong"):
        pretrain = _pretrain(resolved, role)
        inits[role] = {"init": add(pretrain)} if pretrain else {}
        if getattr(settings, role).train.adapt.startswith("probe"):
            features[role] = add(_features(resolved, role, inits[role]))
    evaluated = sorted({"test", "validation"} & set(resolved.roles["weak"].splits))
    weak = trained("weak", "weak", "slice1", label_splits=("slice2", *evaluated))
    ceiling = trained("ceiling", "strong", _ceiling_slice(settings))
    students = {
        loss.label: trained("student", "strong", "slice2", loss=loss, parents={"labels": weak})
        for loss in settings.losses
    }
    return Plan(tuple(phases.values()), weak, ceiling, students)


def _ceiling_slice(settings: Settings) -> str:
    return "slice2" if settings.protocol.halves == "shared" else "slice1"


def _steps(train: TrainSettings, num_documents: int) -> int:
    if train.steps is not None:
        return train.steps
    return max(1, int(train.epochs * steps_per_epoch(num_documents, train.batch_size)))


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


def _pretrain(resolved: Resolved, role: str) -> Phase | None:
    settings: Role = getattr(resolved.settings, role)
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
    return Phase(
        kind="pretrain",
        role=role,
        label=model.name,
        spec=spec,
        model=model,
        train=train,
        total_steps=total_steps,
        seed=train.seed,
        loss=None,
        inputs={"train": "pretrain"},
        parents={},
        label_splits=(),
        select=False,
        eval_every=None,
    )


def _features(resolved: Resolved, role: str, parents: Mapping[str, str]) -> Phase:
    """What heads see of every document that a role's frozen model meets, and a head to start from.

    `seed` makes the parameters where nothing else does.
    """
    settings, data = resolved.settings, resolved.roles[role]
    splits = ["slice1", "slice2"]
    if role == "strong" and _ceiling_slice(settings) == "slice2":
        splits = ["slice2"]
    splits += sorted({"test", "validation"} & set(data.splits))
    train: TrainSettings = getattr(settings, role).train
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
        select=False,
        eval_every=None,
    )


def _finetune(
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
) -> Phase:
    """A phase that finetunes a role's model on one split (by ground truth unless it has a loss).

    With `probe` it trains a head on features; `purpose` is the kind of the phase that follows, if
    one does.
    """
    settings, data = resolved.settings, resolved.roles[role]
    own: Role = getattr(settings, role)
    train, model = own.probe if probe else own.train, data.model
    if train.adapt == "probe_then_full":
        train = dataclasses.replace(train, adapt="full")
    if train.adapt == "lora":
        model = model.with_adapters(own.lora.rank, own.lora.alpha, own.lora.targets)
    total_steps = _steps(train, len(data.splits[train_split]))
    used_loss = loss or GROUND_TRUTH_LOSS
    learner = purpose or kind
    select = learner == "student" and settings.protocol.early_stopping == "agreement"
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
        "seed": settings.seed,
        "loss": {"kind": used_loss.kind, "options": dict(used_loss.options)},
        "head_init": data.head_init,
        "label_tokens": list(data.label_tokens),
        "early_stopping": {"by": "agreement", "every": eval_every} if select else None,
        "inputs": dict(sorted(inputs.items())),
        "data": {name: data.digests[name] for name in sorted(digested)},
        "parents": dict(parents),
    }
    if data.splits[train_split].num_texts > 1:
        spec["texts"] = data.splits[train_split].num_texts
    label = used_loss.label if learner == "student" else ""
    return Phase(
        kind=kind,
        role=role,
        label=f"{purpose} {label}".strip(),
        spec=spec,
        model=model,
        train=train,
        total_steps=total_steps,
        seed=settings.seed,
        loss=used_loss,
        inputs=inputs,
        parents=parents,
        label_splits=label_splits,
        select=select,
        eval_every=eval_every,
    )


def memory_estimate(phase: Phase, resolved: Resolved) -> dict[str, int]:
    """Bytes on the devices, by formula, were the whole phase on one device.

    Those of `budget.training_memory` for a full microbatch of documents of mean length, the batches
    that lie on the devices, and their 'total'. A probe has features instead of a model; computing
    features takes the model alone.
    """
    train, model = phase.train, phase.model
    data = resolved.roles[phase.role]
    if phase.kind == "features":
        memory = {"parameters": _WIDTHS[train.param_dtype or "float32"] * model.num_parameters()}
        return memory | {"total": sum(memory.values())}
    split = phase.inputs["train"]
    batch = train.batch_size
    if train.adapt == "probe":
        documents = data.splits[split]
        features = 4 * len(documents) * documents.num_texts * model.d_model
        memory = {"features": features, "batches": 16 * batch * phase.total_steps}
        return memory | {"total": sum(memory.values())}
    if split in data.streams:
        assert isinstance(train, PretrainSettings)
        mean_length, longest = float(train.chunk_length), train.chunk_length
        resident = 2  # the batch in use and the next one
    else:
        documents = data.splits[split]
        mean_length, longest = float(documents.lengths_N.mean()), documents.longest
        resident = phase.total_steps
    memory = budget.training_memory(
        model,
        adapt=train.adapt,
        trainable=budget.trainable_parameters(
            model,
            train.adapt,
            lora_rank=model.lora_rank,
            lora_targets=model.lora_targets,
            last_layers=train.last_layers,
            logits=phase.loss is None,
        ),
        param_dtype=train.param_dtype or "float32",
        compute_dtype=train.compute_dtype,
        optimizer=train.optimizer,
        tokens=(train.microbatch_size or batch) * mean_length,
        longest=longest,
        remat=train.remat,
        logits=phase.loss is None,
        last_layers=train.last_layers,
    )
    memory["batches"] = int(resident * batch * mean_length * 4)
    memory.pop("total")
    return memory | {"total": sum(memory.values())}
