"""The code of a user's own extensions that enters the result of a phase. Imports no JAX.

Fingerprints do not cover it, so a phase's record has a hash of it, which is compared before the
phase is used again. Built-in extensions have semantics versions instead, and how a task makes
documents shows in their digests.
"""

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

from w2s_jax.config.declarations import METHODS, LossSpec, loss_named
from w2s_jax.core.code import code_sha256, users_code
from w2s_jax.data.feature_sources import FEATURES, PREFIX
from w2s_jax.data.tasks import TASKS
from w2s_jax.models.families import FAMILIES
from w2s_jax.planning.kinds import PHASE_KINDS
from w2s_jax.planning.phase import Phase


def phase_code(phase: Phase) -> dict[str, str]:
    """Return name -> SHA-256 of the code of each of the user's extensions that a phase runs.

    These are its loss, its model's family, what judges its completions, what makes its labels, and
    its kind. Extensions of one
    name count as one.
    """
    found: dict[str, list[str]] = {}
    for name, functions in _extensions(phase):
        own = users_code(functions)
        if own:
            found.setdefault(name, []).append(code_sha256(own))
    return {
        name: sums[0] if len(sums) == 1 else hashlib.sha256("".join(sums).encode()).hexdigest()
        for name, sums in sorted(found.items())
    }


def code_with_parents(phase: Phase, phases: Mapping[str, Phase]) -> dict[str, str]:
    """Return `phase_code` of a phase, of its parents, and of theirs.

    Args:
      phase: the phase.
      phases: name -> phase; others do not count.
    """
    found: dict[str, str] = {}
    pending, seen = [phase], {phase.name}
    while pending:
        current = pending.pop()
        found = phase_code(current) | found
        names = {*current.parents.values()} & phases.keys() - seen
        seen |= names
        pending += [phases[name] for name in sorted(names)]
    return dict(sorted(found.items()))


def _extensions(phase: Phase) -> Iterator[tuple[str, tuple[Any, ...]]]:
    if phase.loss is not None:
        loss = loss_named(phase.loss.kind, "loss")
        if isinstance(loss, LossSpec):
            on_tokens = () if loss.on_tokens is None else (loss.on_tokens,)
            yield loss.name, (loss.fn, loss.init_state, loss.update, *on_tokens)
        else:
            yield loss.name, (loss.fn, loss.margin)
    function = phase.model.name.removeprefix(PREFIX)
    if phase.kind == "features" and phase.model.is_features and function in FEATURES:
        yield phase.model.name, (FEATURES[function].function,)
    if phase.model.family in FAMILIES:
        family = FAMILIES[phase.model.family]
        yield family.name, (family.to_config, family.views)
    if phase.task in TASKS:
        task = TASKS[phase.task]
        yield task.name, (task.answer, task.correct, *task.scores.values())
    if phase.method is not None:
        for method in METHODS.values():
            if phase.method[0] in method.label_makers:
                yield phase.method[0], (method.label_makers[phase.method[0]],)
    kind = PHASE_KINDS[phase.kind]
    yield kind.name, (kind.build, kind.run)
