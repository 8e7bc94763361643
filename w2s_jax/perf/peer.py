"""A PyTorch peer in a child process. Only one of the two sides works at a time."""

import importlib.util
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from flax import traverse_util

from w2s_jax.core import errors
from w2s_jax.data.packing import steps_per_epoch
from w2s_jax.models.config import ModelConfig
from w2s_jax.perf.measuring import Record
from w2s_jax.perf.programs import Program
from w2s_jax.perf.workloads import Workload

PEERS = ("torch", "torch-released")
#: Losses that the peers implement.
LOSSES = ("xent", "confidence")


def check_installed(peer: str) -> None:
    """Check that a peer is known and PyTorch is installed.

    Raises:
      InputError: it is unknown, or PyTorch is missing.
    """
    if peer not in PEERS:
        raise errors.unknown("--peer", peer, PEERS)
    if importlib.util.find_spec("torch") is None:
        raise errors.InputError(
            f"--peer={peer} needs PyTorch; install it with pip install 'w2s_jax[torch]'"
        )


def check_workload(peer: str, workload: Workload) -> None:
    """Check that the peers support a workload.

    Raises:
      InputError: the model does not have GPT-2's architecture, or the peers do not implement the
        loss, the training settings or the documents (pairs).
    """
    model, train = workload.model, workload.train
    if not _is_gpt2_like(model):
        raise errors.InputError(
            f"--peer={peer}: {model.name} does not have GPT-2's architecture; use 16m, gpt-* or "
            "gpt2*"
        )
    if workload.loss[0] not in LOSSES:
        raise errors.unknown(f"--loss with --peer={peer}", workload.loss[0], LOSSES)
    if train.adapt != "full" or train.optimizer != "adam" or train.schedule != "cosine":
        raise errors.InputError(
            f"--peer={peer}: the peers train all parameters with adam and a cosine schedule; the "
            f"config has adapt={train.adapt}, optimizer={train.optimizer}, "
            f"schedule={train.schedule}"
        )
    if workload.documents.soft_NC is not None:
        classes = workload.documents.soft_NC.shape[1]
        raise errors.InputError(
            f"--peer={peer}: {workload.mix} has {classes} classes; the peers support two only"
        )
    if workload.documents.num_texts > 1:
        raise errors.InputError(
            f"--peer={peer}: {workload.mix} has pairs; the peers support single texts only"
        )


def _is_gpt2_like(model: ModelConfig) -> bool:
    return (
        not (model.bidirectional or model.lora_rank or model.window or model.attention_softcap)
        and not (model.parallel_residual or model.gated_mlp or model.post_norms or model.qk_norm)
        and not (model.position_offset or model.scaled_embeddings or model.query_scalar)
        and (model.norm, model.positions, model.activation, model.read_out)
        == ("layernorm", "learned", "gelu_tanh", "last")
        and model.norm_epsilon == 1e-5
        and model.qkv_bias
        and model.out_bias
        and model.mlp_bias
        and model.num_kv_heads == model.num_heads
    )


def write_job(path: Path, bench: str, peer: str, workload: Workload, program: Program) -> None:
    """Write documents, batches and initial parameters to a file; see `torch_programs.PeerJob`."""
    documents, train = workload.documents, workload.train
    settings = {
        "bench": bench,
        "peer": peer,
        "dtype": "float32" if peer == "torch-released" else train.compute_dtype,
        "loss": workload.loss[0],
        "batch_size": train.batch_size,
        "total_steps": steps_per_epoch(len(documents), train.batch_size),
        "learning_rate": train.learning_rate,
        "beta1": train.beta1,
        "beta2": train.beta2,
    }
    arrays: dict[str, Any] = {
        "settings": np.array(json.dumps(settings)),
        "tokens_T": documents.tokens_T,
        "offsets": documents.offsets,
        "targets_N": documents.targets_NC[:, 1],
    }
    if program.order_SB is not None:
        arrays["order_SB"] = program.order_SB
    flat = traverse_util.flatten_dict(program.params, sep=".")
    arrays |= {f"weights/{name}": np.asarray(x, np.float32) for name, x in flat.items()}
    np.savez(path, **arrays)


class Child:
    """A child process that runs a peer; a context manager that ends it on exit.

    Subclasses write the job before it is entered.

    Args:
      name: name of the peer.
    """

    #: The file or folder with the job, in a temporary folder.
    job_name = "job.npz"

    def __init__(self, name: str):
        self.temporary = tempfile.TemporaryDirectory(prefix="w2s-bench-")
        self.folder = Path(self.temporary.name)
        self.job = self.folder / self.job_name
        self.name = name

    def __enter__(self) -> Self:
        self.errors = (self.folder / "stderr").open("w+")
        self.child = subprocess.Popen(
            [sys.executable, "-m", "w2s_jax.perf.torch_peer"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
        )
        try:
            self.facts: Record = self.ask("prepare", job=str(self.job))
        except BaseException:
            self.__exit__(None, None, None)
            raise
        if self.job.is_dir():
            shutil.rmtree(self.job)
        else:
            self.job.unlink()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.child.kill()
        self.child.communicate()
        self.errors.close()
        self.temporary.cleanup()

    def ask(self, command: str, **more: Any) -> Record:
        """Send a request and return the reply.

        Raises:
          RuntimeError: the child process has failed; contains the last line of its stderr.
        """
        assert self.child.stdin is not None and self.child.stdout is not None
        line = ""
        try:
            print(json.dumps({"command": command, **more}), file=self.child.stdin, flush=True)
            line = self.child.stdout.readline()
        except BrokenPipeError:
            pass
        if not line:
            self.errors.seek(0)
            output = self.errors.read().strip().splitlines() or ["no error message"]
            raise RuntimeError(f"--peer={self.name}: the peer's process failed: {output[-1]}")
        return json.loads(line)

    def run(self) -> float:
        """Process the documents once; return the time measured by the child, in seconds."""
        return float(self.ask("run")["seconds"])

    def outputs(self) -> tuple[np.ndarray, int]:
        """Return the losses or logits of the last run, and peak memory in bytes."""
        path = self.folder / "outputs.npy"
        memory = self.ask("outputs", to=str(path))["peak_memory"]
        return np.load(path), memory


class Peer(Child):
    """A peer that trains or labels.

    Args:
      bench: 'train' or 'label'.
      peer: one of `PEERS`.
      workload, program: what our side runs.
    """

    def __init__(self, bench: str, peer: str, workload: Workload, program: Program):
        super().__init__(peer)
        write_job(self.job, bench, peer, workload, program)
