"""What a phase takes of the devices' memory, by formula. Imports no JAX."""

from w2s_jax.config import PretrainSettings
from w2s_jax.models import budget
from w2s_jax.planning.phase import Phase
from w2s_jax.planning.resolve import Resolved

_WIDTHS = {"float32": 4, "bfloat16": 2}


def memory_estimate(phase: Phase, resolved: Resolved) -> dict[str, int]:
    """Bytes on the devices, by formula, were the whole phase on one device.

    Those of `budget.training_memory` for a full microbatch of documents of mean length, the batches
    that lie on the devices, and their 'total'. A probe has features instead of a model; computing
    features, or labels without training, takes the model alone.
    """
    train, model = phase.train, phase.model
    data = resolved.roles[phase.role]
    if phase.kind in ("features", "labels"):
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
        average=train.ema > 0,
    )
    memory["batches"] = int(resident * batch * mean_length * 4)
    memory.pop("total")
    return memory | {"total": sum(memory.values())}
