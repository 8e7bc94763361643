"""What of a ladder fits on which slice, as a table of Markdown.

    python -m w2s_jax.perf.aot.tables configs/ladders/gpt2.py gpt2 gpt2-medium gpt2-large gpt2-xl

A row a model, which is its own supervisor, so that there is one train step and one label pass; a
column a slice. The first, the middle and the last model are compiled, the others go by formula.
Bold: GiB of a chip by the compiler, and in brackets by formula; ~: by formula alone.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from w2s_jax.core import errors
from w2s_jax.perf.aot import topology

#: The columns.
SLICES = ("v5e-16", "v5e-256", "v5p-128", "v6e-16", "v6e-256")
#: Tokens of a made-up document.
TOKENS = 256
GIB = 2**30


@dataclass(frozen=True)
class Cell:
    """A model on a slice.

    Attributes:
      overrides: the first found under which it fits, after those of the recipe; None: none was.
      shape: (data, fsdp, tensor) of the mesh.
      formula: bytes of a chip by formula.
      compiled: by the compiler; 0: not compiled.
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
    """The first way in the order of `search.candidates` in which a model fits on a slice.

    What does not fit by formula is not compiled.

    Raises:
      InputError: there is no such recipe, model or slice.
    """
    from w2s_jax.config.recipes import load_config
    from w2s_jax.config.validation import validate
    from w2s_jax.perf.aot import inputs
    from w2s_jax.perf.aot.main import Session

    found = topology.find(slice_)
    settings = validate(load_config(f"{recipe}:{model},{model}", ()))
    resolved = inputs.find_inputs(settings, None, TOKENS)
    session = Session(found)
    start = session.state(resolved)
    trained = next(program for program in start.programs if program.trains)
    for overrides, state in (([], start), *session.ways(trained, start)):
        formula = max(session.formula(program, state) for program in state.programs)
        if formula > found.memory:
            continue
        if not compiles:
            return Cell(tuple(overrides), state.shape, formula)
        if all(session.fits(program, state) for program in state.programs):
            needed = max(session.needed(program, state) for program in state.programs)
            return Cell(tuple(overrides), state.shape, formula, needed)
    return Cell(None)


def table(
    recipe: str,
    models: Sequence[str],
    slices: Sequence[str],
    cache: Path | None,
    *,
    compiles: bool = True,
) -> list[str]:
    """Lines of Markdown.

    Args:
      recipe: of configs/ladders; it takes ':WEAK,STRONG'.
      models: small ones first.
      slices: the columns.
      cache: a file of JSON with cells that are known; new ones are added at once.
      compiles: else all cells that are not known go by formula, and are not added.
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
                    cache.write_text(json.dumps(known, indent=1))
            row.append(str(Cell(**known[key])))
        lines.append(f"| {model} | {' | '.join(row)} |")
    return lines


def main() -> int:
    """Prints the table that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("recipe", help="of configs/ladders")
    parser.add_argument("models", nargs="+", help="small ones first")
    parser.add_argument("--slices", default=",".join(SLICES), help="the columns")
    parser.add_argument("--formula", action="store_true", help="compile nothing more")
    parser.add_argument("--cache", type=Path, help="keep cells in this file of JSON")
    options = parser.parse_args()
    topology.check_compiler()
    slices = options.slices.split(",")
    lines = table(
        options.recipe, options.models, slices, options.cache, compiles=not options.formula
    )
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    # JAX reads these when it starts, which is in `cell`.
    os.environ |= topology.environment()
    try:
        sys.exit(main())
    except errors.W2SError as error:
        print(f"w2s: {error}", file=sys.stderr)
        sys.exit(error.exit_status)
