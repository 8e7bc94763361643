"""A run's working directory: the config it was created with, and what may differ from it."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from ml_collections import config_dict

from w2s_jax import config as config_lib
from w2s_jax.config import Settings, validation
from w2s_jax.core import errors, files, processes
from w2s_jax.core.files import read_json
from w2s_jax.planning.resolve import Resolved

#: Fields in which a config may differ from the one that a working directory was created with.
FREE_FIELDS = ("name", "log.", "mesh.", "checkpoint.", "task.data_dir", "losses", "method.name")
FREE_ENDINGS = (".microbatch_size", ".remat")
#: Fields whose None is one of their other values: what counts is whether the documents differ.
BY_DOCUMENTS = ("task.train_split", "task.truncate", "task.empty")


def make(folder: Path) -> None:
    """Create a folder and its parents.

    Raises:
      InputError: the folder cannot be created.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise errors.InputError(f"--workdir: cannot create {folder}: {error}") from error


def refuse_unwritable(workdir: Path, store: Path, settings: Settings) -> None:
    """Check all output folders of a run, before any work; leaves nothing in them.

    Raises:
      InputError: one cannot be written.
    """
    if not processes.is_first():
        return
    folders = {"--workdir": workdir, "--store": store}
    if settings.checkpoint.dir is not None:
        folders["checkpoint.dir"] = files.checkpoint_location(settings.checkpoint.dir)
    for field, folder in folders.items():
        if field != "--store" or workdir not in folder.parents:
            files.refuse_unwritable(folder, field)


def _plain(config: config_dict.ConfigDict) -> dict[str, Any]:
    """Return a config as it reads back from JSON."""
    return json.loads(json.dumps(config.to_dict()))


def with_earlier_losses(settings: Settings, earlier: dict[str, Any]) -> Settings:
    """Return the settings with the losses of the working directory before their own."""
    own = {loss.label for loss in settings.losses}
    kept = [
        validation.loss_settings(label, earlier["loss"][label])
        for label in earlier["losses"]
        if label not in own
    ]
    order = {label: n for n, label in enumerate(earlier["losses"])}
    merged = sorted([*kept, *settings.losses], key=lambda x: order.get(x.label, len(order)))
    # Methods that apply to all losses apply to the earlier ones too.
    all_taken = settings.method_losses == settings.losses
    taken = tuple(merged) if all_taken else settings.method_losses
    return dataclasses.replace(settings, losses=tuple(merged), method_losses=taken)


def with_earlier_methods(settings: Settings, earlier: dict[str, Any]) -> Settings:
    """Return the settings with the methods of the working directory before their own."""
    own = {method.kind for method in settings.methods}
    kept = [
        validation.method_settings(kind, earlier["method"].get(kind, {}))
        for kind in _methods(earlier)
        if kind not in own and kind != "naive"
    ]
    methods = (*kept, *settings.methods)
    middle = validation.middle_roles(settings.strong, methods)
    return dataclasses.replace(settings, methods=methods, middle=middle)


def _method_matters(field: str, methods: list[str]) -> bool:
    """Return whether a field of `config.method` concerns these methods."""
    if field == "method.losses":
        return methods != ["naive"]
    return field.split(".")[1] in methods


def _loss_label(field: str) -> str:
    """Return the loss that a field of `config.loss` belongs to; labels may contain dots."""
    return field.removeprefix("loss.").rpartition(".")[0]


def _methods(earlier: dict[str, Any]) -> list[str]:
    """Return the methods of a stored config, which may be older than methods."""
    name = earlier.get("method", {}).get("name", "naive")
    return [kind.strip() for kind in name.split(",") if kind.strip()]


def stored(workdir: Path) -> dict[str, Any] | None:
    """Return the contents of a working directory's config.json, or None for a new directory.

    Raises:
      InputError: the folder is not that of a run.
    """
    path = workdir / "config.json"
    if path.exists():
        found = read_json(path)
        if isinstance(found, dict) and {"config", "data"} <= found.keys():
            return found
        raise errors.InputError(
            f"--workdir: {path} is not the config of a run; use a new or empty folder, or this "
            "run's folder"
        )
    # A kill in the first write leaves its temporary file, which is hidden.
    foreign = workdir.exists() and (not workdir.is_dir() or bool(files.contents(workdir)))
    if foreign:
        kind = "not a run folder" if workdir.is_dir() else "a file"
        raise errors.InputError(
            f"--workdir: {workdir} is {kind}; use a new or empty folder, or this run's folder"
        )
    return None


def refuse_other_config(
    workdir: Path, earlier: dict[str, Any], data: dict[str, str], config: config_dict.ConfigDict
) -> None:
    """Refuse a working directory of another experiment, naming the fields that differ."""
    # Fields that did not exist when the run was created have their current defaults.
    there = config_lib.flatten(_plain(config_lib.default_config())) | config_lib.flatten(earlier)
    now = config_lib.flatten(_plain(config))
    # Models that are pinned by their contents may have moved.
    pinned = {f"{role}.model" for role in ("weak", "strong") if f"model:{role}" in data}
    differences = []
    for field in sorted(there.keys() | now.keys()):
        if field.startswith(FREE_FIELDS) or field.endswith(FREE_ENDINGS) or field in pinned:
            continue
        if field in BY_DOCUMENTS and None in (there.get(field), now.get(field)):
            continue
        if field.startswith("loss.") and _loss_label(field) not in earlier["losses"]:
            continue
        if field.startswith("method.") and not _method_matters(field, _methods(earlier)):
            continue
        label_is_gone = field.startswith("loss.") and field not in now
        if there.get(field) != now.get(field) and not label_is_gone:
            differences.append(f"{field} ({there.get(field)!r} there, {now.get(field)!r} now)")
    if differences:
        raise _other_run(workdir, differences)


def refuse_other_data(workdir: Path, stored: dict[str, Any], resolved: Resolved) -> None:
    """Refuse data and models that have changed since the run was created."""
    earlier: dict[str, str] = stored["data"]
    changed = [
        f"the model of {name.removeprefix('model:')} (its files have changed)"
        if name.startswith("model:")
        else f"the documents of {name} (the data have changed)"
        for name, digest in earlier.items()
        if resolved.digests.get(name) != digest
    ]
    if changed:
        raise _other_run(workdir, [*_by_documents(stored["config"]["task"], resolved), *changed])


def _by_documents(earlier: dict[str, Any], resolved: Resolved) -> list[str]:
    """Return the fields of the task that may be why the documents have changed."""
    task = resolved.settings.task
    differences = []
    for field in BY_DOCUMENTS:
        name = field.removeprefix("task.")
        there, now = earlier.get(name), getattr(task, name)
        if there != now:
            differences.append(f"{field} ({there!r} there, {now!r} now)")
        elif name == "truncate" and name not in earlier and now is None:
            # Runs of a version without the field.
            pairs = resolved.roles["weak"].splits["slice2"].num_texts == 2
            differences += ["the side at which pairs are cut (task.truncate=end there)"] * pairs
    return differences


def _other_run(workdir: Path, differences: list[str]) -> errors.InputError:
    return errors.InputError(
        f"--workdir: {workdir} contains a run that differs in {'; '.join(differences)}; use the "
        "same config (losses and methods may be added), or another folder"
    )


def record(
    config: config_dict.ConfigDict, stored: dict[str, Any] | None, resolved: Resolved
) -> dict[str, Any]:
    """Return the contents of config.json: the config with all losses so far, and data digests."""
    plain = _plain(config)
    if stored is not None:
        plain["loss"] = stored["config"]["loss"] | plain["loss"]
    plain["losses"] = [loss.label for loss in resolved.settings.losses]
    plain["method"]["name"] = ",".join(m.kind for m in resolved.settings.methods) or "naive"
    return {"config": plain, "data": dict(resolved.digests)}
