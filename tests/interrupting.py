"""Runs that stop at a boundary of a test's choice, as after a signal."""

import pytest
from rich.console import Console

from w2s_jax import phases
from w2s_jax.core import errors
from w2s_jax.execution import execute
from w2s_jax.training import loop


def interrupted_run(config, workdir, questions):
    """Runs to the n-th look for a stop, one each 5 steps and after each phase; its last words."""
    asked = []
    original = phases.Context.__init__

    def stop():
        asked.append(1)
        return len(asked) >= questions

    def with_stop(self, *args, **kwargs):
        original(self, *args, **(kwargs | {"should_stop": stop}))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(phases.Context, "__init__", with_stop)
        patch.setattr(loop, "_next_boundary", lambda done, *_: done + 5)
        with pytest.raises(errors.Interrupted) as stopped:
            execute.run(config, workdir, console=Console(quiet=True))
    return str(stopped.value)
