"""The arguments of `w2s bench` and `w2s compile`."""

from typing import Any


def add_bench(commands: Any) -> None:
    """Add `w2s bench`."""
    bench = commands.add_parser(
        "bench",
        help="measure speed",
        description="Measure speed. docs/performance.md explains the columns.",
        allow_abbrev=False,
    )
    bench.add_argument(
        "what",
        metavar="WHAT",
        choices=(
            *("train", "label", "generate", "data", "population", "compile", "checkpoint"),
            "all",
        ),
        help="train: the train step; label: the label pass; generate: completions; "
        "data: tokenising and packing; population: several seeds, one after another and together; "
        "compile: from process start to the first step, cold and warm; checkpoint: how long "
        "a save stalls training; all: a quick run of all of these",
    )
    bench.add_argument("--config", metavar="FILE", help="measure the model and task of this recipe")
    bench.add_argument("--json", metavar="FILE", help="also write the records to this file")
    bench.add_argument(
        "--model", default="16m", help="16m, or a model that w2s models lists (default: 16m)"
    )
    bench.add_argument(
        "--mix", metavar="MIX", help="document lengths: short or long (default: both)"
    )
    bench.add_argument(
        "--dtype", default="bfloat16", help="compute dtype: bfloat16 or float32 (default: bfloat16)"
    )
    bench.add_argument("--loss", default="xent", help="xent or confidence (default: xent)")
    bench.add_argument(
        "--documents",
        type=int,
        metavar="N",
        help="documents per repetition (default: about one second's worth), or prompts for "
        "generate (default: 32)",
    )
    bench.add_argument(
        "--repeats",
        type=int,
        metavar="N",
        help="repetitions (default: 7; 3 for generate and all)",
    )
    bench.add_argument(
        "--prompt_tokens",
        metavar="N,N",
        help="generate: lengths of prompts (default: 64,512; 64 for all)",
    )
    bench.add_argument(
        "--new_tokens",
        metavar="N,N",
        help="generate: new tokens after each prompt (default: 32,256; 32 for all)",
    )
    bench.add_argument(
        "--peer",
        metavar="PEER",
        help="compare with PyTorch: torch (the fastest variant; for generate, transformers) or "
        "torch-released (the code released with the paper)",
    )


def add_compile(commands: Any) -> None:
    """Add `w2s compile`."""
    compile_ = commands.add_parser(
        "compile",
        help="check whether a run fits on a TPU slice or on GPUs, without one",
        description="Compile a run for a TPU slice or for GPUs, and report memory, collectives and "
        "the compiler's estimate of the time of a step, by part. Needs a compiler (the extra tpu "
        "or cuda-compiler), but no device. Exit status 1: does not fit.",
        allow_abbrev=False,
        epilog="Models that w2s models lists are not downloaded. With --documents and --tokens "
        "no data is needed either. --config.FIELD=VALUE overrides a field of the config.",
    )
    compile_.add_argument("--config", required=True, metavar="FILE", help="recipe: configs/*.py")
    compile_.add_argument(
        "--topology",
        required=True,
        metavar="NAME",
        help="v5e:4x4, or its product name, v5e-16; h100:8, or h100:2x8 for two hosts",
    )
    compile_.add_argument(
        "--documents", type=int, metavar="N", help="number of synthetic documents"
    )
    compile_.add_argument("--tokens", type=int, metavar="L", help="length of synthetic documents")
    compile_.add_argument(
        "--only",
        metavar="KIND",
        help="steps: only the train steps; labels: only the passes that label documents or "
        "complete prompts (default: both)",
    )
    compile_.add_argument(
        "--search",
        nargs="?",
        const="memory",
        metavar="GOAL",
        help="memory: if the run does not fit, look for settings that do; time: look for the mesh, "
        "microbatches and remat policy that take least time (default: memory)",
    )
    compile_.add_argument(
        "--search_limit",
        type=int,
        default=8,
        metavar="N",
        help="settings of a program that --search=time compiles (default: 8)",
    )
    compile_.add_argument("--json", metavar="FILE", help="write all figures to a file")
