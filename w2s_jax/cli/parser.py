"""The commands of `w2s` and their arguments; what they do is in `cli`."""

import argparse
from typing import Any, NoReturn


class _Parser(argparse.ArgumentParser):
    """Answers a usage error in one line, as every other bad input."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"w2s: {message}; see {self.prog} --help\n")


def parser() -> argparse.ArgumentParser:
    """The parser of the whole command line."""
    found = _Parser(
        prog="w2s", description="Weak-to-strong generalization in JAX.", allow_abbrev=False
    )
    commands = found.add_subparsers(dest="command", metavar="COMMAND", required=True)
    run = commands.add_parser(
        "run",
        help="run an experiment, or what of it is missing",
        allow_abbrev=False,
        epilog="--config.FIELD=VALUE overrides a field of the config; fields and defaults: "
        "w2s_jax/config/schema.py. The same command resumes an interrupted run, and prints the "
        "result of a finished one.",
    )
    run.add_argument("--config", required=True, metavar="FILE", help="a recipe: configs/*.py")
    run.add_argument("--workdir", required=True, metavar="DIR", help="the run's folder")
    run.add_argument("--store", metavar="DIR", help="where phases live (default: WORKDIR/phases)")
    run.add_argument("--dry_run", action="store_true", help="print the phases and stop")
    run.add_argument(
        "--debug_nans", action="store_true", help="raise where a NaN is first computed (slow)"
    )
    run.add_argument(
        "--profile",
        metavar="START:STOP",
        help="trace the steps START to STOP-1 of each phase that trains, counted from 0",
    )
    run.add_argument(
        "--dump_hlo", action="store_true", help="write each phase's step programs (HLO)"
    )
    _add_processes(run)
    report = commands.add_parser(
        "report", help="one page on any number of runs", allow_abbrev=False
    )
    report.add_argument("dirs", nargs="+", metavar="DIR", help="folders of finished runs")
    report.add_argument("--out", metavar="DIR", help="where to (default: the first DIR's report/)")
    _add_sweep(commands)
    _add_data(commands)
    _add_bench(commands)
    _add_compile(commands)
    _add_convert(commands)
    _add_models(commands)
    _add_gc(commands)
    return found


def _add_processes(run: argparse.ArgumentParser) -> None:
    """How one of several processes finds the others."""
    several = run.add_argument_group(
        "several processes",
        "Each gets the same command. On TPU slices, GKE, Slurm and Open MPI they find each other; "
        "elsewhere three flags (or JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES, JAX_PROCESS_ID) "
        "say where and who they are. See docs/pods.md.",
    )
    several.add_argument("--coordinator", metavar="HOST:PORT", help="where process 0 listens")
    several.add_argument("--num_processes", type=int, metavar="N", help="how many there are")
    several.add_argument("--process_id", type=int, metavar="I", help="which this is, from 0")
    several.add_argument(
        "--distributed", action="store_true", help="let JAX find the others, whatever this is"
    )


def _add_sweep(commands: Any) -> None:
    """`w2s sweep` and `w2s sweep status DIR`."""
    sweep = commands.add_parser(
        "sweep",
        help="run many experiments that share phases, or tell how they stand",
        allow_abbrev=False,
        usage="w2s sweep --config=FILE --workdir=DIR [options]\n"
        "       w2s sweep status DIR [--watch]",
        epilog="--config.FIELD=VALUE overrides a field of what all points start from. The same "
        "command resumes an interrupted sweep. slurm: --slurm.NAME=VALUE is a parameter of the "
        "jobs, as partition, time (minutes) or gpus_per_node.",
    )
    sweep.add_argument("action", nargs="*", metavar="status DIR", help="how the sweep stands")
    sweep.add_argument("--watch", action="store_true", help="status: again and again, to the end")
    sweep.add_argument("--config", metavar="FILE", help="a sweep: configs/sweeps/*.py")
    sweep.add_argument("--workdir", metavar="DIR", help="the sweep's folder")
    sweep.add_argument("--store", metavar="DIR", help="where phases live (default: WORKDIR/phases)")
    sweep.add_argument(
        "--executor", default="local", help="what runs the phases: local, ray or slurm"
    )
    sweep.add_argument(
        "--ray_address",
        metavar="ADDRESS",
        help="ray: HOST:PORT of a cluster's head (default: RAY_ADDRESS, or one on this machine)",
    )
    sweep.add_argument(
        "--resources",
        metavar="NAME=NUMBER,...",
        help="ray: what a phase takes, as num_gpus=1 (default: a GPU, a host's TPU chips or a CPU)",
    )
    sweep.add_argument(
        "--dry_run", action="store_true", help="print runs, phases and their cost, and stop"
    )
    sweep.add_argument("--retry_failed", action="store_true", help="try failed phases again")
    sweep.add_argument(
        "--mfu",
        type=float,
        default=0.4,
        help="utilisation at which device-hours are told (default: 0.4)",
    )


def _add_data(commands: Any) -> None:
    """`w2s data list | show | check | prepare`."""
    data = commands.add_parser("data", help="tasks and their data", allow_abbrev=False)
    actions = data.add_subparsers(dest="action", metavar="ACTION", required=True)
    recipe = "a recipe that registers tasks"
    listing = actions.add_parser(
        "list", help="all tasks: kind, sources, licence", allow_abbrev=False
    )
    listing.add_argument("--config", metavar="FILE", help=recipe)
    helps = {
        "show": "documents as the model sees them",
        "check": "counts, balance, lengths, doubles, leaks between splits",
        "prepare": "write a task or a corpus as a TFDS ArrayRecord dataset",
    }
    for name, text in helps.items():
        action = actions.add_parser(name, help=text, allow_abbrev=False)
        action.add_argument("task", metavar="TASK", help="a task, or a folder of task.data_dir")
        action.add_argument("--config", metavar="FILE", help=recipe)
        action.add_argument("--source", default="auto", help="auto, files, hub, tfds or embedded")
        action.add_argument("--data_dir", metavar="DIR", help="local data (default: W2S_DATA_DIR)")
        if name == "prepare":
            action.add_argument("--to", required=True, metavar="DIR", help="where to")
            continue
        action.add_argument("--item_expansion", default="all", help="all (paper) or one (released)")
        action.add_argument("--seed", type=int, default=0, help="matters for item_expansion=one")
        action.add_argument("--tokenizer", default="bytes", help="bytes, a folder or a hub id")
        if name == "show":
            action.add_argument("--n", type=int, default=3, help="how many documents")
            action.add_argument("--split", help="of which split (default: the first)")
            action.add_argument("--max_length", type=int, help="tokens of a text, at most")
            action.add_argument("--overlong", default="truncate", help="truncate, drop or error")


def _add_bench(commands: Any) -> None:
    """`w2s bench train | label | data | population | compile | checkpoint | all`."""
    bench = commands.add_parser("bench", help="measure speed", allow_abbrev=False)
    bench.add_argument(
        "what",
        choices=("train", "label", "data", "population", "compile", "checkpoint", "all"),
        help="train: the train step; label: the label pass; data: tokenising and packing; "
        "population: several seeds, one after another and together; compile: from a process's "
        "start to its first step, cold and warm; checkpoint: how long training stands still for a "
        "save; all: all of it, quickly",
    )
    bench.add_argument("--config", metavar="FILE", help="measure this recipe's model and task")
    bench.add_argument("--json", metavar="FILE", help="write the records there as well")
    bench.add_argument("--model", default="16m", help="16m, or a name that w2s models knows")
    bench.add_argument("--mix", metavar="MIX", help="lengths: short or long (default: both)")
    bench.add_argument("--dtype", default="bfloat16", help="of the computation, or float32")
    bench.add_argument("--loss", default="xent", help="xent or confidence")
    bench.add_argument("--documents", type=int, metavar="N", help="default: for about a second")
    bench.add_argument("--repeats", type=int, metavar="N", help="default: 7; with all, 3")
    bench.add_argument(
        "--peer", metavar="PEER", help="compare with: torch (the strongest) or torch-released"
    )


def _add_compile(commands: Any) -> None:
    """`w2s compile`."""
    compile_ = commands.add_parser(
        "compile",
        help="whether a run fits on a TPU slice, by its compiler, without a TPU",
        allow_abbrev=False,
        epilog="Needs the package libtpu, no TPU. Models that w2s models lists need not be there; "
        "nor does the data, with --documents and --tokens. Exit status 1: does not fit.",
    )
    compile_.add_argument("--config", required=True, metavar="FILE", help="a recipe: configs/*.py")
    compile_.add_argument(
        "--topology", required=True, metavar="NAME", help="v5e:4x4, or as it is sold: v5e-16"
    )
    compile_.add_argument("--documents", type=int, metavar="N", help="make up so many documents")
    compile_.add_argument("--tokens", type=int, metavar="L", help="of so many tokens each")
    compile_.add_argument(
        "--search", action="store_true", help="if it does not fit, try what would make it fit"
    )


def _add_convert(commands: Any) -> None:
    """`w2s convert`."""
    convert = commands.add_parser(
        "convert",
        help="models between Hugging Face's folders and ours",
        allow_abbrev=False,
        epilog="orbax: what w2s_jax.models.load reads; huggingface: what transformers reads. Both "
        "load what the other wrote, and a trained phase: DIR/phases/<kind>-<fingerprint>.",
    )
    convert.add_argument(
        "--from",
        dest="source",
        required=True,
        metavar="PATH_OR_HUB_ID",
        help="a model's folder, or a hub id, perhaps with @revision",
    )
    convert.add_argument("--to", required=True, metavar="DIR", help="a new folder")
    convert.add_argument(
        "--format", required=True, metavar="FORMAT", help="orbax, huggingface or peft"
    )
    convert.add_argument("--without_head", action="store_true", help="leave out a class head")
    convert.add_argument("--dtype", metavar="DTYPE", help="float32 or bfloat16")
    convert.add_argument("--tokenizer", metavar="DIR", help="take the tokenizer's files from there")


def _add_models(commands: Any) -> None:
    """`w2s models [NAME]`."""
    models = commands.add_parser(
        "models",
        help="models: families, ladders, sizes, FLOPs and memory",
        allow_abbrev=False,
        epilog="Everything is by formula; nothing is downloaded.",
    )
    models.add_argument(
        "name",
        nargs="?",
        metavar="NAME",
        help="an embedded or known model, or a folder with a config.json (default: list them)",
    )


def _add_gc(commands: Any) -> None:
    """`w2s gc DIR`."""
    gc = commands.add_parser(
        "gc",
        help="remove what no result needs; says what first",
        allow_abbrev=False,
        epilog="Lists phases that no run in DIR refers to, mid-phase checkpoints of complete "
        "phases and what killed writes left; then asks. Without a terminal to ask on, nothing is "
        "removed unless --yes is given.",
    )
    gc.add_argument("dir", metavar="DIR", help="a run's folder, or one with runs/<name>")
    gc.add_argument("--yes", action="store_true", help="remove without asking")
    gc.add_argument(
        "--finals",
        action="store_true",
        help="also the final parameters of complete runs that no phase starts from",
    )
