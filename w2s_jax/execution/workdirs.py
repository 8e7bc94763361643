"""A run's working directory: what it was begun with, and what may differ from that."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from ml_collections import config_dict

from w2s_jax import config as config_lib
from w2s_jax.config import Settings, validation
from w2s_jax.core import errors
from w2s_jax.core.files import read_json
from w2s_jax.planning.resolve import Resolved

#: Fields in which a config may differ from the one that a working directory was begun with.
FREE_FIELDS = ("name", "log.", "mesh.", "checkpoint.", "task.data_dir", "losses", "method.name")
FREE_ENDINGS = (".microbatch_size", ".remat")


def make(folder: Path) -> None:
    """Makes the folder and those around it.

    Raises:
      InputError: if the system refuses.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise errors.InputError(f"--workdir: cannot make {folder}: {error}") from error


def _plain(config: config_dict.ConfigDict) -> dict[str, Any]:
    """A config as it reads back from JSON."""
    return json.loads(json.dumps(config.to_dict()))


def with_earlier_losses(settings: Settings, earlier: dict[str, Any]) -> Settings:
    """The settings with the losses that the working directory already has put before its own."""
    own = {loss.label for loss in settings.losses}
    kept = [
        validation.loss_settings(label, earlier["loss"][label])
        for label in earlier["losses"]
        if label not in own
    ]
    order = {label: n for n, label in enumerate(earlier["losses"])}
    merged = sorted([*kept, *settings.losses], key=lambda x: order.get(x.label, len(order)))
    # Methods that take all losses take the earlier ones too.
    all_taken = settings.method_losses == settings.losses
    taken = tuple(merged) if all_taken else settings.method_losses
    return dataclasses.replace(settings, losses=tuple(merged), method_losses=taken)


def with_earlier_methods(settings: Settings, earlier: dict[str, Any]) -> Settings:
    """The settings with the methods that the working directory already has put before its own."""
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
    """Whether a field of `config.method` says something of these methods."""
    if field == "method.losses":
        return methods != ["naive"]
    return field.split(".")[1] in methods


def _loss_label(field: str) -> str:
    """Whose option a field of `config.loss` is; labels may have dots."""
    return field.removeprefix("loss.").rpartition(".")[0]


def _methods(earlier: dict[str, Any]) -> list[str]:
    """The methods of a stored config; those of before there were any have none."""
    name = earlier.get("method", {}).get("name", "naive")
    return [kind.strip() for kind in name.split(",") if kind.strip()]


def stored(workdir: Path) -> dict[str, Any] | None:
    """The record that the working directory was begun with, or None for a new one.

    Raises:
      InputError: if it holds something else.
    """
    path = workdir / "config.json"
    if path.exists():
        found = read_json(path)
        if isinstance(found, dict) and {"config", "data"} <= found.keys():
            return found
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


def refuse_other_config(
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
        if field.startswith("loss.") and _loss_label(field) not in earlier["losses"]:
            continue
        if field.startswith("method.") and not _method_matters(field, _methods(earlier)):
            continue
        label_is_gone = field.startswith("loss.") and field not in now
        if there.get(field) != now.get(field) and not label_is_gone:
            differences.append(f"{field} ({there.get(field)!r} there, {now.get(field)!r} now)")
    if differences:
        raise _other_run(workdir, differences)


def refuse_other_data(workdir: Path, earlier: dict[str, str], resolved: Resolved) -> None:
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
        "same config (losses and methods may be added), or another folder"
    )


def record(
    config: config_dict.ConfigDict, stored: dict[str, Any] | None, resolved: Resolved
) -> dict[str, Any]:
    """What config.json holds: the config, with all losses so far, and the digests of the data."""
    plain = _plain(config)
    if stored is not None:
        plain["loss"] = stored["config"]["loss"] | plain["loss"]
    plain["losses"] = [loss.label for loss in resolved.settings.losses]
    plain["method"]["name"] = ",".join(m.kind for m in resolved.settings.methods) or "naive"
    return {"config": plain, "data": dict(resolved.digests)}
