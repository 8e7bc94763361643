"""Split the parameters of a model into a trained and a frozen part, and join them again.

Parameters are {'backbone': ..., 'head': ...}; a language model has no head. Each part is a dict of
the same structure with some of the leaves. The loss is not differentiated with respect to the
frozen part, which has no gradient and no optimiser state, and is not saved in checkpoints.

The parameters of a probe are {'head': ..., 'features_NKD': ...}, of which the head is trained.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import traverse_util
from jax.sharding import Mesh

from w2s_jax.config import TrainSettings
from w2s_jax.models import heads, lora, network
from w2s_jax.models.config import ModelConfig

Params = dict[str, Any]


def split(train: TrainSettings, config: ModelConfig, params: Params) -> tuple[Params, Params]:
    """Split parameters into (trained, frozen) according to `train.adapt`.

    'full' trains everything that affects the output of the head, so a classifier's unembedding is
    frozen; 'lora' the adapters and the head; 'last_layers' the last blocks, in a separate stack
    ('tail_blocks'), the final norm and the head; 'probe' the head.
    """
    if train.adapt == "last_layers":
        backbone = network.split_tail(config, params["backbone"], train.last_layers)
        params = params | {"backbone": backbone}
    flat = traverse_util.flatten_dict(params, sep=".")
    classifies = "head" in params
    trained = {p: x for p, x in flat.items() if _is_trained(p, train.adapt, config, classifies)}
    frozen = {path: x for path, x in flat.items() if path not in trained}
    return (
        traverse_util.unflatten_dict(trained, sep="."),
        traverse_util.unflatten_dict(frozen, sep="."),
    )


def _is_trained(path: str, adapt: str, config: ModelConfig, classifies: bool) -> bool:
    part, _, rest = path.partition(".")
    if part == "head":
        return True
    if adapt == "probe":
        return False
    if adapt == "lora":
        return lora.is_adapter(rest)
    first = rest.split(".")[0]
    if first == "pooler":
        return config.read_out == "pooler"
    if classifies and first in ("unembedding", "unembedding_bias"):
        return False
    return adapt == "full" or first in ("tail_blocks", "final_norm")


def join(trained: Mapping[str, Any], frozen: Mapping[str, Any]) -> Params:
    """Return all parameters, given the two parts from `split`."""
    both = traverse_util.flatten_dict(dict(trained)) | traverse_util.flatten_dict(dict(frozen))
    return traverse_util.unflatten_dict(both)


def cast(params: Params, dtype: str) -> Params:
    """Cast backbone parameters, except adapters, to a dtype."""
    flat = traverse_util.flatten_dict(params, sep=".")
    cast = {p: x if lora.is_adapter(p) else x.astype(dtype) for p, x in flat.items()}
    return traverse_util.unflatten_dict(cast, sep=".")


def whole(config: ModelConfig, params: Params) -> tuple[ModelConfig, Params]:
    """Return (config, parameters) with adapters merged and all layers in one stack."""
    backbone = params["backbone"]
    if "tail_blocks" in backbone:
        backbone = network.join_tail(backbone)
    if config.lora_rank:
        config, backbone = lora.merge(config, backbone)
    return config, params | {"backbone": backbone}


def abstract_params(
    train: TrainSettings, config: ModelConfig, mesh: Mesh, columns: int | None
) -> Params:
    """Return shapes, dtypes and shardings of all parameters, with the layers in one stack.

    Args:
      train: settings; the backbone has `train.param_dtype`, adapters and head are float32. The
        head has a bias if `train.head_bias`.
      config: the model.
      mesh: the mesh of the parameters.
      columns: of the class head (see `heads.init_class_head`); None: no head.
    """
    flat = traverse_util.flatten_dict(network.abstract_params(config, mesh), sep=".")
    dtype = jnp.dtype(train.param_dtype or "float32")
    backbone = {
        path: jax.ShapeDtypeStruct(
            x.shape, jnp.float32 if lora.is_adapter(path) else dtype, sharding=x.sharding
        )
        for path, x in flat.items()
    }
    params: Params = {"backbone": traverse_util.unflatten_dict(backbone, sep=".")}
    if columns is not None:
        params["head"] = heads.abstract_class_head(config, mesh, columns, bias=train.head_bias)
    return params


def abstract_trained(
    train: TrainSettings, config: ModelConfig, mesh: Mesh, columns: int | None
) -> Params:
    """Return shapes, dtypes and shardings of the trained part; see `abstract_params`."""
    if train.adapt == "probe":
        assert columns is not None
        return {"head": heads.abstract_class_head(config, mesh, columns, bias=train.head_bias)}
    return split(train, config, abstract_params(train, config, mesh, columns))[0]
