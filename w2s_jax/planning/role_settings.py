"""Settings of a role that depend on its model: checks and defaults. Imports no JAX."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from w2s_jax.config import Role, Settings
from w2s_jax.core import errors
from w2s_jax.models import image_models, ladders
from w2s_jax.models.config import ModelConfig, embedded_model
from w2s_jax.models.sources import ModelSource


def check_model(role: str, source: ModelSource | None, settings: Settings) -> None:
    """Check that a role's model can be trained as configured, before any document is read.

    Args:
      role: a key of `settings.roles`.
      source: the pretrained model; None for an embedded one.
      settings: the config.

    Raises:
      InputError: the model does not have the read-out, layers, adapters or pretraining asked for.
    """
    own = settings.roles[role]
    if own.model in image_models.IMAGE_MODELS:
        image_models.check_settings(role, own)
        return
    if source is None:
        model = embedded_model(own.model, vocab_size=2, max_positions=2)
    else:
        model = source.config
    if own.read_out == "pooler" and not model.pooler:
        raise errors.InputError(
            f"{role}.read_out: 'pooler', but {own.model} has no pooler; allowed: last, first, mean"
        )
    if own.read_out_layers and own.train.adapt != "probe":
        raise errors.InputError(
            f"{role}.read_out_layers: {own.read_out_layers}, but {role}.train.adapt="
            f"{own.train.adapt!r} trains a head on the last layer; allowed: (), or adapt 'probe'"
        )
    if own.read_out_layers and (own.read_out or model.read_out) == "pooler":
        raise errors.InputError(
            f"{role}.read_out_layers: {own.read_out_layers}, but the pooler of {own.model} reads "
            f"the last layer; allowed: (), or {role}.read_out last, first or mean"
        )
    if own.train.adapt == "last_layers" and own.train.last_layers > model.num_layers:
        raise errors.InputError(
            f"{role}.train.last_layers: {own.train.last_layers}; allowed: at most the "
            f"{model.num_layers} layers of {own.model}"
        )
    if own.train.adapt == "lora":
        try:
            adapted = model.with_adapters(own.lora.rank, own.lora.alpha, own.lora.targets)
        except errors.InputError as error:
            raise errors.InputError(f"{role}.{error}") from error
        sizes = model.projections()
        # A larger rank has more parameters than the matrices themselves, and adds nothing.
        widest = max(min(sizes[name]) for name in adapted.lora_targets)
        if own.lora.rank > widest:
            raise errors.InputError(
                f"{role}.lora.rank: {own.lora.rank}; allowed: at most {widest}, the full rank of "
                f"the adapted projections of {own.model}"
            )
    pretrain = own.pretrain
    if pretrain.source is None or source is None:
        return
    if model.bidirectional:
        raise errors.InputError(
            f"{role}.pretrain.source: {pretrain.source!r}, but {own.model} is an encoder, which "
            "does not predict next tokens; allowed: None"
        )
    if model.positions == "learned" and pretrain.chunk_length > model.max_positions:
        raise errors.InputError(
            f"{role}.pretrain.chunk_length: {pretrain.chunk_length}; allowed: at most the "
            f"{model.max_positions} positions of {own.model}"
        )


def with_read_out_layers(
    role: str, model: ModelConfig, depths: Sequence[float], notes: list[str]
) -> ModelConfig:
    """Return a model whose heads read the layers at relative depths, as `Role.read_out_layers`.

    Args:
      role: the role, for notes.
      model: its model.
      depths: in (0, 1]; () for the last layer.
      notes: gets a line if several depths are one layer, which then counts once.
    """
    count = model.num_layers
    # Rounded first, so that 0.1 of 30 layers is 3, though the product is above 3 in floating point.
    layers = [max(1, math.ceil(round(depth * count, 9))) for depth in depths]
    if len(set(layers)) < len(layers):
        notes.append(
            f"{role}: read_out_layers {', '.join(f'{depth:g}' for depth in depths)} are layers "
            f"{', '.join(map(str, layers))} of {count}; each is counted once"
        )
    return dataclasses.replace(model, read_out_layers=tuple(sorted(set(layers))))


def with_defaults(own: Role, model: ModelConfig) -> Role:
    """Return a role's settings with the model's default learning rates and parameter dtypes."""
    parameters = model.num_parameters()
    # Also an embedded model that was trained by a phase.
    embedded = not model.family
    parts = {}
    for part in ("train", "pretrain", "probe"):
        values = getattr(own, part)
        changes: dict[str, Any] = {}
        if values.learning_rate is None:
            changes["learning_rate"] = ladders.default_learning_rate(
                own.model, parameters, embedded=embedded, adapt=values.adapt
            )
        if values.param_dtype is None:
            changes["param_dtype"] = ladders.default_param_dtype(parameters)
        parts[part] = dataclasses.replace(values, **changes)
    return dataclasses.replace(own, **parts)
