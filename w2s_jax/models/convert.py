"""`w2s convert`: between Hugging Face's folders and ours. Imports no JAX before it must.

A converted folder is laid out as a phase's, so that `models.load` reads both:

    DIR/config.json  DIR/checkpoints/final/  DIR/checkpoints/final.manifest.json  DIR/tokenizer/
"""

import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from w2s_jax.core import errors
from w2s_jax.core.files import new_folder, write_json
from w2s_jax.models import checkpoint_files as files

if TYPE_CHECKING:
    from w2s_jax.models.loading import Loaded

FORMATS = ("orbax", "huggingface", "peft")


def convert(
    source: str,
    target: str | os.PathLike[str],
    format: str,
    *,
    dtype: str | None = None,
    tokenizer: str | None = None,
    head: bool = True,
) -> str:
    """Writes the model `source` as the new folder `target`; returns one line on what was done.

    Args:
      source: whatever `models.load` takes.
      target: a new folder.
      format: 'orbax' (what `models.load` reads fastest), 'huggingface' (adapters are merged), or
        'peft': of a phase that trained low-rank adapters these alone, as PEFT loads them.
      dtype: of what is written, 'float32' or 'bfloat16' (None: as `models.load` has it).
      tokenizer: a folder whose tokenizer files go with the model (None: the source's, if any).
      head: False leaves a class head out.

    Raises:
      InputError: for a bad argument, or a source that cannot be read or expressed.
      StorageError: if a folder of ours is damaged, or the target cannot be written.
    """
    if format not in FORMATS:
        raise errors.unknown("--format", format, FORMATS)
    folder = Path(target)
    if folder.exists():
        raise errors.InputError(
            f"--to: {folder}: there is something already; allowed: a new folder"
        )
    if tokenizer is not None and not (Path(tokenizer) / "tokenizer.json").is_file():
        raise errors.InputError(
            f"--tokenizer: {tokenizer}: it has no tokenizer.json; allowed: the folder of a fast "
            "tokenizer"
        )
    # Nothing is computed: host memory is enough, and an accelerator may be too small or in use.
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    import jax

    from w2s_jax import sharding
    from w2s_jax.models.exporting import export_huggingface
    from w2s_jax.models.loading import load_adapted, load_all

    mesh = sharding.mesh_of((1, 1, 1), jax.local_devices()[:1])
    model = (load_adapted if format == "peft" else load_all)(source, mesh, dtype)
    if not head:
        model = dataclasses.replace(model, head=None)
    if format == "peft":
        return _write_adapters(model, folder, source)
    files_from = model.tokenizer if tokenizer is None else Path(tokenizer)
    if format == "huggingface":
        export_huggingface(
            model.config,
            model.params,
            folder,
            head=model.head,
            tokenizer_from=files_from,
            source=model.huggingface,
        )
    else:
        _write_orbax(model, folder, source, files_from)
    parameters = model.config.num_parameters()
    return f"{source} -> {folder} ({format}): {model.config.name}, {parameters:,} parameters"


def _write_orbax(model: "Loaded", folder: Path, source: str, tokenizer: Path | None) -> None:
    from w2s_jax.models.sources import CONVERTED
    from w2s_jax.store import trees

    tree = {"backbone": model.params}
    spec: dict[str, Any] = {"model": model.config.to_dict()}
    if model.head is not None:
        tree["head"] = model.head
        # A reward stands at each of a pair's texts.
        spec["texts"] = 2 // model.head["kernel"].shape[1]
    record = {
        "kind": CONVERTED,
        "source": source,
        "spec": spec,
        "head": model.head is not None,
        "head_bias": model.head is not None and "bias" in model.head,
        "dtype": str(model.params["embedding"].dtype),
        "huggingface": model.huggingface,
    }
    with new_folder(folder) as new:
        trees.save_tree(new / "checkpoints" / "final", tree)
        if tokenizer is not None and files.tokenizer_files(tokenizer):
            (new / "tokenizer").mkdir()
            files.copy_tokenizer(tokenizer, new / "tokenizer")
        write_json(new / files.CONFIG, record)


def _write_adapters(model: "Loaded", folder: Path, source: str) -> str:
    from w2s_jax.models import lora

    lora.save_peft(model.config, model.params, folder, base_model=model.base, head=model.head)
    parameters = model.config.num_adapter_parameters()
    return f"{source} -> {folder} (peft): adapters of {model.base}, {parameters:,} parameters"
