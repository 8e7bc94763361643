"""A Markdown table of the models of a ladder that fit on TPU slices.

    python -m w2s_jax.perf.aot.tables configs/ladders/gpt2.py gpt2 gpt2-medium gpt2-large gpt2-xl

Rows are models, each its own supervisor, so that there is one train step and one label pass.
Columns are slices. The first, middle and last models are compiled; the others use the memory
formula. Bold: GiB per chip by the compiler, with the formula in brackets; ~: by formula alone.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path

from w2s_jax.core.files import write_json
from w2s_jax.perf.aot import topology

#: Default columns.
SLICES = ("v5e-16", "v5e-256", "v5p-128", "v6e-16", "v6e-256")
#: Length of synthetic documents.
TOKENS = 256
GIB = 2**30


@dataclass(frozen=True)
class Cell:
    """A model on a slice.

    Attributes:
      overrides: the first overrides of the recipe with which it fits; None: there are none.
      shape: (data, fsdp, tensor) of the mesh.
      formula: bytes per chip by formula.
      compiled: bytes per chip by the compiler; 0: not compiled.
    """

    overrides: tuple[str, ...] | None
    shape: tuple[int, int, int] = (0, 0, 0)
    formula: int = 0
    compiled: int = 0

    def __str__(self) -> str:
        if self.overrides is None:
            return "no"
        axes = zip(("data", "fsdp", "tensor"), self.shape, strict=True)
        mesh = " ".join(f"{name}={size}" for name, size in axes if size > 1)
        others = [o.rpartition(".")[2] for o in self.overrides if ".mesh." not in o]
        where = ", ".join([mesh, *others])
        if not self.compiled:
            return f"{where}: ~{self.formula / GIB:.1f}"
        return f"{where}: **{self.compiled / GIB:.1f}** ({self.formula / GIB:.1f})"


def cell(recipe: str, model: str, slice_: str, *, compiles: bool) -> Cell:
    """Find the first settings, in the order of `search.candidates`, that fit on a slice.

    Settings that do not fit by formula are not compiled.

    Args:
      recipe: a file of configs/ladders.
      model: the weak and the strong model.
      slice_: name of the slice.
      compiles: whether to compile, instead of relying on the formula.

    Raises:
      InputError: the recipe, the model or the slice is unknown.
    """
    from w2s_jax.config.recipes import load_config
    from w2s_jax.config.validation import validate
    from w2s_jax.perf.aot import inputs
    from w2s_jax.perf.aot.slice_compiler import SliceCompiler

    found = topology.find(slice_)
    settings = validate(load_config(f"{recipe}:{model},{model}", ()))
    compiler = SliceCompiler(found)
    start = compiler.programs(inputs.find_inputs(settings, None, TOKENS))
    trained = next(program for program in start.programs if program.trains)
    alternatives = compiler.alternatives(trained, start, compiler.smaller(trained, start))
    for overrides, run in chain([([], start)], alternatives):
        formula = max(compiler.formula(program, run) for program in run.programs)
        if formula > found.memory:
            continue
        if not compiles:
            return Cell(tuple(overrides), run.shape, formula)
        if all(compiler.fits(program, run) for program in run.programs):
            needed = max(compiler.needed(program, run) for program in run.programs)
            return Cell(tuple(overrides), run.shape, formula, needed)
    return Cell(None)


def table(
    recipe: str,
    models: Sequence[str],
    slices: Sequence[str],
    cache: Path | None,
    *,
    compiles: bool = True,
) -> list[str]:
    """Return the lines of the Markdown table.

    Args:
      recipe: a file of configs/ladders, which accepts ':WEAK,STRONG'.
      models: names, from small to large.
      slices: names of the columns.
      cache: a JSON file of known cells, updated after each new one.
      compiles: whether to compile; otherwise unknown cells use the formula and are not cached.
    """
    known = json.loads(cache.read_text()) if cache is not None and cache.exists() else {}
    compiled = {models[0], models[len(models) // 2], models[-1]} if compiles else set()
    lines = [f"| model | {' | '.join(slices)} |", "|---" * (len(slices) + 1) + "|"]
    for model in models:
        row = []
        for slice_ in slices:
            key = f"{recipe} {model} {slice_}"
            if key not in known:
                known[key] = asdict(cell(recipe, model, slice_, compiles=model in compiled))
                print(f"{model} {slice_}: {Cell(**known[key])}", file=sys.stderr, flush=True)
                if cache is not None and compiles:
                    write_json(cache, known)
            row.append(str(Cell(**known[key])))
        lines.append(f"| {model} | {' | '.join(row)} |")
    return lines


def main() -> int:
    """Print the table requested on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("recipe", help="a file of configs/ladders")
    parser.add_argument("models", nargs="+", help="names, from small to large")
    parser.add_argument("--slices", default=",".join(SLICES), help="comma-separated columns")
    parser.add_argument("--formula", action="store_true", help="use the memory formula only")
    parser.add_argument("--cache", type=Path, help="keep cells in this JSON file")
    options = parser.parse_args()
    slices = options.slices.split(",")
    lines = table(
        options.recipe, options.models, slices, options.cache, compiles=not options.formula
    )
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    topology.run_script(main, topology.find(SLICES[0]))
