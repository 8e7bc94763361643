"""The process behind `w2s compile`: `python -m w2s_jax.perf.aot.main JSON`.

The JSON object has the keys "config", "overrides", "topology", "only" (None or one of
`search.ONLY`), "search" (None, 'memory' or 'time'), "search_limit", "documents", "tokens" and
"json" (a path, or None).
A process of its own is needed because JAX reads the environment for the absent TPU at its start.
"""

import json
import os
import re
import subprocess
import sys
from typing import Any

from w2s_jax.config import Settings
from w2s_jax.config.recipes import load_config
from w2s_jax.config.validation import validate
from w2s_jax.core import errors
from w2s_jax.core.files import location, write_json
from w2s_jax.perf.aot import search, topology


def run(request: dict[str, Any]) -> int:
    """Check the request, then compile in a separate process.

    Args:
      request: see the module.

    Returns:
      The exit status.

    Raises:
      InputError: the slice, the config or a name in it is unknown, or the compiler is missing.
    """
    slice_ = topology.find(request["topology"])
    search_for = request["search"]
    if search_for not in (None, *search.GOALS):
        raise errors.unknown("--search", search_for, search.GOALS)
    if request["only"] not in (None, *search.ONLY):
        raise errors.unknown("--only", request["only"], search.ONLY)
    for name in ("documents", "tokens", "search_limit"):
        if request[name] is not None and request[name] < 1:
            raise errors.InputError(f"--{name}: {request[name]}; allowed: at least 1")
    validate(load_config(request["config"], request["overrides"]))
    topology.check_compiler(slice_)
    command = [sys.executable, "-m", "w2s_jax.perf.aot.main", json.dumps(request)]
    with subprocess.Popen(
        command, env=os.environ | topology.environment(slice_), stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if not _OF_COMPILER.match(line):
                print(line, end="", file=sys.stderr, flush=True)
    return process.returncode if process.returncode >= 0 else 1


# Lines that the compilers' libraries log, whatever the log level: that there is no GPU.
_OF_COMPILER = re.compile(r"[IWE]\d{4} [\d:. ]+|WARNING: All log messages before absl")


def main(request: dict[str, Any]) -> int:
    """Compile all programs of a run and print what they need.

    Args:
      request: see the module.

    Returns:
      The exit status: 0 if the run fits, otherwise 1.
    """
    from w2s_jax.perf.aot import inputs, searching
    from w2s_jax.perf.aot.slice_compiler import SliceCompiler

    slice_ = topology.find(request["topology"])
    settings: Settings = validate(load_config(request["config"], request["overrides"]))
    resolved = inputs.find_inputs(settings, request["documents"], request["tokens"])
    compiler = SliceCompiler(slice_, request["only"])
    run = compiler.programs(resolved)
    data, fsdp, tensor = run.shape
    print(
        f"{slice_.name} ({slice_.product_name}): {slice_.chips} chips of "
        f"{slice_.memory / 2**30:.2f} GiB; mesh data={data} fsdp={fsdp} tensor={tensor}"
    )
    print(resolved.notes[0])
    if run.left_out:
        reason = "labels made without training, heads on features, or small networks of images"
        print(f"not compiled ({reason}): {', '.join(run.left_out)}")
    overrides: list[str] = []
    if request["search"] == "memory":
        run, overrides = searching.by_memory(compiler, run)
    elif request["search"] == "time":
        run, overrides = searching.by_time(compiler, run, request["search_limit"])
    # The largest program decides, so it comes first.
    in_order = sorted(run.programs, key=lambda p: -compiler.estimate(p, run))
    for program in in_order:
        compiler.show(program, run)
    if request["json"] is not None:
        records = [compiler.record(program, run) for program in in_order]
        write_json(location(request["json"]), {"programs": records})
    fits = all(compiler.fits(program, run) for program in run.programs)
    needed = max(compiler.needed(program, run) for program in run.programs)
    if overrides:
        print(f"overrides: {' '.join(overrides)}")
    advice = () if fits or request["search"] else searching.advice(compiler, run)
    if request["search"] and not fits:
        print("none of the settings tried fits")
    print(search.verdict(fits, needed, slice_.memory, advice))
    return 0 if fits else 1


if __name__ == "__main__":
    try:
        sys.exit(main(json.loads(sys.argv[1])))
    except (errors.W2SError, RuntimeError) as error:
        print(f"w2s: {error}", file=sys.stderr)
        sys.exit(getattr(error, "exit_status", 1))
