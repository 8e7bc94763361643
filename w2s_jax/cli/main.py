"""The `w2s` command. Only dispatches; imports no JAX before it is needed.

Exit status: 0 success, 2 bad input (one line on stderr), 75 interrupted and resumable, 1 otherwise.
With W2S_TRACEBACK=1 in the environment the traceback of an error precedes its line.
"""

import argparse
import os
import re
import sys
import traceback
from collections.abc import Sequence

from w2s_jax.core import accelerators, errors, joining, library_logs, processes, signals, terminal

#: Commands that accept --config.FIELD=VALUE.
_WITH_FIELDS = ("run", "sweep", "bench", "compile")


@library_logs.diverts
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (default: that of the process) and return the exit status."""
    accelerators.ignore_compiler_of_gpus()
    arguments = list(sys.argv[1:] if argv is None else argv)
    resumes = arguments[:1] in (["run"], ["sweep"]) and not {"status", "--dry_run"} & {*arguments}
    try:
        # First of all, before slow imports, so that no signal is lost.
        status = signals.guarded(
            lambda: _dispatch(arguments), hint=signals.RESUME if resumes else "", last=argv is None
        )
    except errors.W2SError as error:
        if os.environ.get("W2S_TRACEBACK"):
            traceback.print_exc()
        print(f"w2s: {error}", file=sys.stderr)
        status = error.exit_status
    except Exception:
        if processes.count() == 1:
            raise
        traceback.print_exc()
        status = 1
    return processes.leave(status)


def _dispatch(arguments: list[str]) -> int:
    """Run the command that `arguments` name and return the exit status."""
    from w2s_jax.cli import generate, parser

    with_overrides = {"run": _run, "sweep": _sweep, "bench": _bench, "compile": _compile}
    without = {
        "report": _report,
        "data": _data,
        "convert": _convert,
        "models": _models,
        "gc": _gc,
        "labels": _labels,
        "generate": generate.run,
    }
    options, rest = parser.parser().parse_known_args(arguments)
    if options.command in with_overrides:
        return with_overrides[options.command](options, rest)
    if rest:
        action = getattr(options, "action", None)
        raise _unknown_argument(" ".join(filter(None, (options.command, action))), rest[0])
    return without[options.command](options)


def _unknown_argument(command: str, argument: str) -> errors.InputError:
    from w2s_jax.cli import parser

    hint = parser.did_you_mean(command, argument)
    fields = "use --config.FIELD=VALUE, or the options in" if command in _WITH_FIELDS else "see"
    return errors.InputError(
        f"{command}: unknown argument {argument!r}{hint}; {fields} w2s {command} --help"
    )


def _check_overrides(command: str, rest: list[str]) -> None:
    """Refuse arguments that are no overrides of a config's fields."""
    for before, argument in zip(["", *rest], rest, strict=False):
        if argument.startswith("--config."):
            continue
        if before.startswith("--config.") and "=" not in before:
            raise errors.InputError(f"{before}: has no value; use {before}={argument}")
        raise _unknown_argument(command, argument)


def _run(options: argparse.Namespace, overrides: list[str]) -> int:
    from w2s_jax.config.recipes import load_config

    _check_overrides("run", overrides)
    profile = None if options.profile is None else _step_range(options.profile)
    config = load_config(options.config, overrides)
    how = joining.how_to_join(
        options.coordinator,
        options.num_processes,
        options.process_id,
        options.distributed,
        os.environ,
    )
    if how is not None and not options.dry_run:
        joining.join(how)
    from w2s_jax.execution import execute

    if options.debug_nans:
        import jax

        jax.config.update("jax_debug_nans", True)
    execute.run(
        config,
        options.workdir,
        store=options.store,
        dry_run=options.dry_run,
        profile=profile,
        dump_hlo=options.dump_hlo,
        accept_changed_code=options.accept_changed_code,
    )
    return 0


def _step_range(text: str) -> tuple[int, int]:
    """Return START and STOP of --profile."""
    numbers = re.fullmatch(r"(\d+):(\d+)", text, re.ASCII)
    if numbers is None or int(numbers[1]) >= int(numbers[2]):
        raise errors.InputError(
            f"--profile: {text!r}; use START:STOP, two integers with 0 <= START < STOP"
        )
    return int(numbers[1]), int(numbers[2])


def _report(options: argparse.Namespace) -> int:
    from pathlib import Path

    from w2s_jax.core.files import refuse_unwritable
    from w2s_jax.report import write_report

    if options.out is not None:
        refuse_unwritable(Path(options.out), "--out")
    dirs = [Path(d) for d in options.dirs]
    page = write_report(dirs, Path(options.out) if options.out else dirs[0] / "report")
    print(page)
    return 0


def _sweep(options: argparse.Namespace, overrides: list[str]) -> int:
    from pathlib import Path

    console = terminal.console()
    slurm = [o for o in overrides if o.startswith("--slurm.") and not options.action]
    overrides = [o for o in overrides if o not in slurm]
    if options.action:
        from w2s_jax.sweep.status import print_status, watch_status

        if options.action[0] != "status" or len(options.action) != 2:
            hint = errors.did_you_mean(options.action[0], ["status"])
            hint = "" if options.action[0] == "status" else hint
            raise errors.InputError(
                f"sweep: unknown action {' '.join(options.action)!r}{hint}; use status DIR, with "
                "one folder, or --config and --workdir"
            )
        if overrides:
            raise _unknown_argument("sweep", overrides[0])
        (watch_status if options.watch else print_status)(Path(options.action[1]), console)
        return 0
    _check_overrides("sweep", overrides)
    if options.watch:
        raise errors.InputError("sweep: --watch needs status: w2s sweep status DIR --watch")
    for name in ("config", "workdir"):
        if getattr(options, name) is None:
            raise errors.InputError(f"sweep: --{name} is required; see w2s sweep --help")
    from w2s_jax.sweep import commands

    commands.sweep(
        options.config,
        overrides,
        options.workdir,
        console,
        store=options.store,
        executor=options.executor,
        ray_address=options.ray_address,
        resources=options.resources,
        slurm=slurm,
        dry_run=options.dry_run,
        retry_failed=options.retry_failed,
        accept_changed_code=options.accept_changed_code,
        mfu=options.mfu,
    )
    return 0


def _data(options: argparse.Namespace) -> int:
    from w2s_jax.config.recipes import load_config
    from w2s_jax.core.classes import class_names
    from w2s_jax.data import commands, id_list, listing

    _check_data_options(options)
    recipe = load_config(options.config, []) if options.config else {}  # registers its tasks
    of_task = recipe.get("task", {})
    data_dir = options.data_dir or of_task.get("data_dir")
    if options.action == "list":
        # Wide enough not to break names, in a narrow terminal too.
        console = terminal.console(columns=220)
        if options.task is None:
            listing.list_tasks(console)
        else:
            listing.list_task(options.task, console, data_dir=data_dir)
        return 0
    console = terminal.console()
    where = {"source": options.source, "data_dir": data_dir}
    if options.action == "prepare":
        commands.prepare_task(options.task, options.to, console, **where)
        return 0
    where |= {
        "item_expansion": options.item_expansion,
        "seed": options.seed,
        "empty": of_task.get("empty"),
        "train_split": of_task.get("train_split"),
        "unlabelled": options.unlabelled or of_task.get("unlabelled"),
        "classes": class_names(
            of_task.get("classes", ()) if options.classes is None else (options.classes,)
        ),
    }
    if options.action == "ids":
        id_list.write_ids(options.task, options.to, console, **where)
        return 0
    where["tokenizer_name"] = options.tokenizer
    if options.action == "check":
        commands.check_task(options.task, console, **where)
        return 0
    commands.show_task(
        options.task,
        console,
        n=options.n,
        split=options.split,
        max_length=options.max_length,
        overlong=options.overlong,
        template=options.template,
        **where,
    )
    return 0


def _check_data_options(options: argparse.Namespace) -> None:
    """Refuse values of `w2s data` that are out of range, before any data are read."""
    from pathlib import Path

    from w2s_jax.config.schema import config_options
    from w2s_jax.core.files import refuse_unwritable

    declared = config_options()
    fields = {
        "item_expansion": "protocol.item_expansion",
        "seed": "seed",
        "max_length": "task.max_length",
        "overlong": "task.overlong",
    }
    for option, field in fields.items():
        if hasattr(options, option):
            declared[field].check(f"--{option}", getattr(options, option))
    if options.action == "prepare":
        refuse_unwritable(Path(options.to), "--to")


def _refuse_json(path: str | None) -> None:
    """Check that the file of --json can be written, before it is computed."""
    from pathlib import Path

    from w2s_jax.core.files import refuse_unwritable

    if path is None:
        return
    target = Path(path)
    if not target.parent.is_dir():
        raise errors.InputError(f"--json: {target}: the folder {target.parent} does not exist")
    if target.is_dir():
        raise errors.InputError(f"--json: {target}: is a folder; give a file")
    refuse_unwritable(target.parent, "--json")


def _bench(options: argparse.Namespace, overrides: list[str]) -> int:
    from pathlib import Path

    from w2s_jax.config.recipes import load_config
    from w2s_jax.core.files import write_json
    from w2s_jax.perf import bench

    _check_overrides("bench", overrides)
    if overrides and options.config is None:
        raise errors.InputError(f"bench: {overrides[0]} needs a recipe: --config=FILE")
    _refuse_json(options.json)
    asked = bench.Options(
        model=options.model,
        dtype=options.dtype,
        loss=options.loss,
        documents=options.documents,
        repeats=options.repeats,
        peer=options.peer,
        prompt_tokens=bench.as_counts("--prompt_tokens", options.prompt_tokens),
        new_tokens=bench.as_counts("--new_tokens", options.new_tokens),
        **({} if options.mix is None else {"mixes": (options.mix,)}),
    )
    config = None if options.config is None else load_config(options.config, overrides)
    console = terminal.console()
    records = bench.run(options.what, asked, console, config)
    if options.json is not None:
        write_json(Path(options.json), {"records": records})
    return 0


def _compile(options: argparse.Namespace, overrides: list[str]) -> int:
    from w2s_jax.perf.aot import main as aot

    _check_overrides("compile", overrides)
    _refuse_json(options.json)
    request = {name: getattr(options, name) for name in ("config", "topology", "only")}
    request |= {
        name: getattr(options, name) for name in ("documents", "tokens", "search", "search_limit")
    }
    request["json"] = options.json
    return aot.run(request | {"overrides": overrides})


def _convert(options: argparse.Namespace) -> int:
    from w2s_jax.models.convert import convert

    print(
        convert(
            options.source,
            options.to,
            options.format,
            dtype=options.dtype,
            tokenizer=options.tokenizer,
            head=not options.without_head,
        )
    )
    return 0


def _gc(options: argparse.Namespace) -> int:
    from pathlib import Path

    from w2s_jax.execution import storage_gc

    def confirm() -> bool:
        if options.yes:
            return True
        if not sys.stdin.isatty():
            print("nothing removed; use --yes to remove these files")
            return False
        return input("Remove these files? [y/N] ").strip().lower() in ("y", "yes")

    console = terminal.console()
    storage_gc.collect(Path(options.dir), console, confirm, finals=options.finals)
    return 0


def _labels(options: argparse.Namespace) -> int:
    from pathlib import Path

    from w2s_jax.execution import labels

    print(labels.export(Path(options.phase), Path(options.to)))
    return 0


def _models(options: argparse.Namespace) -> int:
    from w2s_jax.models import commands

    if options.name is None:
        # Wide enough not to break names, in a narrow terminal too.
        commands.list_models(terminal.console(columns=220))
    else:
        console = terminal.console()
        commands.show_model(options.name, console)
    return 0


if __name__ == "__main__":
    sys.exit(main())
