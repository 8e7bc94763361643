"""The commands of `w2s` and their arguments. `cli.main` runs them."""

import argparse
from typing import Any, NoReturn

from w2s_jax.cli import generate, measuring
from w2s_jax.core import errors
from w2s_jax.core.version import __version__


class _Parser(argparse.ArgumentParser):
    """Reports a usage error on one line, like any other bad input."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        self._given = list(args or ())
        options, rest = super().parse_known_args(args, namespace)
        for name, value in vars(options).items():
            if value == "" or (isinstance(value, list) and "" in value):
                # As a path, '' would be the current folder.
                self.error(f"argument {name}: is empty")
        return options, rest

    def error(self, message: str) -> NoReturn:
        if message.startswith("the following arguments are required"):
            # A misspelt flag says more than that the right one is missing.
            flags = [given.partition("=")[0] for given in self._given if given.startswith("-")]
            hints = ((flag, self.did_you_mean(flag)) for flag in flags)
            unknown = next((f"unknown argument {flag!r}{hint}" for flag, hint in hints if hint), "")
            message = unknown or message
        self.exit(2, f"w2s: {message}; see {self.prog} --help\n")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            name = str(action.metavar or action.dest).lower()
            raise argparse.ArgumentError(None, str(errors.unknown(name, value, action.choices)))

    def did_you_mean(self, argument: str) -> str:
        """Return " (did you mean '--flag'?)" for an argument that is not a flag, or ""."""
        flag, flags = argument.partition("=")[0], list(self._option_string_actions)
        if flag.startswith("--config.") or flag in flags:
            return ""
        # A field of a config is named exactly; a flag is misspelt.
        hint = _field_hint(flag.lstrip("-")) if "--config" in flags else ""
        if hint or not flag.startswith("-"):
            return hint
        match = errors.nearest(flag.lstrip("-"), [known.lstrip("-") for known in flags])
        return f" (did you mean '--{match}'?)" if match else ""


def _field_hint(name: str) -> str:
    """Return " (did you mean '--config.FIELD'?)" for the name of a config field, or ""."""
    from w2s_jax.config.schema import config_options

    # Also of '--confg.seed'.
    ends = (f".{name}", f".{name.partition('.')[2] or name}")
    fields = [field for field in config_options() if f".{field}".endswith(ends)]
    return f" (did you mean '--config.{fields[0]}=VALUE'?)" if fields else ""


def did_you_mean(command: str, argument: str) -> str:
    """Return a hint for an unknown argument: the nearest flag, or a config field.

    Args:
      command: the command, with its action if it has any: 'run', 'data show'.
      argument: the unknown argument.
    """
    found: Any = parser()
    for word in command.split():
        actions = (a for a in found._actions if isinstance(a, argparse._SubParsersAction))
        found = next(actions).choices[word]
    return found.did_you_mean(argument)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    root = _Parser(
        prog="w2s",
        description="Weak-to-strong generalization in JAX.",
        epilog="Use w2s COMMAND --help for the options of a command. Exit status: 0 success, 2 bad "
        "input, 75 interrupted (run the same command to resume), 1 any other failure.",
        allow_abbrev=False,
    )
    root.add_argument("--version", action="version", version=f"w2s_jax {__version__}")
    commands = root.add_subparsers(dest="command", metavar="COMMAND", required=True)
    _add_run(commands)
    _add_report(commands)
    _add_sweep(commands)
    _add_data(commands)
    measuring.add_bench(commands)
    measuring.add_compile(commands)
    _add_convert(commands)
    _add_models(commands)
    _add_gc(commands)
    _add_labels(commands)
    generate.add_parser(commands)
    return root


def _add_run(commands: Any) -> None:
    """Add `w2s run`."""
    run = commands.add_parser(
        "run",
        help="run an experiment, or resume it",
        description="Run an experiment. Run the same command to resume an interrupted run, or to "
        "print the result of a finished one.",
        allow_abbrev=False,
        epilog="--config.FIELD=VALUE overrides a field of the config. All fields and their "
        "defaults are in docs/config.md.",
    )
    run.add_argument("--config", required=True, metavar="FILE", help="recipe: configs/*.py")
    run.add_argument("--workdir", required=True, metavar="DIR", help="folder of the run")
    run.add_argument("--store", metavar="DIR", help="folder of phases (default: WORKDIR/phases)")
    run.add_argument(
        "--dry_run", action="store_true", help="print phases and memory estimates, then stop"
    )
    run.add_argument(
        "--debug_nans",
        action="store_true",
        help="where a loss or gradient is not finite, name the operation and its line (slow)",
    )
    run.add_argument(
        "--profile",
        metavar="START:STOP",
        help="profile steps START to STOP-1 (counted from 0) of each phase that trains",
    )
    run.add_argument(
        "--dump_hlo", action="store_true", help="write the HLO of each phase's step programs"
    )
    _add_accept_changed_code(run)
    several = run.add_argument_group(
        "several processes",
        "Start the same command in every process. On TPU slices, GKE, Slurm and Open MPI the "
        "processes find each other; elsewhere set the first three flags, or "
        "JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID. See docs/pods.md.",
    )
    several.add_argument("--coordinator", metavar="HOST:PORT", help="address of process 0")
    several.add_argument("--num_processes", type=int, metavar="N", help="number of processes")
    several.add_argument(
        "--process_id", type=int, metavar="I", help="index of this process, from 0"
    )
    several.add_argument(
        "--distributed", action="store_true", help="use JAX's automatic cluster detection"
    )


def _add_accept_changed_code(command: Any) -> None:
    command.add_argument(
        "--accept_changed_code",
        action="store_true",
        help="use phases that other code of a loss, family, method or phase kind of your own has "
        "computed (by default they are refused)",
    )


def _add_report(commands: Any) -> None:
    """Add `w2s report`."""
    report = commands.add_parser(
        "report",
        help="write one report on any number of runs",
        description="Write one self-contained page, with figures and tables, on any number of "
        "runs.",
        allow_abbrev=False,
    )
    report.add_argument("dirs", nargs="+", metavar="DIR", help="folders of finished runs")
    report.add_argument(
        "--out", metavar="DIR", help="output folder (default: report/ in the first DIR)"
    )


def _add_sweep(commands: Any) -> None:
    """Add `w2s sweep` and `w2s sweep status DIR`."""
    sweep = commands.add_parser(
        "sweep",
        help="run many experiments that share phases, or show their status",
        description="Run many experiments that share phases, or show their status. Run the "
        "same command to resume an interrupted sweep.",
        allow_abbrev=False,
        usage="w2s sweep --config=FILE --workdir=DIR [options]\n"
        "       w2s sweep status DIR [--watch]",
        epilog="--config.FIELD=VALUE overrides a field in all runs. With --executor=slurm, "
        "--slurm.NAME=VALUE sets a parameter of the jobs, such as partition, time (minutes) or "
        "gpus_per_node.",
    )
    sweep.add_argument("action", nargs="*", metavar="status DIR", help="show a sweep's status")
    sweep.add_argument(
        "--watch", action="store_true", help="with status: refresh until the sweep is finished"
    )
    sweep.add_argument("--config", metavar="FILE", help="sweep file: configs/sweeps/*.py")
    sweep.add_argument("--workdir", metavar="DIR", help="folder of the sweep")
    sweep.add_argument("--store", metavar="DIR", help="folder of phases (default: WORKDIR/phases)")
    sweep.add_argument("--executor", default="local", help="local, ray or slurm (default: local)")
    sweep.add_argument(
        "--ray_address",
        metavar="ADDRESS",
        help="ray: HOST:PORT of the cluster's head node (default: RAY_ADDRESS, else a cluster on "
        "this machine)",
    )
    sweep.add_argument(
        "--resources",
        metavar="NAME=NUMBER,...",
        help="ray: resources of each phase, such as num_gpus=1 (default: one GPU, all TPU chips "
        "of a host, or one CPU)",
    )
    sweep.add_argument(
        "--dry_run", action="store_true", help="print runs, phases and their cost, then stop"
    )
    sweep.add_argument("--retry_failed", action="store_true", help="retry failed phases")
    _add_accept_changed_code(sweep)
    sweep.add_argument(
        "--mfu",
        type=float,
        default=0.4,
        help="assumed utilisation for device-hours (default: 0.4)",
    )


def _add_data(commands: Any) -> None:
    """Add `w2s data list | show | check | ids | prepare`."""
    data = commands.add_parser(
        "data",
        help="list, show, check or prepare tasks and their data, or list ids",
        description="List, show, check or prepare tasks and their data, or list their ids.",
        allow_abbrev=False,
    )
    actions = data.add_subparsers(dest="action", metavar="ACTION", required=True)
    recipe = (
        "recipe that registers further tasks; its task.data_dir is the default of --data_dir; "
        "show, check and ids follow its task.empty, task.train_split and task.unlabelled"
    )
    folder = "folder of local data (default: the recipe's, or W2S_DATA_DIR)"
    text = "list all tasks with their kind, sources and licence, or one with its fields"
    listing = actions.add_parser("list", help=text, description=_sentence(text), allow_abbrev=False)
    listing.add_argument("task", metavar="TASK", nargs="?", help="show this task, with its fields")
    listing.add_argument("--config", metavar="FILE", help=recipe)
    listing.add_argument("--data_dir", metavar="DIR", help=folder)
    helps = {
        "show": "show documents as the model sees them",
        "check": "show counts, class balance, lengths, duplicates and leaks between splits",
        "ids": "write the ids of a task's documents to a file, to label them before any run",
        "prepare": "write a task or a corpus as a TFDS ArrayRecord dataset",
    }
    for name, text in helps.items():
        action = actions.add_parser(
            name, help=text, description=_sentence(text), allow_abbrev=False
        )
        action.add_argument("task", metavar="TASK", help="name of a task or of a data folder")
        action.add_argument("--config", metavar="FILE", help=recipe)
        action.add_argument(
            "--source",
            default="auto",
            help="auto, files, hub, tfds or embedded (default: auto)",
        )
        action.add_argument("--data_dir", metavar="DIR", help=folder)
        if name == "prepare":
            action.add_argument("--to", required=True, metavar="DIR", help="output folder")
            continue
        action.add_argument(
            "--item_expansion",
            default="all",
            help="items per record: all (paper) or one (released code) (default: all)",
        )
        action.add_argument(
            "--seed", type=int, default=0, help="seed of --item_expansion=one (default: 0)"
        )
        action.add_argument(
            "--classes",
            metavar="NAME,...",
            help="classes of a folder, in the order of the labels (default: the recipe's "
            "task.classes, else those in its labels)",
        )
        action.add_argument(
            "--unlabelled",
            metavar="SPLIT_OR_FILE",
            help="documents without labels (default: the recipe's task.unlabelled, else "
            "train_unlabel beside train_label)",
        )
        if name == "ids":
            kinds = ".parquet, .csv, .jsonl or .jsonl.gz"
            action.add_argument("--to", required=True, metavar="FILE", help=f"new file: {kinds}")
            continue
        action.add_argument(
            "--tokenizer", default="bytes", help="bytes, a folder or a hub id (default: bytes)"
        )
        if name == "show":
            action.add_argument("--n", type=int, default=3, help="number of documents (default: 3)")
            action.add_argument("--split", help="split to show (default: the first)")
            action.add_argument("--max_length", type=int, help="maximum tokens per text")
            action.add_argument(
                "--template",
                metavar="NAME",
                help="template of the task to show the texts in (default: the bare texts)",
            )
            action.add_argument(
                "--overlong",
                default="truncate",
                help="longer texts: truncate, drop or error (default: truncate)",
            )


def _add_convert(commands: Any) -> None:
    """Add `w2s convert`."""
    convert = commands.add_parser(
        "convert",
        help="convert models to and from Hugging Face's format",
        description="Convert a model to a new folder.",
        allow_abbrev=False,
        epilog="orbax is read by w2s_jax.models.load, huggingface by transformers, peft (the "
        "adapters of a LoRA phase alone) by PEFT. --from also accepts a trained phase: "
        "DIR/phases/<kind>-<fingerprint>.",
    )
    convert.add_argument(
        "--from",
        dest="source",
        required=True,
        metavar="PATH_OR_HUB_ID",
        help="folder of a model, or a hub id, optionally with @revision",
    )
    convert.add_argument("--to", required=True, metavar="DIR", help="new folder")
    convert.add_argument(
        "--format", required=True, metavar="FORMAT", help="orbax, huggingface or peft"
    )
    convert.add_argument("--without_head", action="store_true", help="leave out the class head")
    convert.add_argument(
        "--dtype",
        metavar="DTYPE",
        help="float32 or bfloat16 (default: as stored, or float32 from Hugging Face)",
    )
    convert.add_argument(
        "--tokenizer", metavar="DIR", help="copy the tokenizer's files from this folder"
    )


def _add_models(commands: Any) -> None:
    """Add `w2s models [NAME]`."""
    models = commands.add_parser(
        "models",
        help="list models, or show one's size, FLOPs and memory",
        description="List models, or show one's size, FLOPs and memory. All numbers are computed "
        "by formula; nothing is downloaded.",
        allow_abbrev=False,
    )
    models.add_argument(
        "name",
        nargs="?",
        metavar="NAME",
        help="an embedded or known model, or a folder with a config.json (default: list all)",
    )


def _add_gc(commands: Any) -> None:
    """Add `w2s gc DIR`."""
    gc = commands.add_parser(
        "gc",
        help="remove files that no result needs, after listing them",
        description="List phases that no run in DIR refers to, mid-phase checkpoints of complete "
        "phases and files left by interrupted writes; then ask, and remove them. Without a "
        "terminal nothing is removed unless --yes is given.",
        allow_abbrev=False,
    )
    gc.add_argument("dir", metavar="DIR", help="folder of a run, or one with runs/<name>")
    gc.add_argument("--yes", action="store_true", help="remove without asking")
    gc.add_argument(
        "--finals",
        action="store_true",
        help="also remove final parameters of complete runs that no phase starts from",
    )


def _add_labels(commands: Any) -> None:
    """Add `w2s labels PHASE`."""
    labels = commands.add_parser(
        "labels",
        help="write a phase's weak labels to a file",
        description="Write the labels of a phase to a file with the columns id (0x and 16 "
        "hexadecimal digits; in Parquet uint64), split and p, the probability of label 1, or the "
        "text of a completion. The field weak.labels of another run accepts the file.",
        allow_abbrev=False,
    )
    labels.add_argument(
        "phase",
        metavar="PHASE",
        help="DIR/phases/<kind>-<fingerprint>, or the folder of a run with one weak model",
    )
    labels.add_argument(
        "--to", required=True, metavar="FILE", help="new file: .parquet, .csv, .jsonl or .jsonl.gz"
    )


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:] + "."
