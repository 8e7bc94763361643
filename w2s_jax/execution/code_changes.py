"""Phases that were computed by code of the user's own that has changed. Imports no JAX."""

from collections.abc import Iterable
from typing import Any

from w2s_jax.core import errors
from w2s_jax.core.files import read_json
from w2s_jax.planning.code import phase_code
from w2s_jax.planning.phase import Phase
from w2s_jax.store.artifacts import PhaseFolder


def check(phases: Iterable[tuple[Phase, PhaseFolder]], *, accept: bool) -> list[str]:
    """Check that phases were computed by the code that is registered now, as far as is recorded.

    Args:
      phases: phases and their folders, which need not exist.
      accept: return a note on each phase that was not, instead of refusing them.

    Raises:
      InputError: for the first phase that was not, without `accept`.
    """
    changes = []
    for phase, folder in phases:
        before = _recorded(folder) if (now := phase_code(phase)) else {}
        changed = [name for name in now if name in before and before[name] != now[name]]
        if changed:
            state = "computed" if folder.complete else "begun"
            names = " and ".join(map(repr, changed))
            changes.append(f"{folder.path}: {state} by other code of {names} than there is now")
    if changes and not accept:
        more = f" ({len(changes) - 1} more phases as well)" if changes[1:] else ""
        raise errors.InputError(
            f"{changes[0]}{more}; register the new code under another name, move the folder "
            "elsewhere to compute it again, or use it as it is with --accept_changed_code"
        )
    return [f"{change}; used as it is" for change in changes]


def _recorded(folder: PhaseFolder) -> dict[str, Any]:
    """Return the recorded code of a phase that is complete or has been trained for some steps."""
    try:
        if folder.complete:
            return dict(read_json(folder.result).get("code", {}))
        record = read_json(folder.config) if folder.config.exists() else {}
        # The checkpoints of a population are in the folder of its first member.
        if _is_trained(folder) or "population" in record.get("execution", {}):
            return dict(record.get("code", {}))
    except (errors.InputError, AttributeError, TypeError, ValueError):
        pass  # A damaged record is refused where it is needed.
    return {}


def _is_trained(folder: PhaseFolder) -> bool:
    """Return whether a phase has parameters that it would go on with."""
    try:
        return folder.trained.exists() or folder.steps.exists()
    except Exception:  # whatever a store's client says; it is refused when it is needed
        return False
