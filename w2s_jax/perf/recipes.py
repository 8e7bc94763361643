"""The workload of a recipe: its strong model, trained as its ceiling."""

import dataclasses
import functools
import tempfile
from pathlib import Path
from typing import Any

from ml_collections import config_dict

from w2s_jax.config.validation import validate
from w2s_jax.core import errors
from w2s_jax.models import adapting, lora, network
from w2s_jax.models.image_models import ImageConfig
from w2s_jax.perf.workloads import Workload
from w2s_jax.phases import parameters
from w2s_jax.planning.phase import Phase
from w2s_jax.planning.plan import plan
from w2s_jax.planning.resolve import Resolved, resolve


def recipe_workload(config: config_dict.ConfigDict) -> Workload:
    """Return one epoch of training of the recipe's ceiling.

    Pretrained parameters are loaded; those that the run would compute itself are random.

    Raises:
      InputError: the config or its data are invalid, or the strong model is only probed.
    """
    resolved = resolve(validate(config))
    phases = plan(resolved)
    if phases.ceiling is None:
        raise errors.InputError(
            f"protocol.halves: {resolved.settings.protocol.halves!r}, but task.unlabelled="
            f"{resolved.settings.task.unlabelled!r} leaves no ceiling to measure; set "
            "protocol.halves=separate"
        )
    phase = phases.phase(phases.ceiling)
    if isinstance(phase.model, ImageConfig):
        raise errors.InputError(
            f"strong.model: {phase.model.name} is a convolutional network, which is not measured; "
            "name a transformer"
        )
    if phase.model.is_features:
        raise errors.InputError(
            f"strong.model: {phase.model.name} has no network to measure, just heads on features"
        )
    if phase.train.adapt == "probe":
        raise errors.InputError(
            "strong.train.adapt: 'probe' cannot be measured; choose one that trains the model"
        )
    documents = resolved.roles["strong"].splits[phase.inputs["train"]]
    if len(documents) < phase.train.batch_size:
        raise errors.InputError(
            f"strong.train.batch_size: {phase.train.batch_size}; allowed: at most the "
            f"{len(documents)} documents of {phase.inputs['train']}"
        )
    assert phase.loss is not None
    return Workload(
        mix=f"{resolved.settings.task.name} {phase.inputs['train']}",
        model=phase.model,
        # Whose cost is nothing beside that of the model.
        train=dataclasses.replace(phase.train, head_bias=False),
        loss=(phase.loss.kind, phase.loss.options),
        documents=documents,
        params=functools.partial(_params, phase, resolved),
    )


def _params(phase: Phase, resolved: Resolved, mesh: Any) -> Any:
    """Return the ceiling's initial parameters; random if another phase would compute them."""
    source = resolved.roles["strong"].source
    if not phase.parents:
        with tempfile.TemporaryDirectory() as nowhere:
            return parameters.initial(phase, source, Path(nowhere), mesh).joined()
    from w2s_jax.perf.programs import random_head

    backbone = network.init_params(phase.model.without_adapters(), phase.seed, mesh)
    backbone = adapting.cast(backbone, phase.train.param_dtype or "float32")
    if phase.model.lora_rank:
        backbone = lora.add(phase.model, backbone, phase.seed, mesh)
    return {"backbone": backbone, "head": random_head(phase.model, phase.head_columns, mesh)}
