"""The PyTorch side of a comparison: training and labelling, with the fastest of several variants.

'torch' is the strongest baseline we know how to write (see `torch_gpt2`). 'torch-released' works
like the code released with the paper: float32, one document at a time, no packing.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from w2s_jax.perf.torch_gpt2 import (
    Batch,
    Weights,
    batch_loss,
    hidden,
    logits,
    make_batch,
    read_weights,
)

#: A variant's trial ends after this many seconds or repetitions.
TRIAL_SECONDS, TRIALS = 0.5, 4

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class PeerJob:
    """Documents, settings and initial parameters for a peer.

    Attributes:
      bench: 'train' or 'label'.
      peer: 'torch' or 'torch-released'.
      dtype: compute dtype; trained parameters are float32.
      loss: 'xent' or 'confidence'.
      batch_size, learning_rate, beta1, beta2: training settings.
      total_steps: steps of the whole epoch; `order_SB` holds its first batches.
      documents: token ids of each document.
      targets_N: float32 P(label 1).
      order_SB: documents of each batch; None for a label pass.
      flat: parameters by flat path.
    """

    bench: str
    peer: str
    dtype: str
    loss: str
    batch_size: int
    total_steps: int
    learning_rate: float
    beta1: float
    beta2: float
    documents: list[np.ndarray]
    targets_N: np.ndarray
    order_SB: np.ndarray | None
    flat: dict[str, np.ndarray]


@dataclass(frozen=True)
class Variant:
    """One implementation of a job.

    Attributes:
      layout, count: see `torch_gpt2.make_batch`; for labelling, `count` is the batch size.
      precision: 'float32', 'manual' (weights are cast once per step) or 'autocast'.
      adam: 'fused' or 'foreach'.
      compiled: use torch.compile.
    """

    layout: str
    count: int
    precision: str
    adam: str = "fused"
    compiled: bool = False

    @property
    def name(self) -> str:
        """Display name, such as 'packed 4, manual, fused'."""
        parts = [f"{self.layout} {self.count}", self.precision, self.adam]
        return ", ".join(parts + ["compiled"] * self.compiled)


def device() -> str:
    """Return 'cuda' if available, otherwise 'cpu'."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def wait() -> None:
    """Block until the device is idle."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


class Trainer:
    """Training with one variant, from the job's initial parameters."""

    def __init__(self, job: PeerJob, variant: Variant, steps: int | None = None):
        assert job.order_SB is not None
        self.job, self.variant = job, variant
        self.weights = read_weights(job.flat, device(), trainable=True)
        self.adam = torch.optim.Adam(
            self.weights.parameters(),
            lr=job.learning_rate,
            betas=(job.beta1, job.beta2),
            fused=variant.adam == "fused",
            foreach=variant.adam == "foreach",
        )
        self.forward = torch.compile(logits, dynamic=True) if variant.compiled else logits
        self.total_steps = job.total_steps
        self.batches = []
        for order_B in job.order_SB[:steps]:
            documents = [job.documents[i] for i in order_B]
            batch = make_batch(documents, variant.layout, variant.count, device())
            targets_BC = _soft(job.targets_N[order_B]).to(device())
            self.batches.append((batch, targets_BC))

    def step(self, number: int) -> Tensor:
        """Apply one update; return its loss, still on the device."""
        batch, targets_BC = self.batches[number]
        fraction = number / self.total_steps
        rate = self.job.learning_rate * 0.5 * (1 + math.cos(math.pi * fraction))
        for group in self.adam.param_groups:
            group["lr"] = rate
        self.adam.zero_grad(set_to_none=True)
        loss = self.loss(batch, targets_BC, fraction)
        loss.backward()
        self.adam.step()
        return loss.detach()

    def loss(self, batch: Batch, targets_BC: Tensor, fraction: float) -> Tensor:
        """Return the loss of a batch."""
        if self.variant.precision == "autocast":
            with torch.autocast(device(), dtype=_DTYPES[self.job.dtype]):
                logits_BC = self.forward(self.weights, batch, torch.float32)
        else:
            logits_BC = self.forward(self._cast(), batch, _DTYPES[self.job.dtype])
        return batch_loss(logits_BC.float(), targets_BC, self.job.loss, fraction)

    def _cast(self) -> Weights:
        if self.variant.precision == "float32":
            return self.weights
        return self.weights.cast(_DTYPES[self.job.dtype], embeddings=False)

    def run(self) -> tuple[float, np.ndarray]:
        """Run all steps; return the time in seconds and the losses."""
        wait()
        started = time.perf_counter()
        losses = [self.step(number) for number in range(len(self.batches))]
        wait()
        seconds = time.perf_counter() - started
        return seconds, torch.stack(losses).cpu().numpy()


class Labeller:
    """Labelling with one variant, in batches of documents of similar length."""

    def __init__(self, job: PeerJob, variant: Variant, documents: Sequence[int] | None = None):
        kind = _DTYPES[job.dtype]
        weights = read_weights(job.flat, device(), trainable=False)
        self.weights = weights if kind is torch.float32 else weights.cast(kind, embeddings=True)
        self.dtype = kind
        chosen = list(range(len(job.documents))) if documents is None else list(documents)
        chosen.sort(key=lambda i: len(job.documents[i]))
        self.batches = []
        for start in range(0, len(chosen), variant.count):
            part = chosen[start : start + variant.count]
            held = [job.documents[i] for i in part]
            self.batches.append((part, make_batch(held, variant.layout, 1, device())))
        self.forward = torch.compile(logits, dynamic=True) if variant.compiled else logits
        self.shape = (len(job.documents), 2)

    @torch.inference_mode()
    def run(self) -> tuple[float, np.ndarray]:
        """Run the label pass; return the time in seconds and the logits on the host."""
        wait()
        started = time.perf_counter()
        outputs = [self.forward(self.weights, batch, self.dtype) for _, batch in self.batches]
        logits_NC = np.zeros(self.shape, np.float32)
        for (part, _), out in zip(self.batches, outputs, strict=True):
            logits_NC[part] = out.cpu().numpy()
        return time.perf_counter() - started, logits_NC


def _soft(targets_N: np.ndarray) -> Tensor:
    return torch.from_numpy(np.stack([1.0 - targets_N, targets_N], axis=1).astype(np.float32))


def fastest_variant(job: PeerJob) -> tuple[Any, Variant, dict[str, float]]:
    """Find the fastest variant: first its layout, then its precision, then its optimiser.

    Returns:
      The program of the fastest variant, that variant, and the trial time of each in seconds.

    Raises:
      RuntimeError: no variant runs here.
    """
    training = job.bench == "train"
    precision = "float32" if job.dtype == "float32" else "manual"
    counts = (1, 2, 4, 8) if training else (16, 32, 64, 128)
    first = [Variant(layout, n, precision) for layout in ("packed", "padded") for n in counts]
    if training:
        first.append(Variant("nested", 1, precision))
    else:
        first += [Variant("nested", n, precision) for n in counts]
    # Each change is kept if it is faster than the best variant so far.
    changes: list[dict[str, Any]] = []
    if training:
        changes = [{"precision": "autocast"}] * (precision == "manual") + [{"adam": "foreach"}]
    if device() == "cuda":
        changes.append({"compiled": True})
    trials: dict[str, float] = {}
    make = _trial_maker(job)
    best = min(first, key=lambda variant: _trial_seconds(make, variant, trials))
    for change in changes:
        other = dataclasses.replace(best, **change)
        if _trial_seconds(make, other, trials) < trials[best.name]:
            best = other
    if not math.isfinite(trials[best.name]):
        raise RuntimeError("no variant of the torch peer runs on this machine")
    return (Trainer if training else Labeller)(job, best), best, trials


def _trial_maker(job: PeerJob) -> Callable[[Variant], Any]:
    """Return a function that builds a variant on a few batches of the job."""
    if job.bench == "train":
        return lambda variant: Trainer(job, variant, steps=2)
    every = max(1, len(job.documents) // 256)
    return lambda variant: Labeller(job, variant, range(0, len(job.documents), every))


def _trial_seconds(
    make: Callable[[Variant], Any], variant: Variant, trials: dict[str, float]
) -> float:
    """Return the time of a variant on a few batches; infinite if it does not run here."""
    try:
        program = make(variant)
        program.run()
        seconds: list[float] = []
        while len(seconds) < TRIALS and (not seconds or sum(seconds) < TRIAL_SECONDS):
            seconds.append(program.run()[0])
        trials[variant.name] = min(seconds)
    except (RuntimeError, NotImplementedError):
        # Some kernels exist for certain devices only.
        trials[variant.name] = math.inf
    return trials[variant.name]


class ReleasedTrainer:
    """The released loop: a forward pass per document, one backward pass per batch, Adam."""

    def __init__(self, job: PeerJob):
        assert job.order_SB is not None
        self.job = job
        self.weights = read_weights(job.flat, device(), trainable=True)
        self.adam = torch.optim.Adam(
            self.weights.parameters(), lr=job.learning_rate, betas=(job.beta1, job.beta2)
        )

    def run(self) -> tuple[float, np.ndarray]:
        """Run all steps; return the time in seconds and the losses."""
        job, losses = self.job, []
        assert job.order_SB is not None
        wait()
        started = time.perf_counter()
        for number, order_B in enumerate(job.order_SB):
            fraction = number / job.total_steps
            for group in self.adam.param_groups:
                group["lr"] = job.learning_rate * 0.5 * (1 + math.cos(math.pi * fraction))
            rows = [released_logits(self.weights, job.documents[i]) for i in order_B]
            targets_BC = _soft(job.targets_N[order_B]).to(device())
            loss = batch_loss(torch.cat(rows), targets_BC, job.loss, fraction)
            loss.backward()
            losses.append(loss.item())
            self.adam.step()
            self.adam.zero_grad()
        wait()
        return time.perf_counter() - started, np.array(losses, np.float32)


class ReleasedLabeller:
    """The released evaluation with its default minibatch of one document."""

    def __init__(self, job: PeerJob):
        self.job = job
        self.weights = read_weights(job.flat, device(), trainable=False)

    @torch.no_grad()
    def run(self) -> tuple[float, np.ndarray]:
        """Run the label pass; return the time in seconds and the logits."""
        wait()
        started = time.perf_counter()
        rows = [released_logits(self.weights, tokens).cpu() for tokens in self.job.documents]
        return time.perf_counter() - started, torch.cat(rows).numpy()


def released_logits(weights: Weights, tokens_L: np.ndarray) -> Tensor:
    """Return the class logits of one document, float32 [1, C]; computes all positions."""
    batch = make_batch([tokens_L], "padded", 1, device())
    return hidden(weights, batch, torch.float32)[batch.read_outs_B] @ weights.head.T


def make_program(job: PeerJob) -> tuple[Any, str, dict[str, float]]:
    """Build the program of a job.

    Returns:
      An object with a method `run`, the variant's name, and the trial time of each variant in
      seconds.
    """
    if job.peer == "torch-released":
        kind = ReleasedTrainer if job.bench == "train" else ReleasedLabeller
        return kind(job), "minibatch 1, float32", {}
    program, variant, trials = fastest_variant(job)
    return program, variant.name, trials
