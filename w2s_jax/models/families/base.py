"""`Family` and `TensorView`, and the registry of families."""

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from w2s_jax.core import errors
from w2s_jax.models.config import ModelConfig


@dataclass(frozen=True)
class TensorView:
    """A parameter, or one layer of a stacked parameter, as a view of a checkpoint tensor.

    The tensor is reshaped, indexed and transposed, in this order.

    Attributes:
      name: the tensor's name, with '{layer}' in place of the layer's number.
      stored: the tensor's shape in the checkpoint.
      shape: the shape to reshape it to (None: as stored).
      select: for each axis, the index to select, or None for all; (): select everything.
      axes: the permutation of the remaining axes; (): no transposition.
    """

    name: str
    stored: tuple[int, ...]
    shape: tuple[int, ...] | None = None
    select: tuple[int | None, ...] = ()
    axes: tuple[int, ...] = ()

    def take(self, tensor: np.ndarray) -> np.ndarray:
        """Return the parameter as a view of `tensor`, which has the shape `stored`."""
        part = tensor.reshape(self.shape or self.stored)[self._index()]
        return part.transpose(self.axes) if self.axes else part

    def put(self, parameter: np.ndarray, tensor: np.ndarray) -> None:
        """Write `parameter` into its part of `tensor`, contiguous and of the shape `stored`."""
        if self.axes:
            parameter = parameter.transpose(np.argsort(self.axes))
        tensor.reshape(self.shape or self.stored)[self._index()] = parameter

    def _index(self) -> tuple[int | slice, ...]:
        return tuple(slice(None) if i is None else i for i in self.select)


@dataclass(frozen=True)
class Family:
    """A family of models that share config keys and tensor names.

    Attributes:
      name: the key in `FAMILIES`, and the value of `ModelConfig.family`.
      model_types: values of `model_type` in config.json.
      architectures: values of `architectures` in config.json, the language model's class first.
      classifier: the class for sequence classification, if transformers has one.
      classifier_head: tensor name of the class head's weight, if there is such a class.
      to_config: returns the `ModelConfig` of a config.json's content. Raises an `InputError` that
        names an unsupported option, its value and the allowed values.
      to_hf: returns the content of a config.json of which `to_config` makes the same `ModelConfig`,
        except for `name`.
      views: returns a `TensorView` for each parameter, by flat path.
      ignored: regular expressions of names of tensors that may be present but are not used.
      prefixes: prefixes of the backbone's tensor names. `views` uses the first; files may have any.
      classifier_bias: tensor name of the class head's bias, if it has one.
      classifier_names: (prefix in `views`, prefix in a classifier's file); the first match applies.
      old_names: (suffix of a name, suffix in old files).
    """

    name: str
    model_types: tuple[str, ...]
    architectures: tuple[str, ...]
    classifier: str | None
    classifier_head: str | None
    to_config: Callable[[Mapping[str, Any]], ModelConfig]
    to_hf: Callable[[ModelConfig], dict[str, Any]]
    views: Callable[[ModelConfig], dict[str, TensorView]]
    ignored: tuple[str, ...] = ()
    prefixes: tuple[str, ...] = ("model.", "")
    classifier_bias: str | None = None
    classifier_names: tuple[tuple[str, str], ...] = ()
    old_names: tuple[tuple[str, str], ...] = ()


#: Family by name, in the order of registration.
FAMILIES: dict[str, Family] = {}


def register_family(family: Family) -> Family:
    """Register a family, so that models of its architectures can be used; return it.

    Raises:
      InputError: if another family has the same name or one of the architectures.
    """
    for other in FAMILIES.values():
        if other is not family and other.name == family.name:
            raise errors.InputError(f"family {family.name!r} is already registered")
        shared = set(accepted_architectures(family)) & set(accepted_architectures(other))
        if other is not family and shared:
            raise errors.InputError(
                f"family {family.name!r}: architecture {min(shared)!r} already belongs to "
                f"{other.name!r}"
            )
    FAMILIES[family.name] = family
    return family


#: Classes of transformers with a backbone of the same tensors, and a head that is not used.
_OTHER_TASKS = ("ForTokenClassification", "ForQuestionAnswering", "ForMultipleChoice")


def accepted_architectures(family: Family) -> tuple[str, ...]:
    """Return the classes of a family whose head, if they have one, can be used."""
    return family.architectures + ((family.classifier,) if family.classifier else ())


def _other_tasks(family: Family) -> tuple[str, ...]:
    if family.classifier is None:
        return ()
    stem = family.classifier.removesuffix("ForSequenceClassification")
    return tuple(stem + task for task in (*_OTHER_TASKS, "DoubleHeadsModel"))


def architectures_of(hf_config: Mapping[str, Any], location: str = "config.json") -> list[str]:
    """Return the `architectures` of a config.json's content; [] if there are none.

    Raises:
      InputError: if they are neither a name nor a list of names.
    """
    named = hf_config.get("architectures")
    named = [named] if isinstance(named, str) else named or []
    if not isinstance(named, list) or not all(isinstance(name, str) for name in named):
        raise errors.InputError(
            f"{location}: architectures: {str(named)[:80]}; allowed: a list of class names"
        )
    return named


def family_of(hf_config: Mapping[str, Any], location: str) -> Family:
    """Return the family of the model that a config.json describes.

    Args:
      hf_config: the content of config.json.
      location: the file, for error messages.

    Raises:
      InputError: for an unknown architecture or model_type.
    """
    by_architecture = {a: f for f in FAMILIES.values() for a in accepted_architectures(f)}
    others = {a: f for f in FAMILIES.values() for a in _other_tasks(f)}
    by_type = {t: f for f in FAMILIES.values() for t in f.model_types}
    model_type, named = hf_config.get("model_type"), architectures_of(hf_config, location)
    if model_type is not None and not isinstance(model_type, str):
        raise errors.InputError(
            f"{location}: model_type: {str(model_type)[:80]}; allowed: {', '.join(by_type)}"
        )
    if not named and model_type is None:
        raise errors.InputError(f"{location}: has neither architectures nor model_type")
    for architecture in named:
        if architecture not in by_architecture | others:
            raise errors.unknown(f"{location}: architectures", architecture, by_architecture)
    if model_type is not None and model_type not in by_type:
        raise errors.unknown(f"{location}: model_type", model_type, by_type)
    found = [(others | by_architecture)[a] for a in named]
    found += [by_type[model_type]] if model_type else []
    if any(family is not found[0] for family in found):
        raise errors.InputError(
            f"{location}: model_type {model_type!r} does not match architectures {list(named)!r}; "
            f"allowed: {', '.join(found[0].model_types)}"
        )
    return found[0]


def file_names(family: Family, config: ModelConfig, names: Collection[str]) -> dict[str, str]:
    """Map each tensor name in `family.views(config)`, of every layer, to its name in a file.

    Args:
      family: the family of the model.
      config: the model.
      names: the tensor names of the file, from which the prefix, the presence of a classification
        head and old names are inferred. The result has all tensors, even if missing from the file.
    """
    ours = family.prefixes[0]
    wanted = tensor_names(family, config)
    found = {name: classifier_name(family, name) for name in wanted}
    # A head may also be stored beside the tensors of a bare backbone, which keep their names.
    if family.classifier_head not in names or found[wanted[0]] not in names:
        first = next(name for name in wanted if name.startswith(ours)).removeprefix(ours)
        prefix = next((p for p in family.prefixes if p + first in names), ours)
        found = {
            name: prefix + name.removeprefix(ours) if name.startswith(ours) else name
            for name in wanted
        }
    return {name: _old_name(family, theirs, names) for name, theirs in found.items()}


def classifier_name(family: Family, name: str) -> str:
    """Return the name of a tensor of `family.views` in the file of the family's classifier."""
    for ours, theirs in family.classifier_names:
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    return name


def _old_name(family: Family, name: str, names: Collection[str]) -> str:
    for new, old in family.old_names:
        former = name.removesuffix(new) + old
        if name.endswith(new) and name not in names and former in names:
            return former
    return name


def tensor_names(family: Family, config: ModelConfig) -> list[str]:
    """Return the names of a model's tensors without repetition, layer by layer."""
    names = [view.name for view in family.views(config).values()]
    layers = range(config.num_layers)
    once = [name for name in names if "{layer}" not in name]
    stacked = [name.format(layer=i) for i in layers for name in names if "{layer}" in name]
    return list(dict.fromkeys(once + stacked))


def is_ignored(family: Family, name: str) -> bool:
    """Return whether a tensor that no view names may be skipped."""
    return any(re.fullmatch(pattern, name) for pattern in family.ignored)
