"""`w2s bench`: the benchmarks and the checks of their options."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ml_collections import config_dict
from rich.console import Console

from w2s_jax.config import DTYPES
from w2s_jax.core import errors
from w2s_jax.perf import data, peer, workloads
from w2s_jax.perf.measuring import Record
from w2s_jax.perf.workloads import Workload

if TYPE_CHECKING:
    from w2s_jax.perf.generating import Job

BENCHES = ("train", "label", "generate", "data", "population", "compile", "checkpoint", "all")
#: Default number of repetitions; repetitions and documents of the quick benchmark 'all'.
REPEATS, QUICK_REPEATS, QUICK_DOCUMENTS = 7, 3, 128
#: Tokens of the prompts and new tokens of 'generate', whose repetitions take longer than others';
#: those of the quick benchmark 'all'.
PROMPT_TOKENS, NEW_TOKENS, GENERATE_REPEATS = (64, 512), (32, 256), 3
QUICK_PROMPT_TOKENS, QUICK_NEW_TOKENS = (64,), (32,)


@dataclass(frozen=True)
class Options:
    """Options of the command line.

    Attributes:
      model: '16m', or a name that `w2s models` lists.
      mixes: distributions of document lengths, keys of `perf.data.MIXES`.
      dtype: compute dtype.
      loss: training loss.
      documents: documents per repetition; None: about one second's worth (`QUICK_DOCUMENTS` for
        'all'). For 'generate' prompts per repetition; None: one batch.
      repeats: number of repetitions; None: `REPEATS` (`GENERATE_REPEATS` for 'generate',
        `QUICK_REPEATS` for 'all').
      peer: None, or one of `peer.PEERS`.
      prompt_tokens, new_tokens: lengths of prompts and completions of 'generate', each with each;
        None: `PROMPT_TOKENS` and `NEW_TOKENS` (`QUICK_...` for 'all').
    """

    model: str = "16m"
    mixes: tuple[str, ...] = tuple(data.MIXES)
    dtype: str = "bfloat16"
    loss: str = "xent"
    documents: int | None = None
    repeats: int | None = None
    peer: str | None = None
    prompt_tokens: tuple[int, ...] | None = None
    new_tokens: tuple[int, ...] | None = None

    def check(self) -> None:
        """Check all values.

        Raises:
          InputError: a value is unknown or out of range, or the peer is not installed.
        """
        for mix in self.mixes:
            if mix not in data.MIXES:
                raise errors.unknown("--mix", mix, data.MIXES)
        if self.dtype not in DTYPES:
            raise errors.unknown("--dtype", self.dtype, DTYPES)
        if self.loss not in peer.LOSSES:
            raise errors.unknown("--loss", self.loss, peer.LOSSES)
        if self.repeats is not None and self.repeats < 1:
            raise errors.InputError(f"--repeats: {self.repeats}; allowed: at least 1")
        if self.documents is not None and self.documents < data.BATCH_SIZE:
            raise errors.InputError(
                f"--documents: {self.documents}; allowed: at least {data.BATCH_SIZE} (one batch)"
            )
        if self.peer is not None:
            peer.check_installed(self.peer)
        workloads.find_model(self.model)


def as_counts(flag: str, text: str | None) -> tuple[int, ...] | None:
    """Return the numbers of a flag, such as '64,512'; None for None.

    Raises:
      InputError: one is not a whole number of at least 1.
    """
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) for part in parts):
        raise errors.InputError(
            f"{flag}: {errors.shown(text)}; allowed: whole numbers of at least 1, separated by "
            "commas, such as 64,512"
        )
    return tuple(int(part) for part in parts)


def run(
    what: str,
    options: Options,
    console: Console,
    config: config_dict.ConfigDict | None = None,
) -> list[Record]:
    """Run a benchmark and print its tables.

    Args:
      what: one of `BENCHES`.
      options: what to measure, and how often.
      console: where to print.
      config: a recipe to measure instead of a model and mixes (for 'data': in addition to them).

    Returns:
      One record per row of the tables.

    Raises:
      InputError: the options or the config are invalid, or the peer does not support them.
    """
    if what not in BENCHES:
        raise errors.unknown("bench", what, BENCHES)
    options.check()
    if config is not None and what not in ("train", "label", "data"):
        raise errors.InputError(f"bench {what}: --config works with train, label and data only")
    if options.peer is not None and what not in ("train", "label", "generate", "all"):
        raise errors.InputError(
            f"bench {what}: --peer={options.peer} works with train, label, generate and all only"
        )
    for name in ("prompt_tokens", "new_tokens"):
        if getattr(options, name) is not None and what not in ("generate", "all"):
            raise errors.InputError(f"bench {what}: --{name} works with generate and all only")
    quick = what == "all"
    jobs = _generation_jobs(options, quick) if quick or what == "generate" else []
    default_repeats = GENERATE_REPEATS if what == "generate" else REPEATS
    options = dataclasses.replace(
        options,
        repeats=options.repeats or (QUICK_REPEATS if quick else default_repeats),
        documents=options.documents or (QUICK_DOCUMENTS if quick else None),
    )
    records: list[Record] = []
    for name in BENCHES[:-1] if quick else (what,):
        if name == "data":
            records += data.bench(console, config)
        elif name == "generate":
            records += _generate(jobs, options, console, quick)
        elif name == "population":
            records += _population(options, console)
        elif name == "compile":
            records += _compile(options, console)
        elif name == "checkpoint":
            records += _checkpoint(options, console)
        else:
            records += _throughput(name, options, console, config)
    return records


def _generation_peer(options: Options, quick: bool) -> str | None:
    """Return the peer of 'generate'. The released code generates nothing: 'all' goes without it."""
    return None if quick and options.peer == "torch-released" else options.peer


def _generation_jobs(options: Options, quick: bool) -> "list[Job]":
    """Return what 'generate' measures, checked before anything is measured."""
    from w2s_jax.perf import generating

    model = workloads.find_model(options.model)
    if quick and model.bidirectional:
        return []  # 'all' runs what there is for a model, and encoders do not generate.
    jobs = [
        generating.Job(
            model, options.dtype, options.documents or generating.BATCH_SIZE, prompt, new
        )
        for prompt in options.prompt_tokens or (QUICK_PROMPT_TOKENS if quick else PROMPT_TOKENS)
        for new in options.new_tokens or (QUICK_NEW_TOKENS if quick else NEW_TOKENS)
    ]
    for job in jobs:
        job.check(_generation_peer(options, quick))
    return jobs


def _generate(
    jobs: "Sequence[Job]", options: Options, console: Console, quick: bool
) -> list[Record]:
    from w2s_jax.perf import generating

    if not jobs:
        return []
    assert options.repeats is not None
    peer = _generation_peer(options, quick)
    records = [generating.measure(job, repeats=options.repeats, peer=peer) for job in jobs]
    generating.print_records(records, console)
    return records


def _compile(options: Options, console: Console) -> list[Record]:
    from w2s_jax.perf import compiling

    records = compiling.measure(options.model, options.mixes[0], options.dtype, options.loss)
    compiling.print_records(records, console)
    return records


def _checkpoint(options: Options, console: Console) -> list[Record]:
    from w2s_jax.perf import checkpointing

    assert options.repeats is not None
    model = workloads.find_model(options.model)
    records = [checkpointing.measure(model, repeats=options.repeats)]
    checkpointing.print_records(records, console)
    return records


def _population(options: Options, console: Console) -> list[Record]:
    from w2s_jax.perf import population_bench

    chosen = _mix_workloads("train", options)
    assert options.repeats is not None
    records = [population_bench.measure(workload, repeats=options.repeats) for workload in chosen]
    population_bench.print_records(records, console)
    return records


def _throughput(
    bench: str, options: Options, console: Console, config: config_dict.ConfigDict | None
) -> list[Record]:
    from w2s_jax.perf import recipes, throughput

    chosen = [recipes.recipe_workload(config)] if config else _mix_workloads(bench, options)
    assert options.repeats is not None
    records = [
        throughput.measure(bench, workload, repeats=options.repeats, peer=options.peer)
        for workload in chosen
    ]
    throughput.print_records(records, console)
    return records


def _mix_workloads(bench: str, options: Options) -> list[Workload]:
    import jax

    model = workloads.find_model(options.model)
    return [
        workloads.mix_workload(
            model,
            mix,
            dtype=options.dtype,
            loss=options.loss,
            documents=options.documents,
            accelerated=jax.default_backend() != "cpu",
            labels=bench == "label",
        )
        for mix in options.mixes
    ]
