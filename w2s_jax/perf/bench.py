"""`w2s bench`: which benchmarks there are, and what their command line allows."""

from collections.abc import Sequence
from dataclasses import dataclass

from ml_collections import config_dict
from rich.console import Console

from w2s_jax import errors
from w2s_jax.config import DTYPES
from w2s_jax.perf import data, peer, workloads
from w2s_jax.perf.measuring import Record
from w2s_jax.perf.workloads import Workload

BENCHES = ("train", "label", "data", "all")


@dataclass(frozen=True)
class Options:
    """What the command line says.

    Attributes:
      model: '16m', or a name that `w2s models` knows.
      mixes: keys of `perf.data.MIXES`.
      dtype: of the computation.
      loss: of training.
      documents: of a repetition; None: enough for about a second.
      repeats: repetitions.
      peer: None, 'torch' or 'torch-released'.
    """

    model: str = "16m"
    mixes: tuple[str, ...] = tuple(data.MIXES)
    dtype: str = "bfloat16"
    loss: str = "xent"
    documents: int | None = None
    repeats: int = 7
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
        if self.repeats < 1:
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
    records: list[Record] = []
    for name in BENCHES[:-1] if what == "all" else (what,):
        if name == "data":
            records += data.bench(console, config)
        else:
            records += _throughput(name, options, console)
    return records


def _throughput(bench: str, options: Options, console: Console) -> list[Record]:
    from w2s_jax.perf import throughput

    found = _mix_workloads(bench, options, throughput.backend_is_accelerated())
    records = [
        throughput.measure(bench, workload, repeats=options.repeats, peer=options.peer)
        for workload in found
    ]
    throughput.print_records(records, console)
    return records


def _mix_workloads(bench: str, options: Options, accelerated: bool) -> Sequence[Workload]:
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
