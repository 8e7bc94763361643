"""`w2s bench`: the benchmarks and the checks of their options."""

import dataclasses
from dataclasses import dataclass

from ml_collections import config_dict
from rich.console import Console

from w2s_jax.config import DTYPES
from w2s_jax.core import errors
from w2s_jax.perf import data, peer, workloads
from w2s_jax.perf.measuring import Record
from w2s_jax.perf.workloads import Workload

BENCHES = ("train", "label", "data", "population", "compile", "checkpoint", "all")
#: Default number of repetitions; repetitions and documents of the quick benchmark 'all'.
REPEATS, QUICK_REPEATS, QUICK_DOCUMENTS = 7, 3, 128


@dataclass(frozen=True)
class Options:
    """Options of the command line.

    Attributes:
      model: '16m', or a name that `w2s models` lists.
      mixes: distributions of document lengths, keys of `perf.data.MIXES`.
      dtype: compute dtype.
      loss: training loss.
      documents: documents per repetition; None: about one second's worth (`QUICK_DOCUMENTS` for
        'all').
      repeats: number of repetitions; None: `REPEATS` (`QUICK_REPEATS` for 'all').
      peer: None, or one of `peer.PEERS`.
    """

    model: str = "16m"
    mixes: tuple[str, ...] = tuple(data.MIXES)
    dtype: str = "bfloat16"
    loss: str = "xent"
    documents: int | None = None
    repeats: int | None = None
    peer: str | None = None

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
    if options.peer is not None and what not in ("train", "label", "all"):
        raise errors.InputError(
            f"bench {what}: --peer={options.peer} works with train, label and all only"
        )
    quick = what == "all"
    options = dataclasses.replace(
        options,
        repeats=options.repeats or (QUICK_REPEATS if quick else REPEATS),
        documents=options.documents or (QUICK_DOCUMENTS if quick else None),
    )
    records: list[Record] = []
    for name in BENCHES[:-1] if quick else (what,):
        if name == "data":
            records += data.bench(console, config)
        elif name == "population":
            records += _population(options, console)
        elif name == "compile":
            records += _compile(options, console)
        elif name == "checkpoint":
            records += _checkpoint(options, console)
        else:
            records += _throughput(name, options, console, config)
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
