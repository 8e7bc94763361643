"""The PyTorch side of `w2s bench generate`: transformers' `generate` with a cache.

The fastest of a few variants is the peer: if the job's dtype is bfloat16, float32 is tried too
(with the same rounded weights), as some CPUs multiply bfloat16 numbers slowly; then another
implementation of attention. Shapes in names: N prompts, P prompt tokens, T new tokens.
"""

import dataclasses
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, GenerationConfig

from w2s_jax.perf.torch_programs import TRIAL_SECONDS, TRIALS, device, wait

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class GenerationJob:
    """What is completed.

    Attributes:
      folder: a model in Hugging Face's format.
      prompts_NP: int64 token ids.
      dtype: compute dtype.
      new_tokens: T.
      batch_size: prompts that are completed at a time.
    """

    folder: Path
    prompts_NP: np.ndarray
    dtype: str
    new_tokens: int
    batch_size: int


@dataclass(frozen=True)
class Variant:
    """One way to run a job.

    Attributes:
      dtype: dtype of weights, activations and cache.
      attention: 'sdpa' or 'eager', as transformers calls them.
    """

    dtype: str
    attention: str = "sdpa"

    @property
    def name(self) -> str:
        """Display name, such as 'bfloat16, sdpa'."""
        return f"{self.dtype}, {self.attention}"


def read_job(folder: Path) -> GenerationJob:
    """Read what `generating.write_job` wrote."""
    prompts_NP = np.load(folder / "prompts.npy").astype(np.int64)
    settings = json.loads((folder / "settings.json").read_text())
    return GenerationJob(folder / "model", prompts_NP, **settings)


class Completer:
    """Completes the prompts of a job with one variant."""

    def __init__(self, job: GenerationJob, variant: Variant):
        self.job = job
        model: Any = AutoModelForCausalLM.from_pretrained(
            job.folder, dtype=_DTYPES[variant.dtype], attn_implementation=variant.attention
        )
        self.model = model.to(device()).eval()
        batches = torch.from_numpy(job.prompts_NP).split(job.batch_size)
        self.batches = [batch.to(device()) for batch in batches]

    @torch.inference_mode()
    def run(self, new_tokens: int | None = None) -> tuple[float, np.ndarray]:
        """Complete all prompts.

        Args:
          new_tokens: tokens to write after each (None: those of the job).

        Returns:
          The seconds until the tokens are on the host, and the tokens, int64 [N, T].
        """
        # Without an end token no completion ends early, and nothing needs to forbid it.
        settings = GenerationConfig(
            do_sample=False,
            max_new_tokens=new_tokens or self.job.new_tokens,
            eos_token_id=None,
            pad_token_id=0,
            use_cache=True,
        )
        wait()
        started = time.perf_counter()
        parts = []
        for batch in self.batches:
            # Token 0 is a token like others here; without a mask it would be taken for padding.
            mask = torch.ones_like(batch)
            out = self.model.generate(batch, attention_mask=mask, generation_config=settings)
            parts.append(out[:, batch.shape[1] :])
        tokens_NT = torch.cat(parts).cpu().numpy()
        return time.perf_counter() - started, tokens_NT


def make_program(job: GenerationJob) -> tuple[Completer, str, dict[str, float]]:
    """Return the fastest variant, its name, and the seconds of a run of each variant."""
    trials: dict[str, float] = {}
    best = Variant(job.dtype)
    _try(job, best, trials)
    changes = [{"dtype": "float32"}] * (job.dtype != "float32") + [{"attention": "eager"}]
    for change in changes:
        other = dataclasses.replace(best, **change)
        if _try(job, other, trials) < trials[best.name]:
            best = other
    return Completer(job, best), best.name, trials


def _try(job: GenerationJob, variant: Variant, trials: dict[str, float]) -> float:
    """Return the time of a run of the whole job, and keep it in `trials`."""
    program = Completer(job, variant)
    program.run(min(2, job.new_tokens))
    seconds: list[float] = []
    while len(seconds) < TRIALS and sum(seconds) < TRIAL_SECONDS:
        seconds.append(program.run()[0])
    trials[variant.name] = min(seconds)
    return trials[variant.name]


def prefill_seconds(program: Completer) -> float:
    """Return the time of a run that writes one token after each prompt: the median of three."""
    return float(np.median([program.run(1)[0] for _ in range(3)]))
