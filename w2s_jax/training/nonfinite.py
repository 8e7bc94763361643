"""The operation at which a step becomes non-finite, for `w2s run --debug_nans`.

A compiled step freezes the state where its loss or gradient is not finite, so JAX's own check of a
program's results (`jax_debug_nans`) sees nothing. The step is therefore repeated here operation by
operation, without compilation.
"""

import linecache
import re
import sysconfig
import traceback
from collections.abc import Iterator
from types import TracebackType
from typing import Any

import jax

from w2s_jax import sharding
from w2s_jax.config import MeshSettings
from w2s_jax.training.batches import Bucket
from w2s_jax.training.spec import StepSpec
from w2s_jax.training.state import TrainState
from w2s_jax.training.step import train_step


def locate(spec: StepSpec, frozen: Any, state: TrainState, bucket: Bucket) -> str:
    """Return which operation of a step gives a NaN or an infinity first, and its line of source.

    Args:
      spec: the step.
      frozen: parameters that the state lacks (see `models.adapting`).
      state: the state before the step `state.step`.
      bucket: holds the batch of the step.
    """
    mesh = sharding.make_mesh(MeshSettings(data=1))
    arguments = jax.device_get((spec.hyperparameters(), frozen, state))
    arguments, bucket = jax.device_put((arguments, jax.device_get(bucket)), mesh.devices.flat[0])
    hyperparameters, frozen, state = arguments
    for check in (jax.debug_nans, jax.debug_infs):
        try:
            with jax.disable_jit(), check(True), sharding.over(mesh):
                train_step(
                    spec.program_key(), hyperparameters, frozen, state, state.step, (bucket,), 0
                )
        except FloatingPointError as error:
            return _described(error)
    return "no operation of the step gives NaN or an infinity when they are run one by one"


def _described(error: FloatingPointError) -> str:
    """Return 'NaN in log at loss.py:12: ...' of an error of JAX's checks."""
    found = re.search(r"\((\w+)\) encountered in ([\w-]+)", str(error))
    what = f"{found[1].replace('nan', 'NaN')} in {found[2]}" if found else str(error)
    places = list(_places(error))
    if not places:
        return what
    file, line = places[-1]
    source = linecache.getline(file, line).strip()
    return f"{what} at {file}:{line}" + (f": {source}" if source else "")


def _places(error: BaseException | None) -> Iterator[tuple[str, int]]:
    """Yield the file and line of each frame outside of installed packages, the innermost last.

    In the backward pass, the frames of the operation that was differentiated are those of the
    error's cause.
    """
    installed = {sysconfig.get_path("purelib"), sysconfig.get_path("stdlib")}
    while error is not None:
        trace: TracebackType | None = error.__traceback__
        for frame, line in traceback.walk_tb(trace):
            file = frame.f_code.co_filename
            if not any(file.startswith(folder) for folder in installed):
                yield file, line
        error = error.__cause__
