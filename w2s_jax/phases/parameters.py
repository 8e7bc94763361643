"""The parameters of a phase: initial values, which of them are trained, and storage.

config.json          'trained': which part of the model `final` has; 'base': where the rest is
checkpoints/final/   all parameters, or those that were trained
tokenizer/           the files of a pretrained model's tokenizer
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from w2s_jax import sharding
from w2s_jax.core import processes
from w2s_jax.core.files import read_json
from w2s_jax.data.tokenizers import Tokenizer
from w2s_jax.models import adapting, heads, loading, lora, network
from w2s_jax.models.checkpoint_files import copy_tokenizer, tokenizer_files
from w2s_jax.models.sources import ModelSource
from w2s_jax.planning.phase import Phase
from w2s_jax.store import artifacts, trees
from w2s_jax.store.artifacts import PhaseFolder


@dataclass(frozen=True)
class Parameters:
    """The trained and the frozen part of a model (see `models.adapting`)."""

    trained: Any
    frozen: Any

    def joined(self) -> Any:
        """Return {'backbone', 'head'} for predictors; of a probe just {'head'}."""
        return adapting.join(self.trained, self.frozen)


def record(phase: Phase, source: ModelSource | None, store: Path) -> dict[str, Any]:
    """Return the entries of a phase's config.json on its parameters."""
    found: dict[str, Any] = {"name": phase.model.name, "trained": phase.train.adapt}
    if "features" in phase.parents:
        # A probe is a head of the model that its features come from.
        parent = read_json(PhaseFolder(store / phase.parents["features"]).config)
        found |= {"dtype": parent["dtype"], "base": parent["base"]}
    else:
        found |= {"dtype": phase.train.param_dtype, "base": _base(phase, source)}
    if source is not None and source.huggingface is not None:
        found["huggingface"] = source.huggingface
    return found


def _base(phase: Phase, source: ModelSource | None) -> dict[str, Any]:
    if phase.model.is_features:
        return {"features": phase.model.name}
    if "init" in phase.parents:
        return {"phase": phase.parents["init"]}
    if source is not None:
        local = Path(source.given).expanduser().is_dir()
        folder = str(source.folder)
        return {
            "model": folder if local else source.given,
            "folder": folder,
            "digest": source.digest,
        }
    return {"seed": phase.seed}


def keep_tokenizer(tokenizer: Tokenizer | None, folder: PhaseFolder) -> None:
    """Copy the files of the tokenizer into a phase's folder, if it consists of files."""
    source = Path(getattr(tokenizer, "source", ""))
    origin = source.parent if source.is_file() else source
    if processes.is_first() and origin.is_absolute() and tokenizer_files(origin):
        folder.tokenizer.mkdir(exist_ok=True)
        copy_tokenizer(origin, folder.tokenizer)


def backbone(phase: Phase, source: ModelSource | None, store: Path, mesh: Mesh) -> Any:
    """Return the parameters that a phase starts from, without adapters, in its `param_dtype`."""
    config, dtype = phase.model.without_adapters(), phase.train.param_dtype or "float32"
    if "init" in phase.parents:
        target = adapting.abstract_params(phase.train, config, mesh, None)
        final = PhaseFolder(store / phase.parents["init"]).final
        # A finetuned model also has a head.
        return trees.load_part(final, target)["backbone"]
    if source is not None:
        return loading.load(source.folder, mesh, dtype)[1]
    fresh = network.init_params(config, phase.seed, mesh)
    return adapting.cast(fresh, dtype)


def initial(phase: Phase, source: ModelSource | None, store: Path, mesh: Mesh) -> Parameters:
    """Return what a phase starts from: pretrained or fresh parameters, adapters, a head."""
    if phase.train.adapt == "probe":
        return Parameters({"head": _head(phase, None, store, mesh)}, {})
    params = backbone(phase, source, store, mesh)
    tree = {"backbone": params}
    if phase.classifies:
        tree["head"] = _head(phase, params, store, mesh)
    if phase.model.lora_rank:
        tree["backbone"] = lora.add(phase.model, params, phase.seed, mesh)
    return Parameters(*adapting.split(phase.train, phase.model, tree))


def _head(phase: Phase, params: Any, store: Path, mesh: Mesh) -> dict[str, Any]:
    """Return the initial head: a probed one, one from the unembedding, or zeros."""
    bias = phase.train.head_bias
    target = heads.abstract_class_head(phase.model, mesh, phase.head_columns, bias=bias)
    if "head" in phase.parents:
        final = PhaseFolder(store / phase.parents["head"]).final
        return trees.load_tree(final, {"head": target})["head"]
    how = phase.head_init
    if how == "unembedding" and params is None:
        stored = artifacts.load_features_head(PhaseFolder(store / phase.parents["features"]))
        if bias:
            stored["bias"] = np.zeros(phase.head_columns, np.float32)
        return sharding.put(stored, sharding.replicated(mesh))
    return heads.init_class_head(
        how,
        phase.model,
        params,
        phase.label_tokens,
        mesh,
        phase.head_columns,
        bias=bias,
        seed=phase.seed,
    )


def features_head(phase: Phase, params: Any, mesh: Mesh) -> dict[str, np.ndarray]:
    """Return the head that probes on these features start from, on the host."""
    tokens = phase.label_tokens
    how = "unembedding" if tokens else "zeros"
    head = heads.init_class_head(how, phase.model, params, tokens, mesh, phase.head_columns)
    return {name: sharding.on_host(x).astype(jnp.float32) for name, x in head.items()}


def save(phase: Phase, params: Parameters, folder: PhaseFolder) -> None:
    """Store all parameters if all may have changed, else those that were trained."""
    full = phase.train.adapt == "full"
    tree = params.joined() if full else params.trained
    trees.save_tree(folder.final, tree)


def load(phase: Phase, start: Parameters, folder: PhaseFolder) -> Parameters:
    """Load what `save` stored, sharded like `start`."""
    if phase.train.adapt != "full":
        trained = trees.load_tree(folder.final, trees.abstract(start.trained))
        return Parameters(trained, start.frozen)
    tree = trees.abstract(start.joined())
    # The devices may not have memory for two models.
    trees.free(start.trained)
    params = trees.load_tree(folder.final, tree)
    return Parameters(*adapting.split(phase.train, phase.model, params))
