"""Run one phase up to its result; keep parameters and records of what is computed."""

import logging
import time
from importlib import metadata
from typing import Any

import jax

from w2s_jax.core import processes
from w2s_jax.core.files import read_json, remove_folder, sha256, write_json
from w2s_jax.data.tokenizers import BUILT_IN
from w2s_jax.phases import parameters, training
from w2s_jax.phases.context import Context
from w2s_jax.phases.parameters import Parameters
from w2s_jax.planning.code import phase_code
from w2s_jax.planning.kinds import PHASE_KINDS
from w2s_jax.planning.phase import Phase
from w2s_jax.profiling import compilation
from w2s_jax.store import checksums, claims, trees
from w2s_jax.store.artifacts import PhaseFolder

log = logging.getLogger(__name__)


def run_phase(phase: Phase, context: Context) -> None:
    """Run a phase whose parents are complete, up to its result.json.

    An earlier attempt is continued from its final parameters or newest checkpoint, if undamaged.
    """
    folder = context.folder(phase.name)
    with context.watched(phase):
        _run_phase(phase, context, folder)


def _run_phase(phase: Phase, context: Context, folder: PhaseFolder) -> None:
    processes.on_first("begin", lambda: begin(phase, context))
    started, compiled = time.monotonic(), compilation.compile_clock().seconds
    found = PHASE_KINDS[phase.kind].run(phase, context, folder)
    result: dict[str, Any] = {
        "kind": phase.kind,
        "model": phase.model.name,
        "parameters": phase.num_parameters,
        # What trains counts the seconds of all its attempts itself.
        "seconds": time.monotonic() - started,
        "compile_seconds": compilation.compile_clock().seconds - compiled,
        **found,
    }
    result["execution"] = _execution(phase, context, result.pop("population", None))
    processes.on_first(
        "complete", lambda: _complete(phase, context, folder, result | _code(phase, context))
    )


def _complete(phase: Phase, context: Context, folder: PhaseFolder, result: dict[str, Any]) -> None:
    """Write the result, and remove what is no longer needed."""
    claims.refuse_lost()
    files = [folder.predictions] if "metrics" in result else []
    result["sha256"] = {path.name: sha256(path) for path in files}
    # The final parameters are stored by now.
    remove_folder(folder.saves or folder.steps, keep_aside=True)
    write_json(folder.result, result)
    kept = PHASE_KINDS[phase.kind].keeps_parameters or phase.name in context.starts
    if not (kept or context.keeps):
        remove_folder(folder.final.parent, keep_aside=True)


def begin(phase: Phase, context: Context, population: dict[str, Any] | None = None) -> None:
    """Write config.json: what the phase computes, and how.

    Args:
      phase: the phase.
      context: its context.
      population: the population that trains it; None for the one that has trained it, if any.
    """
    folder, source = context.folder(phase.name), context.data(phase).source
    if population is None and folder.trained.exists():
        population = read_json(folder.trained).get("population")
    write_json(
        folder.config,
        {
            "kind": phase.kind,
            "spec": phase.spec,
            **parameters.record(phase, source, context.store),
            **_label_names(phase, context),
            **_tokenizer(phase, context),
            "execution": _execution(phase, context, population),
            **_code(phase, context),
        },
    )


def _label_names(phase: Phase, context: Context) -> dict[str, Any]:
    """Return the names of the classes of a phase with a head or labels, if its task has them."""
    task = context.resolved.task
    if phase.num_texts > 1 or task is None or not task.classes:
        return {}
    # Labels of more than two classes have a column for each.
    if not phase.classifies and (len(task.classes) == 2 or not phase.label_splits):
        return {}
    return {"label_names": list(task.classes)}


def _tokenizer(phase: Phase, context: Context) -> dict[str, str]:
    """Return the name of a tokenizer without files, of models that generate text."""
    tokenizer = context.data(phase).tokenizer
    if phase.classifies or tokenizer is None or tokenizer.name not in BUILT_IN:
        return {}
    return {"tokenizer": tokenizer.name}


def _code(phase: Phase, context: Context) -> dict[str, Any]:
    """Return the field `code`, which only phases have whose result depends on a user's own code.

    That of its parents counts too, as recorded: they may have been computed by other code.
    """
    code: dict[str, str] = {}
    for name in phase.parents.values():
        code |= read_json(context.folder(name).result).get("code") or {}
    code |= phase_code(phase)
    return {"code": dict(sorted(code.items()))} if code else {}


def _execution(phase: Phase, context: Context, population: dict[str, Any] | None) -> dict[str, Any]:
    """Return how the phase is computed, which is recorded but not part of the fingerprint."""
    execution = {
        "backend": jax.default_backend(),
        "device_kind": context.mesh.devices.flat[0].device_kind,
        "mesh": dict(context.mesh.shape),
        "processes": processes.count(),
        "microbatch_size": phase.train.microbatch_size or phase.train.batch_size,
        "remat": phase.train.remat,
        "versions": {name: metadata.version(name) for name in ("w2s_jax", "jax", "flax", "optax")},
    }
    return execution if population is None else execution | {"population": population}


def trained(
    phase: Phase, context: Context, folder: PhaseFolder
) -> tuple[Parameters, dict[str, Any]]:
    """Return a phase's final parameters and the record of their training.

    Train the phase and keep the parameters, unless an earlier attempt did.
    """
    parameters.keep_tokenizer(context.data(phase).tokenizer, folder)
    source = context.data(phase).source
    start = parameters.initial(phase, source, context.store, context.mesh)
    before = processes.on_first("trained", lambda: _trained_before(folder))
    if before is not None:
        return parameters.load(phase, start, folder), before
    params, record = training.train(phase, context, folder, start)
    keep(phase, folder, params, record)
    return params, record


def _trained_before(folder: PhaseFolder) -> dict[str, Any] | None:
    """Return the record of a training whose final parameters are undamaged, or None."""
    if not folder.trained.exists():
        return None
    problem = trees.damage(folder.final)
    if problem is None:
        record: dict[str, Any] = read_json(folder.trained)
        return record
    where = checksums.drop_damaged(folder.final)
    log.warning("%s is damaged (%s)%s; training again", folder.final, problem, where)
    folder.trained.unlink()
    return None


def keep(phase: Phase, folder: PhaseFolder, params: Parameters, trained: dict[str, Any]) -> None:
    """Store final parameters and the record of their training.

    Raises:
      StorageError: the disk is full.
    """
    with trees.storage_errors(f"{phase.title}: saving the final parameters", folder.path):
        parameters.save(phase, params, folder)
        processes.on_first("keep", lambda: write_json(folder.trained, trained))
