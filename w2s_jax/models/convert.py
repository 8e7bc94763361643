"""`w2s convert`: convert models between Hugging Face's layout and that of w2s_jax.

Imports JAX only when a model is converted. A converted folder has the layout of a phase folder, so
that `models.load` reads both:

    DIR/config.json  DIR/checkpoints/final/  DIR/checkpoints/final.manifest.json  DIR/tokenizer/
"""

import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from w2s_jax.core import errors
from w2s_jax.core.files import new_folder, refuse_existing, write_json
from w2s_jax.models import checkpoint_files as files
from w2s_jax.models.notes import say

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
    """Write the model `source` to the new folder `target`.

    Args:
      source: a model that `models.load` accepts.
      target: a new folder.
      format: 'orbax' (fastest to load with `models.load`), 'huggingface' (with adapters merged), or
        'peft' (only the low-rank adapters that a phase trained, as PEFT loads them).
      dtype: dtype of the written parameters, 'float32' or 'bfloat16' (None: that of `models.load`).
      tokenizer: folder whose tokenizer files are copied (None: those of the source, if any).
      head: whether to write the class head, if there is one.

    Returns:
      A one-line summary.

    Raises:
      InputError: if an argument is invalid, the source cannot be read, or the format cannot express
        the model.
      StorageError: if the source is damaged, or the target cannot be written.
    """
    if format not in FORMATS:
        raise errors.unknown("--format", format, FORMATS)
    folder = Path(target)
    refuse_existing(folder, "--to")
    if tokenizer is not None and not (Path(tokenizer) / "tokenizer.json").is_file():
        raise errors.InputError(
            f"--tokenizer: {tokenizer} has no tokenizer.json; give the folder of a fast tokenizer"
        )
    # No computation, so use host memory: an accelerator may be too small or in use.
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    import jax

    from w2s_jax import sharding
    from w2s_jax.models.exporting import export_huggingface
    from w2s_jax.models.loading import load_adapted, load_all

    mesh = sharding.mesh_of((1, 1, 1), jax.local_devices()[:1])
    if format == "peft":
        model = load_adapted(source, mesh, dtype)
    else:
        model = load_all(source, mesh, dtype, with_head=head)
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
            labels=model.labels if model.head is not None else None,
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
    classes = None
    if model.head is not None:
        tree["head"] = model.head
        classes = model.head["kernel"].shape[1]
        # The head of a text has two outputs; that of a pair has one, the reward of each text.
        spec["texts"] = 2 if classes == 1 else 1
    record = {
        "kind": CONVERTED,
        "source": source,
        "spec": spec,
        "head": model.head is not None,
        "head_classes": classes,
        "head_bias": model.head is not None and "bias" in model.head,
        "dtype": str(model.params["embedding"].dtype),
        "huggingface": model.huggingface,
        "label_names": model.labels,
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
    if model.head is not None and not model.config.bidirectional:
        say(
            f"{folder}: the config of the base is not part of it; load the base as a classifier "
            "with a pad_token_id that no text has, which may not be its own"
        )
    parameters = model.config.num_adapter_parameters()
    return f"{source} -> {folder} (peft): adapters of {model.base}, {parameters:,} parameters"
