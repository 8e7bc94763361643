"""`w2s bench`: which benchmarks there are, and what their command line allows."""

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
#: Repetitions; and of 'all', which is to be quick, with documents of each.
REPEATS, QUICK_REPEATS, QUICK_DOCUMENTS = 7, 3, 128


@dataclass(frozen=True)
class Options:
    """What the command line says.

    Attributes:
      model: '16m', or a name that `w2s models` knows.
      mixes: keys of `perf.data.MIXES`.
      dtype: of the computation.
      loss: of training.
      documents: of a repetition; None: enough for about a second, in 'all' `QUICK_DOCUMENTS`.
      repeats: repetitions; None: `REPEATS`, in 'all' `QUICK_REPEATS`.
      peer: None, 'torch' or 'torch-released'.
    """

    model: str = "16m"
    mixes: tuple[str, ...] = tuple(data.MIXES)
    dtype: str = "bfloat16"
    loss: str = "xent"
    documents: int | None = None
    repeats: int | None = None
    peer: str | None = None

    def check(self) -> None:
        """Refuses bad values before anything is measured.

        Raises:
          InputError: see there.
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
                f"--documents: {self.documents}; allowed: at least {data.BATCH_SIZE}, one batch"
            )
        if self.peer is not None:
            peer.check(self.peer)
        workloads.find_model(self.model)


def run(
    what: str,
    options: Options,
    console: Console,
    config: config_dict.ConfigDict | None = None,
) -> list[Record]:
    """Measures `what`, prints tables, and returns the records.

    Args:
      what: one of `BENCHES`.
      options: what is measured, and how often.
      console: where to print.
      config: a recipe that is measured in place of a model and mixes ('data': too).

    Raises:
      InputError: bad options or config, or a peer that does not know them.
    """
    if what not in BENCHES:
        raise errors.unknown("bench", what, BENCHES)
    options.check()
    if config is not None and what not in ("train", "label", "data"):
        raise errors.InputError(
            f"bench {what}: --config is given; allowed with it: train, label, data"
        )
    if options.peer is not None and what not in ("train", "label", "all"):
        raise errors.InputError(
            f"bench {what}: --peer={options.peer}; allowed with it: train, label, all"
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
    from w2s_jax.perf import population_bench, throughput

    found = _mix_workloads("train", options, throughput.backend_is_accelerated())
    assert options.repeats is not None
    records = [population_bench.measure(workload, repeats=options.repeats) for workload in found]
    population_bench.print_records(records, console)
    return records


def _throughput(
    bench: str, options: Options, console: Console, config: config_dict.ConfigDict | None
) -> list[Record]:
    from w2s_jax.perf import recipes, throughput

    if config is None:
        found = _mix_workloads(bench, options, throughput.backend_is_accelerated())
    else:
        found = [recipes.recipe_workload(config)]
    assert options.repeats is not None
    records = [
        throughput.measure(bench, workload, repeats=options.repeats, peer=options.peer)
        for workload in found
    ]
    throughput.print_records(records, console)
    return records


def _mix_workloads(bench: str, options: Options, accelerated: bool) -> list[Workload]:
    model = workloads.find_model(options.model)
    return [
        workloads.mix_workload(
            model,
            mix,
            dtype=options.dtype,
            loss=options.loss,
            documents=options.documents,
            accelerated=accelerated,
            labels=bench == "label",
        )
        for mix in options.mixes
    ]
