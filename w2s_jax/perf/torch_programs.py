"""PyTorch's side of a comparison: training and labelling, in the fastest of several variants.

'torch' is the strongest baseline that we know how to write (see `torch_gpt2`); 'torch-released'
does what the code released with the paper does: float32, one document at a time, no packing.
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

#: A variant is tried until it has run this long, and at most so often.
TRIAL_SECONDS, TRIALS = 0.5, 4

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Task:
    """What is to be done.

    Attributes:
      bench: 'train' or 'label'.
      peer: 'torch' or 'torch-released'.
      dtype: of the computation; trained parameters are float32.
      loss: 'xent' or 'confidence'.
      batch_size, learning_rate, beta1, beta2: of training.
      total_steps: of the epoch whose first batches are `order_SB`.
      documents: token ids.
      targets_N: float32 P(label 1).
      order_SB: the documents of each batch; of a label pass None.
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
    """One way to do it.

    Attributes:
      layout, count: see `torch_gpt2.make_batch`; of labelling `count` is the batch size.
      precision: 'float32', 'manual' (weights are cast once a step) or 'autocast'.
      adam: 'fused' or 'foreach'.
      compiled: through torch.compile.
    """

    layout: str
    count: int
    precision: str
    adam: str = "fused"
    compiled: bool = False

    @property
    def name(self) -> str:
        """For people: 'packed 4, manual, fused'."""
        parts = [f"{self.layout} {self.count}", self.precision, self.adam]
        return ", ".join(parts + ["compiled"] * self.compiled)


def device() -> str:
    """'cuda' or 'cpu'."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def wait() -> None:
    """Until the device has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


class Trainer:
    """Trains in one variant, from the task's parameters on."""

    def __init__(self, task: Task, variant: Variant, steps: int | None = None):
        assert task.order_SB is not None
        self.task, self.variant = task, variant
        self.weights = read_weights(task.flat, device(), trainable=True)
        self.adam = torch.optim.Adam(
            self.weights.parameters(),
            lr=task.learning_rate,
            betas=(task.beta1, task.beta2),
            fused=variant.adam == "fused",
            foreach=variant.adam == "foreach",
        )
        self.forward = torch.compile(logits, dynamic=True) if variant.compiled else logits
        self.total_steps = task.total_steps
        self.batches = []
        for order_B in task.order_SB[:steps]:
            documents = [task.documents[i] for i in order_B]
            batch = make_batch(documents, variant.layout, variant.count, device())
            targets_BC = _soft(task.targets_N[order_B]).to(device())
            self.batches.append((batch, targets_BC))

    def step(self, number: int) -> Tensor:
        """One update; its loss, still on the device."""
        batch, targets_BC = self.batches[number]
        fraction = number / self.total_steps
        rate = self.task.learning_rate * 0.5 * (1 + math.cos(math.pi * fraction))
        for group in self.adam.param_groups:
            group["lr"] = rate
        self.adam.zero_grad(set_to_none=True)
        loss = self.loss(batch, targets_BC, fraction)
        loss.backward()
        self.adam.step()
        return loss.detach()

    def loss(self, batch: Batch, targets_BC: Tensor, fraction: float) -> Tensor:
        """The loss of a batch."""
        if self.variant.precision == "autocast":
            with torch.autocast(device(), dtype=_DTYPES[self.task.dtype]):
                logits_BC = self.forward(self.weights, batch, torch.float32)
        else:
            logits_BC = self.forward(self._cast(), batch, _DTYPES[self.task.dtype])
        return batch_loss(logits_BC.float(), targets_BC, self.task.loss, fraction)

    def _cast(self) -> Weights:
        if self.variant.precision == "float32":
            return self.weights
        return self.weights.cast(_DTYPES[self.task.dtype], embeddings=False)

    def run(self) -> tuple[float, np.ndarray]:
        """Seconds of all steps, and their losses."""
        wait()
        started = time.perf_counter()
        losses = [self.step(number) for number in range(len(self.batches))]
        wait()
        seconds = time.perf_counter() - started
        return seconds, torch.stack(losses).cpu().numpy()


class Labeller:
    """Labels in one variant: batches of documents of similar length."""

    def __init__(self, task: Task, variant: Variant, documents: Sequence[int] | None = None):
        kind = _DTYPES[task.dtype]
        weights = read_weights(task.flat, device(), trainable=False)
        self.weights = weights if kind is torch.float32 else weights.cast(kind, embeddings=True)
        self.dtype = kind
        chosen = list(range(len(task.documents))) if documents is None else list(documents)
        chosen.sort(key=lambda i: len(task.documents[i]))
        self.batches = []
        for start in range(0, len(chosen), variant.count):
            part = chosen[start : start + variant.count]
            held = [task.documents[i] for i in part]
            self.batches.append((part, make_batch(held, variant.layout, 1, device())))
        self.forward = torch.compile(logits, dynamic=True) if variant.compiled else logits
        self.shape = (len(task.documents), 2)

    @torch.inference_mode()
    def run(self) -> tuple[float, np.ndarray]:
        """Seconds, and the logits on the host."""
        wait()
        started = time.perf_counter()
        outputs = [self.forward(self.weights, batch, self.dtype) for _, batch in self.batches]
        logits_NC = np.zeros(self.shape, np.float32)
        for (part, _), out in zip(self.batches, outputs, strict=True):
            logits_NC[part] = out.cpu().numpy()
        return time.perf_counter() - started, logits_NC


def _soft(targets_N: np.ndarray) -> Tensor:
    return torch.from_numpy(np.stack([1.0 - targets_N, targets_N], axis=1).astype(np.float32))


def strongest(task: Task) -> tuple[Any, Variant, dict[str, float]]:
    """(what runs the fastest variant, that variant, seconds of a trial of each).

    First the layout is chosen, then how precision is handled, then the optimiser.
    """
    precision = "float32" if task.dtype == "float32" else "manual"
    counts = (1, 2, 4, 8) if task.bench == "train" else (16, 32, 64, 128)
    first = [Variant(layout, n, precision) for layout in ("packed", "padded") for n in counts]
    if task.bench == "train":
        first.append(Variant("nested", 1, precision))
    else:
        first += [Variant("nested", n, precision) for n in counts]
    # What is changed, if that turns out to be faster, in the best one so far.
    changes: list[dict[str, Any]] = []
    if task.bench == "train":
        changes = [{"precision": "autocast"}] * (precision == "manual") + [{"adam": "foreach"}]
    if device() == "cuda":
        changes.append({"compiled": True})
    trials: dict[str, float] = {}
    make = _trial_of(task)
    best = min(first, key=lambda variant: _tried(make, variant, trials))
    for change in changes:
        other = dataclasses.replace(best, **change)
        if _tried(make, other, trials) < trials[best.name]:
            best = other
    if not math.isfinite(trials[best.name]):
        raise RuntimeError("no variant of the torch peer ran")
    return _maker(task)(task, best), best, trials


def _maker(task: Task) -> Callable[..., Any]:
    return Trainer if task.bench == "train" else Labeller


def _trial_of(task: Task) -> Callable[[Variant], Any]:
    """Makes a variant on a few batches of the task."""
    if task.bench == "train":
        return lambda variant: Trainer(task, variant, steps=2)
    every = max(1, len(task.documents) // 256)
    return lambda variant: Labeller(task, variant, range(0, len(task.documents), every))


def _tried(make: Callable[[Variant], Any], variant: Variant, trials: dict[str, float]) -> float:
    """Seconds of a variant on a few batches; infinite if it cannot run here."""
    try:
        program = make(variant)
        program.run()
        seconds: list[float] = []
        while len(seconds) < TRIALS and (not seconds or sum(seconds) < TRIAL_SECONDS):
            seconds.append(program.run()[0])
        trials[variant.name] = min(seconds)
    except (RuntimeError, NotImplementedError):
        # Some kernels exist on some devices only.
        trials[variant.name] = math.inf
    return trials[variant.name]


class ReleasedTrainer:
    """The released loop: a forward pass a document, one loss and backward pass a batch, Adam."""

    def __init__(self, task: Task):
        assert task.order_SB is not None
        self.task = task
        self.weights = read_weights(task.flat, device(), trainable=True)
        self.adam = torch.optim.Adam(
            self.weights.parameters(), lr=task.learning_rate, betas=(task.beta1, task.beta2)
        )

    def run(self) -> tuple[float, np.ndarray]:
        """Seconds of all steps, and their losses."""
        task, losses = self.task, []
        assert task.order_SB is not None
        wait()
        started = time.perf_counter()
        for number, order_B in enumerate(task.order_SB):
            fraction = number / task.total_steps
            for group in self.adam.param_groups:
                group["lr"] = task.learning_rate * 0.5 * (1 + math.cos(math.pi * fraction))
            rows = [released_logits(self.weights, task.documents[i]) for i in order_B]
            targets_BC = _soft(task.targets_N[order_B]).to(device())
            loss = batch_loss(torch.cat(rows), targets_BC, task.loss, fraction)
            loss.backward()
            losses.append(loss.item())
            self.adam.step()
            self.adam.zero_grad()
        wait()
        return time.perf_counter() - started, np.array(losses, np.float32)


class ReleasedLabeller:
    """The released evaluation with its default minibatch: a document at a time."""

    def __init__(self, task: Task):
        self.task = task
        self.weights = read_weights(task.flat, device(), trainable=False)

    @torch.no_grad()
    def run(self) -> tuple[float, np.ndarray]:
        """Seconds, and the logits."""
        wait()
        started = time.perf_counter()
        rows = [released_logits(self.weights, tokens).cpu() for tokens in self.task.documents]
        return time.perf_counter() - started, torch.cat(rows).numpy()


def released_logits(weights: Weights, tokens_L: np.ndarray) -> Tensor:
    """Class logits of one document, float32 [1, C]: all layers at all positions."""
    batch = make_batch([tokens_L], "padded", 1, device())
    return hidden(weights, batch, torch.float32)[batch.read_outs_B] @ weights.head.T


def make_program(task: Task) -> tuple[Any, str, dict[str, float]]:
    """(what has `run`, the variant's name, seconds of the trials of all variants)."""
    if task.peer == "torch-released":
        kind = ReleasedTrainer if task.bench == "train" else ReleasedLabeller
        return kind(task), "minibatch 1, float32", {}
    program, variant, trials = strongest(task)
    return program, variant.name, trials
