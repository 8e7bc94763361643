"""Do two checkouts compute the same? Runs recipes in both and compares what they leave. No test.

    python tests/compare_checkouts.py OLD_CHECKOUT NEW_CHECKOUT --out=DIR

Each recipe of `RECIPES` runs in each checkout at one seed, as `w2s run` in a process of its own
(this Python; the checkout is its folder and its PYTHONPATH, so the package must not be installed).
Runs of a checkout share one store of phases, which makes a method cheap behind the quickstart. Then
it compares, a line each, and exits 1 on any difference:

- names of the phases' folders, which end in their fingerprints;
- result.json of each run and each phase: AUROC to 1e-12, all else equal. Times, versions and
  checksums of files are left out, and so are fields that only the new checkout has (these are
  printed);
- bitwise: the columns of predictions.parquet, what metrics.jsonl says of each step, and what Orbax
  holds: labels, features and final parameters.

What OLD has finished in DIR/old is used again; DIR/new is removed first, unless --keep_new is
given (then an interrupted comparison resumes). Without --out everything is in a folder that is
removed at the end. About two and a half minutes on two cores, half of that with old results. A run
is bitwise the same on the same machine only: keep DIR where it was made.

Recipes are named as RECIPES has them: --recipes=quickstart,generative runs those alone.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

#: name -> what `w2s run` gets besides folders.
RECIPES: dict[str, tuple[str, ...]] = {
    "quickstart": ("--config=configs/quickstart.py:0",),
    "ensembles": (
        "--config=configs/methods/ensembles.py:0",
        "--config.method.bagging.members=2",
        "--config.method.boosting.members=2",
    ),
    "probes": (
        "--config=configs/methods/probe_filter.py:0",
        "--config.method.name=probe_filter,probe_relabel,saliency,em_posterior",
        "--config.probe.steps=100",
    ),
    "generative": (
        "--config=configs/methods/generative.py:0",
        "--config.method.name=generative,early_stopping,synthetic,imitation",
        "--config.strong.train.steps=64",
    ),
}
#: Entries of a result.json that depend on time, on versions, or on how a file is written; and
#: that of a file's checksums.
LEFT_OUT = {"timing", "versions", "seconds", "sha256"}
AUROC_TOLERANCE = 1e-12
MAIN = """
import sys
try:
    from w2s_jax.cli.main import main
except ModuleNotFoundError:  # where w2s_jax.cli is a module
    from w2s_jax.cli import main
sys.exit(main(sys.argv[1:]))
"""


def run_all(checkout: Path, out: Path, names: list[str]) -> None:
    """Runs what is missing of the recipes in a checkout.

    Raises:
      SystemExit: a run fails.
    """
    # A checkout that was never installed cannot say its version, which the package asks for.
    metadata = out / "metadata"
    described = metadata / "w2s_jax-0.dist-info" / "METADATA"
    described.parent.mkdir(parents=True, exist_ok=True)
    described.write_text("Metadata-Version: 2.1\nName: w2s_jax\nVersion: 0\n")
    for name in names:
        workdir = out / "runs" / name
        asked = out / "runs" / f"{name}.txt"
        if asked.exists() and asked.read_text() != " ".join(RECIPES[name]):
            raise SystemExit(
                f"{workdir} is of {asked.read_text()}; remove both, or use another --out"
            )
        asked.parent.mkdir(parents=True, exist_ok=True)
        asked.write_text(" ".join(RECIPES[name]))
        if (workdir / "result.json").exists():
            print(f"{out.name} {name}: there", flush=True)
            continue
        folders = (f"--workdir={workdir}", f"--store={out / 'store'}")
        command = [sys.executable, "-c", MAIN, "run", *RECIPES[name], *folders]
        began = time.monotonic()
        done = subprocess.run(
            command,
            cwd=checkout,
            env=os.environ | {"PYTHONPATH": os.pathsep.join([str(checkout), str(metadata)])},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        if done.returncode:
            raise SystemExit(f"{done.stdout}\n{out.name} {name}: exit status {done.returncode}")
        print(f"{out.name} {name}: {time.monotonic() - began:.0f} s", flush=True)


def differences(old: Any, new: Any, where: str = "") -> Iterator[str]:
    """What differs between two results; fields that only the new one has do not count."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key, value in old.items():
            if key in LEFT_OUT or key.endswith("_seconds"):
                continue
            name = f"{where}.{key}".lstrip(".")
            if key not in new:
                yield f"{name} is gone"
            else:
                yield from differences(value, new[key], name)
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for number, (one, other) in enumerate(zip(old, new, strict=True)):
            yield from differences(one, other, f"{where}[{number}]")
    elif where.endswith("auroc") and isinstance(old, float) and isinstance(new, float):
        if not abs(old - new) <= AUROC_TOLERANCE:
            yield f"{where}: {old!r}, now {new!r}"
    elif type(old) is not type(new) or old != new:
        yield f"{where}: {old!r}, now {new!r}"


def added(old: Any, new: Any, where: str = "") -> Iterator[str]:
    """Fields that only the new result has."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key, value in new.items():
            name = f"{where}.{key}".lstrip(".")
            if key not in old:
                yield name
            else:
                yield from added(old[key], value, name)


def compare_json(old: Path, new: Path) -> tuple[list[str], list[str]]:
    """(differences, fields that are new) of two result.json."""
    pair = [json.loads(path.read_text()) for path in (old, new)]
    return list(differences(*pair)), list(added(*pair))


def compare_arrays(old: dict[str, np.ndarray], new: dict[str, np.ndarray]) -> list[str]:
    """The names of arrays that are not the same in dtype, shape and bits."""
    wrong = [f"{name} is in one only" for name in sorted(old.keys() ^ new.keys())]
    for name in sorted(old.keys() & new.keys()):
        one, other = old[name], new[name]
        if (one.dtype, one.shape) != (other.dtype, other.shape):
            wrong.append(f"{name}: {one.dtype}{one.shape}, now {other.dtype}{other.shape}")
        elif one.dtype == object:
            if one.tolist() != other.tolist():
                wrong.append(f"{name}: other values")
        elif one.tobytes() != other.tobytes():
            off = np.max(np.abs(one.astype(np.float64) - other.astype(np.float64)))
            wrong.append(f"{name}: other bits, by {off:.3g} at most")
    return wrong


def parquet_columns(path: Path) -> dict[str, np.ndarray]:
    """The columns of a Parquet file."""
    table = pq.read_table(path)
    return {name: table[name].to_numpy(zero_copy_only=False) for name in table.column_names}


def metric_columns(path: Path) -> dict[str, np.ndarray]:
    """What metrics.jsonl says of steps and evaluations, without what depends on time."""
    columns: dict[str, list[Any]] = {}
    for line in path.read_text().splitlines():
        for name, value in json.loads(line).items():
            if "second" not in name:
                columns.setdefault(name, []).append(value)
    return {name: np.array(values) for name, values in columns.items()}


def orbax_arrays(folder: Path) -> dict[str, np.ndarray]:
    """All arrays of an Orbax checkpoint, by path."""
    import jax
    import orbax.checkpoint as ocp

    with ocp.PyTreeCheckpointer() as checkpointer, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # everything is read on one device
        tree = checkpointer.restore(folder)
    leaves = jax.tree.flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


#: What a phase's folder may hold -> what reads it.
PARTS = {
    "predictions.parquet": parquet_columns,
    "metrics.jsonl": metric_columns,
    "labels": orbax_arrays,
    "features": orbax_arrays,
    "checkpoints/final": orbax_arrays,
}


def compare(old: Path, new: Path, names: list[str]) -> Iterator[tuple[str, list[str], str]]:
    """Compares what two checkouts left: (what, differences, a remark)."""
    phases: set[str] = set()
    for name in names:
        recorded = [
            set(json.loads((side / "runs" / name / "config.json").read_text())["phases"])
            for side in (old, new)
        ]
        lists = [
            f"{'only old has' if phase in recorded[0] else 'only new has'} {phase}"
            for phase in sorted(recorded[0] ^ recorded[1])
        ]
        phases |= recorded[0] & recorded[1]
        yield f"run {name}: names of phases", lists, f"{len(recorded[0])} phases"
        wrong, more = compare_json(*(side / "runs" / name / "result.json" for side in (old, new)))
        yield f"run {name}: result.json", wrong, f"new: {', '.join(more)}" if more else ""
    yield from compare_phases(old, new, phases)


def compare_phases(old: Path, new: Path, names: set[str]) -> Iterator[tuple[str, list[str], str]]:
    """Compares the phases that both have; as `compare`."""
    for phase in sorted(names):
        before, after = (side / "store" / phase for side in (old, new))
        wrong, more = compare_json(before / "result.json", after / "result.json")
        yield f"{phase}: result.json", wrong, f"new: {', '.join(more)}" if more else ""
        for part, read in PARTS.items():
            there = [(folder / part).exists() for folder in (before, after)]
            if there == [True, True]:
                arrays = read(before / part), read(after / part)
                yield f"{phase}: {part}", compare_arrays(*arrays), f"{len(arrays[0])} arrays"
            elif any(there):
                yield f"{phase}: {part}", [f"only {'old' if there[0] else 'new'} has it"], ""


def main() -> int:
    """Runs, compares, prints a line a comparison; 1 if anything differs."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("old", type=Path, help="a checkout: what must not change")
    parser.add_argument("new", type=Path, help="a checkout: what might have")
    parser.add_argument("--out", type=Path, help="where runs are kept")
    parser.add_argument("--recipes", default=",".join(RECIPES), help=f"of {', '.join(RECIPES)}")
    parser.add_argument("--keep_new", action="store_true", help="use what DIR/new has, too")
    options = parser.parse_args()
    names = options.recipes.split(",")
    if unknown := sorted(set(names) - set(RECIPES)):
        parser.error(f"--recipes: unknown {', '.join(unknown)}")
    os.environ["JAX_PLATFORMS"] = "cpu"
    out = Path(tempfile.mkdtemp()) if options.out is None else options.out.absolute()
    try:
        if not options.keep_new:
            shutil.rmtree(out / "new", ignore_errors=True)
        run_all(options.old.absolute(), out / "old", names)
        run_all(options.new.absolute(), out / "new", names)
        failed = total = 0
        for what, wrong, remark in compare(out / "old", out / "new", names):
            total += 1
            failed += bool(wrong)
            shown = [*wrong[:5], f"and {len(wrong) - 5} more"] if len(wrong) > 5 else wrong
            print(f"{what}: {'; '.join(shown)}" if wrong else f"{what}: same {remark}".rstrip())
    finally:
        if options.out is None:
            shutil.rmtree(out)
    print(f"{failed} of {total} comparisons differ" if failed else f"all {total} are the same")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
