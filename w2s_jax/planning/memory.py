"""Estimated memory of a phase on the devices. Imports no JAX."""

from w2s_jax.config import PretrainSettings
from w2s_jax.models import budget
from w2s_jax.planning.kinds import PHASE_KINDS
from w2s_jax.planning.phase import Phase
from w2s_jax.planning.resolve import Resolved

_WIDTHS = {"float32": 4, "bfloat16": 2}


def memory_estimate(phase: Phase, resolved: Resolved) -> dict[str, int]:
    """Return the bytes of a phase on one device by what they hold, and their 'total'."""
    return PHASE_KINDS[phase.kind].memory(phase, resolved)


def forward_memory(phase: Phase, resolved: Resolved) -> dict[str, int]:
    """Return the memory of a phase that trains nothing: its model's 'parameters'.

    Of a model that is features, these, which are held by the host.
    """
    if phase.model.is_features:
        sizes = {name: len(docs) for name, docs in resolved.roles[phase.role].splits.items()}
        count = sum(sizes[name] for name in phase.label_splits)
        return with_total({"features": 4 * count * phase.num_texts * phase.model.d_model})
    width = _WIDTHS[phase.train.param_dtype or "float32"]
    return with_total({"parameters": width * phase.model.num_parameters()})


def probe_memory(phase: Phase, resolved: Resolved) -> dict[str, int]:
    """Return the memory of a phase that trains a head: 'features' of all documents, 'batches'."""
    documents = resolved.roles[phase.role].splits[phase.inputs["train"]]
    features = 4 * len(documents) * documents.num_texts * phase.model.d_model
    count = phase.train.batch_size * phase.total_steps
    labelled = len(documents) if phase.looks_up_targets else count
    batches = 8 * count + 4 * phase.num_classes * labelled
    return with_total({"features": features, "batches": batches})


def training_memory(phase: Phase, resolved: Resolved) -> dict[str, int]:
    """Return the memory of a phase that trains a model.

    It has the entries of `budget.training_memory`, for a full microbatch of documents of mean
    length, and the 'batches' that are on the devices.
    """
    train, model = phase.train, phase.model
    data = resolved.roles[phase.role]
    split, batch = phase.inputs["train"], train.batch_size
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
            logits=not phase.classifies,
        ),
        param_dtype=train.param_dtype or "float32",
        compute_dtype=train.compute_dtype,
        optimizer=train.optimizer,
        tokens=(train.microbatch_size or batch) * mean_length,
        longest=longest,
        remat=train.remat,
        logits=not phase.classifies,
        last_layers=train.last_layers,
        average=train.ema > 0,
    )
    del memory["total"]
    return with_total(memory | {"batches": int(resident * batch * mean_length * 4)})


def with_total(memory: dict[str, int]) -> dict[str, int]:
    """Return the same bytes and their 'total'."""
    return memory | {"total": sum(memory.values())}
