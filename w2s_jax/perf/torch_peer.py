"""The child process in which a PyTorch peer runs. It reads and writes one line of JSON at a time.

    {"command": "prepare", "job": FILE.npz}        -> {"variant": ..., "trials": ...}; of a folder,
                                                      generation, also "prefill_seconds"
    {"command": "run"}                             -> {"seconds": 1.25}
    {"command": "outputs", "to": FILE.npy}         -> {"peak_memory": ...}; writes the last outputs

The process ends with its input. Between commands it only waits, so that the other side has the
whole machine.
"""

import json
import sys
from pathlib import Path
from typing import Any, TextIO

import numpy as np


def serve(requests: TextIO, replies: TextIO) -> None:
    """Answer requests until the input ends."""
    program: Any = None
    outputs: np.ndarray | None = None
    for line in requests:
        request = json.loads(line)
        reply: dict[str, Any] = {}
        if request["command"] == "prepare":
            program, reply = _prepare(request["job"])
        elif request["command"] == "run":
            seconds, outputs = program.run()
            reply = {"seconds": seconds}
        elif request["command"] == "outputs":
            assert outputs is not None
            np.save(request["to"], outputs)
            reply = {"peak_memory": _peak_memory()}
        print(json.dumps(reply), file=replies, flush=True)


def _prepare(path: str) -> tuple[Any, dict[str, Any]]:
    import torch

    from w2s_jax.perf import torch_programs

    if torch.cuda.is_available():
        # XLA's default.
        torch.set_float32_matmul_precision("high")
    more: dict[str, Any] = {}
    program: Any
    if Path(path).is_dir():
        from w2s_jax.perf import torch_generation

        program, variant, trials = torch_generation.make_program(
            torch_generation.read_job(Path(path))
        )
        more["prefill_seconds"] = torch_generation.prefill_seconds(program)
    else:
        program, variant, trials = torch_programs.make_program(read_job(path))
    return program, {
        **more,
        "variant": variant,
        "trials": {name: seconds for name, seconds in trials.items() if seconds < float("inf")},
        "torch": torch.__version__,
        "device": torch_programs.device(),
        "threads": torch.get_num_threads(),
    }


def read_job(path: str) -> Any:
    """Read the `torch_programs.PeerJob` that `perf.peer.write_job` wrote."""
    from w2s_jax.perf.torch_programs import PeerJob

    with np.load(path) as stored:
        arrays = {name: stored[name] for name in stored.files}
    settings = json.loads(str(arrays["settings"]))
    flat = {
        name.removeprefix("weights/"): x for name, x in arrays.items() if name.startswith("weights")
    }
    return PeerJob(
        documents=np.split(arrays["tokens_T"], arrays["offsets"][1:-1]),
        targets_N=arrays["targets_N"],
        order_SB=arrays.get("order_SB"),
        flat=flat,
        **settings,
    )


def _peak_memory() -> int:
    import torch

    from w2s_jax.perf.measuring import process_peak

    cuda = torch.cuda.is_available()
    return torch.cuda.max_memory_allocated() if cuda else process_peak()


if __name__ == "__main__":
    replies, sys.stdout = sys.stdout, sys.stderr  # libraries may print to stdout
    serve(sys.stdin, replies)
