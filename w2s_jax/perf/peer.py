"""A PyTorch peer in a child process, which measures while we wait, and waits while we measure."""

import importlib.util
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from flax import traverse_util

from w2s_jax.core import errors
from w2s_jax.data.packing import steps_per_epoch
from w2s_jax.models.config import ModelConfig
from w2s_jax.perf.measuring import Record
from w2s_jax.perf.programs import Program
from w2s_jax.perf.workloads import Workload

PEERS = ("torch", "torch-released")
#: Losses that the peers know.
LOSSES = ("xent", "confidence")


def check(peer: str) -> None:
    """Refuses an unknown peer, and one that cannot run here.

    Raises:
      InputError: see there.
    """
    if peer not in PEERS:
        raise errors.unknown("--peer", peer, PEERS)
    if importlib.util.find_spec("torch") is None:
        raise errors.InputError(
            f"--peer={peer}: PyTorch is not installed; allowed after: pip install 'w2s_jax[torch]'"
        )


def check_workload(peer: str, workload: Workload) -> None:
    """Refuses what the peers do not know: models that are not of GPT-2's form, other losses, ...

    Raises:
      InputError: see there.
    """
    model, train = workload.model, workload.train
    if not _like_gpt2(model):
        raise errors.InputError(
            f"--peer={peer}: {model.name} is not of GPT-2's form; allowed: 16m, gpt-*, gpt2, ..."
        )
    if workload.loss[0] not in LOSSES:
        raise errors.unknown(f"--loss with --peer={peer}", workload.loss[0], LOSSES)
    if train.adapt != "full" or train.optimizer != "adam" or train.schedule != "cosine":
        raise errors.InputError(
            f"--peer={peer}: the peers train everything by Adam with a cosine schedule; the config "
            f"has {train.adapt}, {train.optimizer}, {train.schedule}"
        )
    if workload.documents.num_texts > 1:
        raise errors.InputError(f"--peer={peer}: {workload.mix} has pairs; allowed: single texts")


def _like_gpt2(model: ModelConfig) -> bool:
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


def write_task(path: Path, bench: str, peer: str, workload: Workload, program: Program) -> None:
    """Hands over documents, batches and initial parameters; see `torch_programs.Task`."""
    documents, train = workload.documents, workload.train
    facts = {
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
        "facts": np.array(json.dumps(facts)),
        "tokens_T": documents.tokens_T,
        "offsets": documents.offsets,
        "targets_N": documents.targets_N,
    }
    if program.order_SB is not None:
        arrays["order_SB"] = program.order_SB
    flat = traverse_util.flatten_dict(program.params, sep=".")
    arrays |= {f"weights/{name}": np.asarray(x, np.float32) for name, x in flat.items()}
    np.savez(path, **arrays)


class Peer:
    """The child; a context manager, at whose end it is gone.

    Args:
      bench: 'train' or 'label'.
      peer: one of `PEERS`.
      workload, program: what our side does.
    """

    def __init__(self, bench: str, peer: str, workload: Workload, program: Program):
        self.folder = tempfile.TemporaryDirectory(prefix="w2s-bench-")
        self.place = Path(self.folder.name)
        self.task = self.place / "task.npz"
        write_task(self.task, bench, peer, workload, program)
        self.name = peer

    def __enter__(self) -> "Peer":
        self.errors = (self.place / "stderr").open("w+")
        self.child = subprocess.Popen(
            [sys.executable, "-m", "w2s_jax.perf.torch_peer"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
        )
        try:
            self.facts: Record = self.ask("prepare", task=str(self.task))
        except BaseException:
            self.__exit__(None, None, None)
            raise
        self.task.unlink()
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
        self.folder.cleanup()

    def ask(self, command: str, **more: Any) -> Record:
        """Sends a request and returns the reply.

        Raises:
          RuntimeError: the child has failed; with the last line of what it said.
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
            said = self.errors.read().strip().splitlines() or ["it said nothing"]
            raise RuntimeError(f"--peer={self.name}: the peer's process failed: {said[-1]}")
        return json.loads(line)

    def run(self) -> float:
        """Works through the documents once; the seconds by the child's own clock."""
        return float(self.ask("run")["seconds"])

    def outputs(self) -> tuple[np.ndarray, int]:
        """(losses or logits of the last run, peak memory in bytes)."""
        to = self.place / "outputs.npy"
        memory = self.ask("outputs", to=str(to))["peak_memory"]
        return np.load(to), memory
