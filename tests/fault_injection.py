"""Kills a run again and again, and compares what it ends with to a run that nobody disturbed.

    python tests/fault_injection.py --kills 20 --seed 0

prints a table: where each kill fell, what it cost, and whether the run that was resumed after it
ended in the same result, predictions, labels and training rows, bit for bit, and left nothing lying
around that `w2s gc` would not find. Runs are killed several times each, in chains.

Some kills are aimed: the child process (this file, too) runs the command line with a function
replaced by one that kills at a named point. The others fall at random moments.
"""

import argparse
import contextlib
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

STEPS = 300
#: A process that lives longer hangs.
TIMEOUT = 300


@dataclass(frozen=True)
class Kill:
    """A kill to come: in a phase whose title begins so, at the n-th time that a point is reached.

    `point` '': at a random moment. `then`: another point, at which SIGKILL follows the signal.
    """

    point: str = ""
    title: str = ""
    nth: int = 1
    signal: str = "SIGKILL"
    then: str = ""

    @property
    def words(self) -> str:
        """The kill, for people."""
        where = self.point or "at a random moment"
        return f"{where}, then SIGKILL {self.then}" if self.then else where


BLOCK = "before a block of steps"
WRITING = "while a checkpoint is written"
COMMITTED = "checkpoint committed, before its manifest"
FINAL = "final parameters written, before their manifest"
TRAINED = "trained.json before its rename"
PASS = "in a label pass"
PREDICTIONS = "predictions before their rename"
LABELS = "labels stored, before the phase's result"
PHASE = "the phase's result.json before its rename"
RESULT = "the run's result.json before its rename"
REPORT = "in the midst of the report's files"

#: Kills of a run, each in the order in which a run reaches them.
CHAINS = (
    (
        Kill(WRITING, "pretrain", 2),
        Kill(COMMITTED, "pretrain", 2),
        Kill(BLOCK, "weak", 4),
        Kill(PASS, "weak", 2),
        Kill(PHASE, "student"),
    ),
    (
        Kill(FINAL, "pretrain"),
        Kill(PREDICTIONS, "weak"),
        Kill(LABELS, "weak"),
        Kill(BLOCK, "student", 4, "SIGTERM"),
        Kill(RESULT),
    ),
    (
        Kill(BLOCK, "pretrain", 4, "SIGTERM", WRITING),
        Kill(PASS, "weak", 1, "SIGTERM"),
        Kill(WRITING, "ceiling", 2),
        Kill(TRAINED, "student"),
        Kill(REPORT),
    ),
)


# --- the process that is killed ------------------------------------------------------------------


def child(kill: Kill, arguments: Sequence[str]) -> int:
    """Runs `w2s` with `arguments`, and kills this process where `kill` says."""
    from w2s_jax.cli.main import main
    from w2s_jax.core import watchdog
    from w2s_jax.profiling import compilation
    from w2s_jax.training import loop

    loop.BLOCK_SECONDS = 0.1
    compilation.SHORTEST_SECONDS = 0.0
    left = {"point": kill.point, "nth": kill.nth, "signal": kill.signal}

    def reached(point: str) -> None:
        title = watchdog._watching.title if watchdog._watching else ""
        if not point or point != left["point"] or not title.startswith(kill.title):
            return
        left["nth"] -= 1
        if left["nth"] == 0:
            number = getattr(signal, left["signal"])
            left.update(point=kill.then, nth=1, signal="SIGKILL")
            os.kill(os.getpid(), number)

    with contextlib.ExitStack() as patches:
        for place, name, before, after in _points():
            patches.enter_context(_marked(place, name, before, after, reached))
        patches.enter_context(_marked_renames(reached))
        return main(arguments)


def _points():
    """(where, a function's name, the point before it, the point after it)."""
    import pyarrow.parquet

    from w2s_jax.store import artifacts, trees
    from w2s_jax.training import batch_sources, checkpoints

    return (
        (batch_sources.ResidentBatches, "advance", BLOCK, ""),
        (batch_sources.StreamedBatches, "advance", BLOCK, ""),
        (checkpoints.Checkpoints, "save", "", WRITING),
        (checkpoints, "write_manifest", COMMITTED, ""),
        (trees, "write_manifest", FINAL, ""),
        (artifacts, "save_labels", "", LABELS),
        (pyarrow.parquet, "write_table", "", PREDICTIONS),
    )


def _marked(place, name, before, after, reached):
    original = getattr(place, name)

    def marked(*args, **options):
        reached(before)
        result = original(*args, **options)
        reached(after)
        return result

    return mock.patch.object(place, name, marked)


@contextlib.contextmanager
def _marked_renames(reached):
    """Points that are known by the file that is about to appear, or by the watchdog's words."""
    from w2s_jax.core import watchdog

    rename, progress = pathlib.Path.replace, watchdog.progress

    def marked_rename(path, target):
        target = Path(target)
        if target.name == "trained.json":
            reached(TRAINED)
        elif target.name == "result.json":
            reached(PHASE if target.parent.parent.name == "phases" else RESULT)
        elif target.name == "curves.csv":
            reached(REPORT)
        return rename(path, target)

    def marked_progress(doing, *rest):
        if doing.startswith("label pass"):
            reached(PASS)
        return progress(doing, *rest)

    with (
        mock.patch.object(pathlib.Path, "replace", marked_rename),
        mock.patch.object(watchdog, "progress", marked_progress),
    ):
        yield


# --- what kills ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bench:
    """Where the runs are, and what they share; `more` arguments of the command line."""

    folder: Path
    more: tuple[str, ...] = ()

    def begin(self, kill: Kill | None, workdir: Path) -> subprocess.Popen:
        """A process that runs, or resumes, the run in `workdir`."""
        command = ["run", f"--config={self.folder / 'recipe.py'}", f"--workdir={workdir}"]
        spec = json.dumps(None if kill is None else vars(kill))
        environment = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": "--xla_backend_optimization_level=0",
            "W2S_CACHE_DIR": str(self.folder / "cache"),
        }
        return subprocess.Popen(
            [sys.executable, __file__, "--child", spec, *command, *self.more],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    def finish(self, workdir: Path) -> dict:
        """Runs to the end; its result."""
        process = self.begin(None, workdir)
        _, stderr = process.communicate(timeout=TIMEOUT)
        if process.returncode:
            raise RuntimeError(f"{workdir}: status {process.returncode}: {stderr[-2000:]}")
        return json.loads((workdir / "result.json").read_text())


def prepare(folder: Path) -> Bench:
    """Writes task and recipe: pretraining on a stream, two students, a checkpoint at each block."""
    from w2s_jax.testing import write_tiny_task

    data_dir = write_tiny_task(folder / "data")
    (folder / "recipe.py").write_text(
        "from w2s_jax.testing import tiny_config\n"
        "def get_config():\n"
        f"    config = tiny_config({str(data_dir)!r})\n"
        f"    config.pretrain.steps = config.train.steps = {STEPS}\n"
        "    config.pretrain.streaming = True\n"
        f"    config.pretrain.source = {str(data_dir / 'corpus' / 'train.jsonl')!r}\n"
        "    config.pretrain.chunk_length = 32\n"
        "    config.checkpoint.every_minutes = 0.0\n"
        "    config.eval.every = 100\n"
        "    return config\n"
    )
    return Bench(folder)


def strike(bench: Bench, kill: Kill, workdir: Path, seconds: float) -> dict:
    """Begins or resumes the run, and waits for the kill; what it cost, or {} if it did not fall.

    `seconds`: at which a random kill falls, after a phase has begun.
    """
    started = time.time()
    process = bench.begin(kill, workdir)
    if not kill.point:
        while process.poll() is None and not _at_work(workdir, started):
            time.sleep(0.01)
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(getattr(signal, kill.signal))
    _, stderr = process.communicate(timeout=TIMEOUT)
    status = process.returncode
    wanted = {-signal.SIGKILL}
    if kill.signal == "SIGTERM" and not kill.then:
        # While Python starts, SIGTERM ends it.
        wanted = {75} if kill.point else {75, -signal.SIGTERM}
    if status == 0:
        return {}
    if status not in wanted:
        raise RuntimeError(f"{workdir}: {kill}: status {status}: {stderr[-2000:]}")
    return {"kill": kill, "seconds": seconds, **standing(workdir)}


def _at_work(workdir: Path, started: float) -> bool:
    """Whether a phase has begun since then."""
    configs = (workdir / "phases").glob("*/config.json")
    return any(path.stat().st_mtime >= started for path in configs)


def standing(workdir: Path) -> dict:
    """Which phase was under way, how far it was, and from where it goes on."""
    from w2s_jax.store.checksums import damage

    folders = [path.parent for path in (workdir / "phases").glob("*/config.json")]
    begun = [folder for folder in folders if not (folder / "result.json").exists()]
    if not begun:
        return {"phase": "", "done": 0, "kept": 0}
    folder = begun[0]
    kind, checkpoints = folder.name.split("-")[0], folder / "checkpoints"
    if (checkpoints / "trained.json").exists():
        return {"phase": kind, "done": STEPS, "kept": STEPS}
    lines = (folder / "metrics.jsonl").read_text() if (folder / "metrics.jsonl").exists() else ""
    rows = [json.loads(line) for line in lines.splitlines()]
    done = max((row["step"] for row in rows), default=0)
    steps = [path for path in (checkpoints / "steps").glob("*") if path.name.isdigit()]
    kept = max((int(path.name) for path in steps if damage(path) is None), default=0)
    # A resumed process tells the rows again that it remembers, once it has restored.
    return {"phase": kind, "done": max(done, kept), "kept": kept}


# --- what is compared ----------------------------------------------------------------------------


def differences(plain: Path, disturbed: Path) -> list[str]:
    """In what two finished runs differ that should not; nothing, if all is well."""
    found = []
    results = [json.loads((run / "result.json").read_text()) for run in (plain, disturbed)]
    for result in results:
        del result["timing"]
    if results[0] != results[1]:
        found.append("result.json")
    for folder in sorted((plain / "phases").iterdir()):
        other = disturbed / "phases" / folder.name
        for name in ("predictions.parquet", "metrics.jsonl"):
            if (folder / name).exists() and (folder / name).read_bytes() != _bytes(other / name):
                found.append(f"{folder.name}/{name}")
        if (folder / "labels").exists() and _labels(folder) != _labels(other):
            found.append(f"{folder.name}/labels")
        if (folder / "checkpoints/final").exists() and _final(folder) != _final(other):
            found.append(f"{folder.name}/checkpoints/final")
    return found + [f"litter: {path}" for path in litter(plain, disturbed)]


def _bytes(path: Path) -> bytes:
    return path.read_bytes() if path.exists() else b""


def _labels(folder: Path) -> dict[str, tuple[bytes, bytes]]:
    from w2s_jax.store import artifacts

    phase = artifacts.PhaseFolder(folder)
    found = {}
    for split in json.loads((folder / "result.json").read_text())["labels"]["splits"]:
        ids_N = artifacts.labelled_ids(phase, split)
        found[split] = ids_N.tobytes(), artifacts.load_labels(phase, split, ids_N).tobytes()
    return found


def _final(folder: Path) -> list[bytes]:
    import jax
    import numpy as np

    from w2s_jax.store import trees

    tree = trees.load_tree(folder / "checkpoints" / "final", None)
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


def litter(plain: Path, disturbed: Path) -> list[str]:
    """What a disturbed run has and an undisturbed one has not, and `w2s gc` does not find."""
    from w2s_jax.execution import storage_gc

    with mock.patch.object(storage_gc, "_SETTLED_SECONDS", -1):
        known = [garbage.path for garbage in storage_gc.find(disturbed)[0]]

    def names(run: Path) -> dict[str, Path]:
        # Orbax names its data files at random.
        return {
            str(path.relative_to(run)): path
            for path in run.rglob("*")
            if path.is_file() and path.parent.name != "d"
        }

    here, there = names(disturbed), names(plain)
    return [
        name
        for name in sorted(here.keys() - there.keys())
        if not any(here[name].is_relative_to(path) for path in known)
    ]


# --- all of it -----------------------------------------------------------------------------------


def inject(folder: Path, kills: int, seed: int) -> list[dict]:
    """Kills runs so many times; a row for each, with 'differences' of the run that it became."""
    bench, rng = prepare(folder), random.Random(seed)
    whole = bench.finish(folder / "plain")["timing"]["seconds"]
    rows: list[dict] = []
    chains = [list(chain) for chain in CHAINS]
    for number in range(10 * kills):
        if len(rows) >= kills:
            break
        drawn = [Kill(signal=rng.choice(("SIGKILL", "SIGKILL", "SIGTERM"))) for _ in range(5)]
        chain = chains.pop(0) if chains else drawn
        workdir, landed = folder / f"chain{number}", []
        for kill in chain[: kills - len(rows)]:
            row = strike(bench, kill, workdir, whole * rng.uniform(0, 0.4))
            if kill.point and not row:
                raise RuntimeError(f"{kill} did not fall")
            landed += [row] if row else []
            if not row:
                break
        bench.finish(workdir)
        unequal = differences(folder / "plain", workdir)
        rows += [row | {"differences": unequal} for row in landed]
    return rows


def table(rows: Sequence[dict]) -> str:
    """Rows as Markdown."""
    lines = [
        "| # | phase | moment | signal | steps done | steps redone | in the end |",
        "|---|---|---|---|---|---|---|",
    ]
    for number, row in enumerate(rows, 1):
        kill = row["kill"]
        words = kill.words if kill.point else f"random, after {row['seconds']:.1f} s of work"
        end = "equal" if not row["differences"] else "; ".join(row["differences"])
        cells = (number, row["phase"] or "-", words, kill.signal, row["done"])
        lines.append("| " + " | ".join(map(str, (*cells, row["done"] - row["kept"], end))) + " |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of the random moments")
    options = parser.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="w2s-faults-") as folder:
        rows = inject(Path(folder), options.kills, options.seed)
    print(table(rows))
    equal = sum(not row["differences"] for row in rows)
    print(f"\n{equal} of {len(rows)} ended equal; {time.monotonic() - started:.0f} s")
    return 0 if equal == len(rows) else 1


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        spec = json.loads(sys.argv[2])
        sys.exit(child(Kill("never") if spec is None else Kill(**spec), sys.argv[3:]))
    sys.exit(main())
