"""A script that measures the start of a process up to its first train step, or first labels.

Its argument is JSON: {"bench": 'train' or 'label', "model", "mix", "dtype", "loss", "started": the
time (`time.time()`) at which the process was started}. It prints one line of JSON.
"""

import json
import sys
import time
from typing import Any

#: JAX's monitoring events between the call of a program and its first run.
_TRACE = "/jax/core/compile/jaxpr_trace_duration"
_LOWER = "/jax/core/compile/jaxpr_to_mlir_module_duration"
_COMPILE = "/jax/core/compile/backend_compile_duration"


def main(request: dict[str, Any]) -> dict[str, float]:
    """Return the seconds of imports, of tracing and lowering, of compiling, and of everything.

    They include all programs that are compiled up to the end of the first pass, also those that
    initialise the parameters.
    """
    import jax

    from w2s_jax import sharding
    from w2s_jax.perf import programs, workloads

    spans: dict[str, list[tuple[float, float]]] = {_TRACE: [], _LOWER: [], _COMPILE: []}

    def observe(event: str, start_time: float, end_time: float, **_: str | int) -> None:
        if event in spans:
            spans[event].append((start_time, end_time))

    jax.monitoring.register_event_time_span_listener(observe)
    imported = time.time() - request["started"]
    workload = workloads.mix_workload(
        workloads.find_model(request["model"]),
        request["mix"],
        dtype=request["dtype"],
        loss=request["loss"],
        documents=workloads.BATCH_SIZE,
    )
    make = programs.training if request["bench"] == "train" else programs.labelling
    make(workload, sharding.make_mesh()).run()
    return {
        "import_seconds": imported,
        "lower_seconds": covered(spans[_TRACE] + spans[_LOWER]),
        "compile_seconds": covered(spans[_COMPILE]),
        "seconds": time.time() - request["started"],
    }


def covered(spans: list[tuple[float, float]]) -> float:
    """Return the seconds in at least one span, as programs are traced within programs."""
    total, end = 0.0, float("-inf")
    for start, stop in sorted(spans):
        total += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return total


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
