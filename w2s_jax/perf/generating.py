"""`w2s bench generate`: completions per second, optionally relative to transformers' `generate`.

Both sides complete the same prompts of random tokens with the same random weights: greedily,
without an end token, in batches of at most `BATCH_SIZE` prompts, and without log-probabilities,
which transformers does not compute either. Shapes in names: N prompts, P prompt tokens, T new
tokens.
"""

import contextlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console

from w2s_jax import sharding
from w2s_jax.core import errors
from w2s_jax.models import adapting, exporting, network
from w2s_jax.models.config import ModelConfig
from w2s_jax.models.generation import Generator
from w2s_jax.models.inference import fits_on_one_device
from w2s_jax.perf import measuring
from w2s_jax.perf.measuring import Record
from w2s_jax.perf.peer import Child

#: Prompts that are completed at a time.
BATCH_SIZE = 32
#: Smallest share of the prompts after which both sides must write the same first token. The best
#: two of many logits are close, so that rounding to bfloat16 swaps some.
AGREEMENT = {"float32": 0.9, "bfloat16": 0.5}


@dataclass(frozen=True)
class Job:
    """What is completed.

    Attributes:
      model: a decoder.
      dtype: compute dtype; the weights are rounded to it.
      prompts: N, the number of prompts.
      prompt_tokens: P, tokens of each prompt.
      new_tokens: T, tokens that are written after each.
    """

    model: ModelConfig
    dtype: str
    prompts: int
    prompt_tokens: int
    new_tokens: int

    def check(self, peer: str | None) -> None:
        """Check the model, the numbers, and that a peer can run them.

        Raises:
          InputError: the model is an encoder, its learned positions do not suffice, or the peer is
            not 'torch' or has no such model.
        """
        model, tokens = self.model, self.prompt_tokens + self.new_tokens
        if model.bidirectional:
            raise errors.InputError(
                f"--model: {model.name} is an encoder, which cannot generate; use a decoder"
            )
        if model.positions == "learned" and tokens > model.max_positions:
            raise errors.InputError(
                f"--prompt_tokens: {self.prompt_tokens}, with --new_tokens={self.new_tokens}; "
                f"{model.name} has only {model.max_positions} positions"
            )
        if peer is not None:
            if peer != "torch":
                raise errors.InputError(f"bench generate: --peer={peer}; allowed: torch")
            exporting.family_for(model)

    def prompts_NP(self) -> np.ndarray:
        """Return the prompts, random tokens, int32 [N, P]."""
        shape = self.prompts, self.prompt_tokens
        return np.random.default_rng(1).integers(0, self.model.vocab_size, shape, np.int32)


class Completer:
    """Completes the prompts of a job.

    Args:
      job: what is completed.
      params: the backbone in the job's dtype.
      new_tokens: tokens to write after each prompt (None: those of the job).
    """

    def __init__(self, job: Job, params: Any, new_tokens: int | None = None):
        self.params, self.prompts = params, list(job.prompts_NP())
        self.tokens_NT = np.zeros((job.prompts, new_tokens or job.new_tokens), np.int32)
        mesh, per_device = sharding.make_mesh(), fits_on_one_device(params, job.dtype)
        shards = jax.device_count() if per_device else sharding.row_shards(mesh)
        self.generator = Generator(
            job.model,
            mesh,
            max_new_tokens=self.tokens_NT.shape[1],
            eos=None,
            compute_dtype=job.dtype,
            per_device=per_device,
            batch_size=max(1, BATCH_SIZE // shards),
            logprobs=False,
        )
        planned = self.generator.plan(self.prompts)
        self.batches = len(planned)
        self.batch_size = max(len(dispatch.rows_B) for dispatch in planned)

    def run(self) -> float:
        """Complete all prompts; return the seconds until the tokens are on the host."""
        jax.block_until_ready(self.params)
        started = time.perf_counter()
        finished = [batch for _, batch in self.generator.batches(self.params, self.prompts)]
        seconds = time.perf_counter() - started
        for batch in finished:
            self.tokens_NT[batch.rows_B] = batch.tokens_BT
        return seconds


class GenerationPeer(Child):
    """transformers' `generate` in a child process; see `torch_generation`.

    Args:
      name: name of the peer.
      job: what is completed.
      params: the backbone that our side runs.
    """

    job_name = "job"

    def __init__(self, name: str, job: Job, params: Any):
        super().__init__(name)
        write_job(self.job, job, params)


def write_job(folder: Path, job: Job, params: Any) -> None:
    """Write a model folder and what `torch_generation.read_job` needs beside it."""
    exporting.export_huggingface(job.model, params, folder / "model")
    settings = {"dtype": job.dtype, "new_tokens": job.new_tokens, "batch_size": BATCH_SIZE}
    (folder / "settings.json").write_text(json.dumps(settings))
    np.save(folder / "prompts.npy", job.prompts_NP())


def random_params(job: Job) -> Any:
    """Return a backbone of random numbers in the job's dtype."""
    params = network.init_params(job.model, 0, sharding.make_mesh())
    return adapting.cast(params, job.dtype)


def measure(job: Job, *, repeats: int, peer: str | None = None) -> Record:
    """Measure how fast prompts are completed.

    The first run on each side, which compiles, does not count; after it the sides take turns.

    Args:
      job: what is completed.
      repeats: repetitions on each side.
      peer: 'torch', or None.

    Raises:
      InputError: see `Job.check`.
      RuntimeError: the peer's first tokens differ from ours.
    """
    job.check(peer)
    params = random_params(job)
    whole, first = Completer(job, params), Completer(job, params, new_tokens=1)
    with contextlib.ExitStack() as stack:
        other = None if peer is None else stack.enter_context(GenerationPeer(peer, job, params))
        compiling = whole.run()
        first.run()
        more: Record = {}
        if other is not None:
            other.run()
            more = agreement(job, whole.tokens_NT, other.outputs()[0])
        runs = [whole.run, first.run] + ([] if other is None else [other.run])
        seconds = measuring.interleaved(runs, repeats)
        record = _record(job, whole, seconds, compiling)
        if other is not None:
            record |= measuring.paired_ratio(seconds[0], seconds[2])
            prefill = float(other.facts["prefill_seconds"])
            record["peer"] = {
                "name": peer,
                **other.facts,
                **more,
                **_times(job, seconds[2], prefill, -(-job.prompts // BATCH_SIZE)),
                "peak_memory": other.outputs()[1],
            }
    return record


def agreement(job: Job, ours_NT: np.ndarray, theirs_NT: np.ndarray) -> Record:
    """Return the shares of first tokens and of all tokens that are the same on both sides.

    Raises:
      RuntimeError: fewer of the first tokens are the same than rounding explains.
    """
    same_NT = ours_NT == theirs_NT
    found = {
        "same_first_tokens": float(same_NT[:, 0].mean()),
        "same_tokens": float(same_NT.mean()),
    }
    least = AGREEMENT[job.dtype]
    if found["same_first_tokens"] < least:
        raise RuntimeError(
            f"the peer computes something else: {found['same_first_tokens']:.0%} of the first "
            f"tokens are the same; rounding explains no less than {least:.0%}"
        )
    return found


def _times(job: Job, seconds: Sequence[float], prefill: float, batches: int) -> Record:
    """Return what both sides report about their repetitions.

    Args:
      job: what was completed.
      seconds: of the repetitions.
      prefill: seconds of a run that writes one token after each prompt.
      batches: number of batches.
    """
    times = measuring.spread(seconds)
    steps = batches * (job.new_tokens - 1)
    return {
        "seconds": times,
        "prompts_per_second": job.prompts / times["median"],
        "new_tokens_per_second": job.prompts * job.new_tokens / times["median"],
        "prefill_seconds": prefill,
        "step_seconds": max(0.0, times["median"] - prefill) / steps if steps else None,
    }


def _record(job: Job, whole: Completer, seconds: list[list[float]], compiling: float) -> Record:
    prefill = measuring.spread(seconds[1])["median"]
    times = _times(job, seconds[0], prefill, whole.batches)
    return {
        "bench": "generate",
        "model": job.model.name,
        "parameters": job.model.num_parameters(),
        "dtype": job.dtype,
        **measuring.surroundings(),
        "prompts": job.prompts,
        "prompt_tokens": job.prompt_tokens,
        "new_tokens": job.new_tokens,
        "batch_size": whole.batch_size,
        "repeats": len(seconds[0]),
        **times,
        "compile_seconds": max(0.0, compiling - times["seconds"]["median"]),
        **measuring.peak_memory(),
    }


def print_records(records: Sequence[Record], console: Console) -> None:
    """Print a table of the records of `measure`."""
    first = records[0]
    columns = ["model", "prompt", "new", "prompts/s", "new tokens/s", "seconds", "prefill"]
    columns += ["ms/step", "compile"]
    note = (
        f"{first['dtype']} on {first['device_count']} x {first['device_kind']}; "
        f"{first['prompts']} prompts, at most {BATCH_SIZE} at a time, greedy. prompt, new: tokens "
        "of each; seconds: median of the repetitions (quartiles); prefill: seconds until the first "
        "new token; ms/step: one more token of each prompt of a batch; compile: time of the first "
        "run beyond the median."
    )
    if "ratio" in first:
        columns += ["ratio", "peer variant"]
        note += (
            f"\nratio: our new tokens/s over those of {first['peer']['name']} (transformers' "
            "generate, the fastest variant), median of the pairs of repetitions (quartiles); the "
            "two sides took turns."
        )
    rows = [_cells(record) for record in records]
    print_table = measuring.print_table
    print_table(console, "generation", columns, rows, note, text=("model", "peer variant"))


def _cells(record: Record) -> list[str]:
    step = record["step_seconds"]
    cells = [
        record["model"],
        str(record["prompt_tokens"]),
        str(record["new_tokens"]),
        f"{record['prompts_per_second']:,.1f}",
        f"{record['new_tokens_per_second']:,.0f}",
        measuring.with_quartiles(record["seconds"], 3),
        f"{record['prefill_seconds']:.3f}",
        "n/a" if step is None else f"{1000 * step:.1f}",
        f"{record['compile_seconds']:.1f}",
    ]
    if "ratio" in record:
        cells += [measuring.with_quartiles(record["ratio_spread"], 2), record["peer"]["variant"]]
    return cells
