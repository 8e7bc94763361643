"""A whole run: check the working directory, run the missing phases, write result and report."""

import contextlib
import dataclasses
import errno
import json
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ml_collections import config_dict
from rich.console import Console
from rich.table import Table

from w2s_jax import artifacts, errors, metrics, validation
from w2s_jax import config as config_lib
from w2s_jax.artifacts import PhaseFolder
from w2s_jax.config import Settings
from w2s_jax.files import read_json, write_json
from w2s_jax.plan import Phase, Plan, memory_estimate
from w2s_jax.plan import plan as make_plan
from w2s_jax.report import print_result, write_report
from w2s_jax.resolve import Resolved, resolve

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from w2s_jax import phases

#: Fields in which a config may differ from the one that a working directory was begun with.
FREE_FIELDS = ("name", "log.", "mesh.", "checkpoint.", "task.data_dir", "losses")
FREE_ENDINGS = (".microbatch_size", ".remat")


def run(
    config: config_dict.ConfigDict,
    workdir: str | os.PathLike[str],
    *,
    store: str | os.PathLike[str] | None = None,
    dry_run: bool = False,
    console: Console | None = None,
    profile: tuple[int, int] | None = None,
    dump_hlo: bool = False,
) -> dict[str, Any]:
    """Runs the experiment that `config` describes, or what of it is missing in `workdir`.

    Args:
      config: see `w2s_jax.config.default_config`.
      workdir: the run's folder. A finished one is read, not run again; with more losses their
        students are added; any other difference is refused.
      store: where phases live, if not in `workdir`/phases; may be shared between runs.
      dry_run: print what would be done, write nothing, and return {}.
      console: where to print.
      profile: (start, stop): trace the steps start to stop - 1 of each phase that trains, into the
        phase's folder profile/ (see `perf.profile`).
      dump_hlo: write the step programs of each phase that trains into its folder hlo/.

    Returns:
      The contents of `workdir`/result.json.

    Raises:
      InputError: bad config, data or working directory; nothing has been written.
      Interrupted: by SIGTERM or SIGINT, after the state was saved; the same call resumes.
      TrainingFailed, StorageError: see there.
    """
    console = console or Console()
    workdir = Path(workdir)
    settings = validation.validate(config)
    stored = _stored(workdir)
    if store is None and stored is not None:
        store = stored.get("store")
    phases_dir = Path(store) if store is not None else workdir / "phases"
    if stored is not None:
        _refuse_other_config(workdir, stored["config"], stored["data"], config)
        settings = _with_earlier_losses(settings, stored["config"])
    resolved = resolve(settings)
    if stored is not None:
        _refuse_other_data(workdir, stored["data"], resolved)
    plan = make_plan(resolved)
    record = _record(config, stored, resolved)
    if store is not None:
        record["store"] = str(phases_dir.absolute())
    missing = [p for p in plan.phases if not PhaseFolder(phases_dir / p.name).complete]
    for note in resolved.notes:
        console.print(note, style="dim", highlight=False)
    if dry_run:
        _print_plan(plan, resolved, missing, console)
        return {}
    with _disk_errors(workdir):
        if missing:
            from w2s_jax import compilation, phases

            compilation.enable_cache()
            mesh, wandb_run = _devices_and_loggers(settings, workdir, record)
            # The record first: a folder that holds anything else is taken for a foreign one.
            _make_folder(workdir)
            write_json(workdir / "config.json", record)
            _make_folder(phases_dir)
            with _signals() as stopped:
                context = phases.Context(
                    resolved=resolved,
                    store=phases_dir,
                    mesh=mesh,
                    console=console,
                    should_stop=stopped,
                    wandb_run=wandb_run,
                    profile=profile,
                    dump_hlo=dump_hlo,
                )
                _run_phases(missing, context)
            if wandb_run is not None:
                wandb_run.finish()
        result = _result(plan, resolved, phases_dir)
        path = workdir / "result.json"
        if not _holds(path, result):
            _make_folder(workdir)
            write_json(workdir / "config.json", record)
            write_json(path, result)
        page = workdir / "report" / "report.html"
        if not page.exists() or page.stat().st_mtime_ns < path.stat().st_mtime_ns:
            write_report([workdir], page.parent)
    print_result(result, console)
    console.print(f"result: {path}\nreport: {page}", highlight=False)
    return result


def _holds(path: Path, result: dict[str, Any]) -> bool:
    """Whether a result.json is there and says this; a damaged one is written again."""
    try:
        return path.exists() and read_json(path) == result
    except errors.InputError:
        return False


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise errors.InputError(f"--workdir: cannot make {folder}: {error}") from error


#: What a storage device, rather than a program, does wrong.
_DISK_ERRNOS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO}


@contextlib.contextmanager
def _disk_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in _DISK_ERRNOS:
            raise
        raise errors.StorageError(
            f"{error.strerror or error} ({error.filename or folder}); complete checkpoints and "
            "phases are intact: mend it and run the same command again"
        ) from error


# --- the working directory -----------------------------------------------------------------------


def _plain(config: config_dict.ConfigDict) -> dict[str, Any]:
    """A config as it reads back from JSON."""
    return json.loads(json.dumps(config.to_dict()))


def _with_earlier_losses(settings: Settings, earlier: dict[str, Any]) -> Settings:
    """The settings with the losses that the working directory already has put before its own."""
    own = {loss.label for loss in settings.losses}
    kept = [
        validation.loss_settings(label, earlier["loss"][label])
        for label in earlier["losses"]
        if label not in own
    ]
    order = {label: n for n, label in enumerate(earlier["losses"])}
    merged = sorted([*kept, *settings.losses], key=lambda x: order.get(x.label, len(order)))
    return dataclasses.replace(settings, losses=tuple(merged))


def _stored(workdir: Path) -> dict[str, Any] | None:
    """The record that the working directory was begun with, or None for a new one.

    Raises:
      InputError: if it holds something else.
    """
    path = workdir / "config.json"
    if path.exists():
        stored = read_json(path)
        if isinstance(stored, dict) and {"config", "data"} <= stored.keys():
            return stored
        raise errors.InputError(
            f"--workdir: {path} is not a run's record; allowed: a new or empty folder, or the "
            "folder of this run"
        )
    if workdir.is_dir():
        # A kill in the first write leaves its temporary file.
        foreign = any(not p.match(".config.json.*.tmp") for p in workdir.iterdir())
    else:
        foreign = workdir.exists()
    if foreign:
        raise errors.InputError(
            f"--workdir: {workdir} is not empty and holds no run; allowed: a new or empty folder, "
            "or the folder of this run"
        )
    return None


def _refuse_other_config(
    workdir: Path, earlier: dict[str, Any], data: dict[str, str], config: config_dict.ConfigDict
) -> None:
    """Refuses a working directory that belongs to another experiment, naming what differs."""
    # Fields that did not exist when the run was begun had the defaults of today.
    there = config_lib.flatten(_plain(config_lib.default_config())) | config_lib.flatten(earlier)
    now = config_lib.flatten(_plain(config))
    # Models that are pinned by their contents may be elsewhere now.
    pinned = {f"{role}.model" for role in ("weak", "strong") if f"model:{role}" in data}
    differences = []
    for field in sorted(there.keys() | now.keys()):
        if field.startswith(FREE_FIELDS) or field.endswith(FREE_ENDINGS) or field in pinned:
            continue
        if field.startswith("loss.") and field.split(".")[1] not in earlier["losses"]:
            continue
        label_is_gone = field.startswith("loss.") and field not in now
        if there.get(field) != now.get(field) and not label_is_gone:
            differences.append(f"{field} ({there.get(field)!r} there, {now.get(field)!r} now)")
    if differences:
        raise _other_run(workdir, differences)


def _refuse_other_data(workdir: Path, earlier: dict[str, str], resolved: Resolved) -> None:
    """Refuses data and models that are not those that the run was begun with."""
    changed = [
        f"the model of {name.removeprefix('model:')} (it is another one)"
        if name.startswith("model:")
        else f"the documents of {name} (the data have changed)"
        for name, digest in earlier.items()
        if resolved.digests.get(name) != digest
    ]
    if changed:
        raise _other_run(workdir, changed)


def _other_run(workdir: Path, differences: list[str]) -> errors.InputError:
    return errors.InputError(
        f"--workdir: {workdir} holds a run that differs in {'; '.join(differences)}; allowed: the "
        "same config (losses may be added), or another folder"
    )


def _record(
    config: config_dict.ConfigDict, stored: dict[str, Any] | None, resolved: Resolved
) -> dict[str, Any]:
    """What config.json holds: the config, with all losses so far, and the digests of the data."""
    plain = _plain(config)
    if stored is not None:
        plain["loss"] = stored["config"]["loss"] | plain["loss"]
    plain["losses"] = [loss.label for loss in resolved.settings.losses]
    return {"config": plain, "data": dict(resolved.digests)}


# --- phases --------------------------------------------------------------------------------------


def _devices_and_loggers(
    settings: Settings, workdir: Path, record: dict[str, Any]
) -> tuple["Mesh", Any]:
    """What may still be refused before anything is written: the mesh, and Weights & Biases."""
    from w2s_jax import logs, sharding

    mesh = sharding.make_mesh(settings.mesh)
    return mesh, logs.start_wandb(settings.log, settings.name, workdir, record["config"])


def _run_phases(missing: list[Phase], context: "phases.Context") -> None:
    from w2s_jax import phases

    console = context.console
    for number, phase in enumerate(missing, 1):
        folder = context.folder(phase.name)

        def waiting(phase: Phase = phase) -> None:
            console.print(f"waiting: another process runs {phase.title}", highlight=False)

        with artifacts.claim(folder, waiting, context.should_stop):
            if not folder.complete:
                phases.run_phase(phase, context)
        _print_phase(number, len(missing), phase, artifacts.read_result(folder), console)
        if context.should_stop():
            raise errors.Interrupted(
                f"stopped by a signal after {phase.title}; the same command resumes"
            )


def _print_phase(
    number: int, total: int, phase: Phase, result: dict[str, Any], console: Console
) -> None:
    numbers = f"loss {result['train_loss']:.4f}" if "train_loss" in result else ""
    if "metrics" in result:
        test = result["metrics"]["test"]
        numbers += f"  test accuracy {test['accuracy']:.3f} ± {test['accuracy_se']:.3f}"
    if result.get("kept_step") != result.get("steps"):
        numbers += f"  kept step {result['kept_step']}"
    compiling = result.get("compile_seconds", 0.0)
    if compiling >= max(1.0, 0.25 * result["seconds"]):
        numbers += f"  (compiling: {compiling:.1f} s)"
    console.print(
        f"[{number}/{total}] {phase.title:<20} {phase.model.name:<12} {phase.total_steps:>5} steps "
        f"{result['seconds']:6.1f} s  {numbers}",
        highlight=False,
        markup=False,
    )


@contextlib.contextmanager
def _signals() -> Iterator[Callable[[], bool]]:
    """SIGTERM and SIGINT ask for a stop at the next boundary; a second one acts as usual."""
    asked = threading.Event()
    before: dict[int, Any] = {}

    def handle(number: int, _: Any) -> None:
        asked.set()
        signal.signal(number, before[number])

    if threading.current_thread() is threading.main_thread():
        before = {n: signal.signal(n, handle) for n in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield asked.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# --- results -------------------------------------------------------------------------------------


def _result(plan: Plan, resolved: Resolved, phases_dir: Path) -> dict[str, Any]:
    """The contract's result.json from what the phases left."""
    settings = resolved.settings
    found = {p.name: artifacts.read_result(PhaseFolder(phases_dir / p.name)) for p in plan.phases}

    def role(name: str) -> dict[str, Any]:
        return {"model": found[name]["model"], **found[name]["metrics"]["test"]}

    weak, ceiling = role(plan.weak), role(plan.ceiling)
    weak_test = _test_predictions(phases_dir, plan.weak)
    students = {}
    for label, name in plan.students.items():
        student = role(name)
        pgr, note = metrics.performance_gap_recovered(
            weak["accuracy"], student["accuracy"], ceiling["accuracy"]
        )
        student |= {"pgr": pgr} | ({} if note is None else {"pgr_note": note})
        test = _test_predictions(phases_dir, name)
        if list(test["id"]) != list(weak_test["id"]):
            raise errors.StorageError(
                f"{phases_dir / name}: its test documents are not those of {plan.weak}"
            )
        students[label] = student | metrics.agreement_metrics(
            test["p"], weak_test["p"], test["ground_truth"]
        )
    stages = []
    for phase in plan.phases:
        model = found[phase.name]["model"]
        stage = {"kind": phase.kind, "phase": phase.name, "model": model}
        if phase.kind == "student":
            stage["label"] = phase.label
        if "metrics" in found[phase.name]:
            stage["accuracy"] = found[phase.name]["metrics"]["test"]["accuracy"]
        stages.append(stage)
    return {
        "name": settings.name,
        "task": settings.task.name,
        "seed": settings.seed,
        "protocol": settings.protocol.name,
        "weak": weak,
        "ceiling": ceiling,
        "students": students,
        "stages": stages,
        "timing": {
            "seconds": sum(f["seconds"] for f in found.values()),
            # Phases of earlier versions do not tell.
            "compile_seconds": sum(f.get("compile_seconds", 0.0) for f in found.values()),
        },
        "versions": _versions(found.values()),
    }


def _versions(results: Iterable[dict[str, Any]]) -> dict[str, str]:
    """The versions that computed the phases; several of a package are joined."""
    seen: dict[str, list[str]] = {}
    for result in results:
        for name, version in result["execution"]["versions"].items():
            if version not in seen.setdefault(name, []):
                seen[name].append(version)
    return {name: ", ".join(versions) for name, versions in seen.items()}


def _test_predictions(phases_dir: Path, name: str) -> dict[str, Any]:
    return artifacts.read_predictions(PhaseFolder(phases_dir / name).predictions, "test")


def _print_plan(plan: Plan, resolved: Resolved, missing: list[Phase], console: Console) -> None:
    table = Table(title="phases", title_justify="left", box=None, pad_edge=False)
    columns = ("phase", "what", "model", "trains", "rate", "steps", "state", "memory (estimate)")
    for column in columns:
        table.add_column(column, overflow="fold")
    for phase in plan.phases:
        total = memory_estimate(phase, resolved)["total"]
        state = "missing" if phase in missing else "done"
        table.add_row(
            phase.name,
            phase.title,
            phase.model.name,
            phase.train.adapt if phase.total_steps else "",
            f"{phase.train.learning_rate:g}" if phase.total_steps else "",
            str(phase.total_steps),
            state,
            f"{total / 2**20:,.1f} MiB",
        )
    console.print(table)
    console.print(f"{len(missing)} of {len(plan.phases)} phases to run", highlight=False)
