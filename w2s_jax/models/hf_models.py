"""Find the local folder of a model, downloading it from the Hugging Face hub if needed.

Imports no JAX.
"""

import os
import re
from collections.abc import Iterable
from pathlib import Path

from w2s_jax.core import hf_hub
from w2s_jax.core.errors import InputError, first_line
from w2s_jax.models.checkpoint_files import (
    ADAPTER,
    ADAPTER_CONFIG,
    CONFIG,
    INDEX,
    MODULES,
    POOLING,
    SINGLE,
    TOKENIZER_FILES,
    no_safetensors,
)
from w2s_jax.models.gguf_files import SUFFIX, is_gguf

_ID = re.compile(r"(?P<name>\w[\w.-]*(/[\w.-]+)?)(@(?P<revision>[\w./-]+))?")


def split_id(path_or_id: str) -> tuple[str, str | None] | None:
    """Split a hub id into (repository, revision or None); None if it is not a valid id."""
    found = _ID.fullmatch(path_or_id)
    return None if found is None else (found["name"], found["revision"])


def local_folder(path_or_id: str | os.PathLike[str]) -> Path:
    """Return the local folder of a model given by path or hub id; of a GGUF file, its path.

    Only the safetensors, JSON and tokenizer files of a repository are downloaded, to the hub's
    cache. The environment variables HF_ENDPOINT, HF_TOKEN, HF_HUB_CACHE and HF_HUB_OFFLINE are
    respected. The cache is used when the hub is not reachable.

    Args:
      path_or_id: a folder; or a hub id, optionally with '@revision' (a branch, a tag such as
        Pythia's 'step3000', or a commit).

    Raises:
      hf_hub.NotFound: if neither a folder nor a repository is found; says what was tried.
      InputError: if the model cannot be read or downloaded.
    """
    path = Path(path_or_id).expanduser()
    if path.is_dir():
        return path
    if is_gguf(path):
        return path
    if path.exists():
        raise InputError(f"{path}: is a file; give the folder of a model, or a .gguf file")
    if path.suffix == SUFFIX:
        raise hf_hub.NotFound(f"{path}: no such file")
    found = split_id(str(path_or_id))
    if found is None:
        raise hf_hub.NotFound(
            f"{path}: no such folder; give a folder, or a hub id such as 'EleutherAI/pythia-70m' "
            "or 'EleutherAI/pythia-70m@step3000'"
        )
    return _download(*found)


def _download(name: str, revision: str | None) -> Path:
    hub_id = name if revision is None else f"{name}@{revision}"
    from huggingface_hub import constants, errors, snapshot_download

    unreachable = None
    wanted = None
    try:
        wanted = _wanted_files(hf_hub.ask("model", name, hub_id, revision).files, hub_id)
    except hf_hub.Unreachable as error:
        offline = hf_hub.offline()
        unreachable = str(error) if offline else f"{hf_hub.endpoint()} is not reachable ({error})"
    except hf_hub.NotFound as error:
        raise hf_hub.NotFound(
            f"{error} (asked {hf_hub.endpoint()}), and there is no such folder"
        ) from error
    try:
        return Path(
            snapshot_download(
                name,
                revision=revision,
                allow_patterns=wanted,
                local_files_only=unreachable is not None,
            )
        )
    except errors.LocalEntryNotFoundError as error:
        raise hf_hub.NotFound(
            f"{hub_id}: no such folder, and not in the hub's cache ({constants.HF_HUB_CACHE}): "
            f"{unreachable or first_line(error)}"
        ) from error
    except Exception as error:  # the HTTP library, and so its errors, depend on the version
        raise InputError(f"{hub_id}: cannot be downloaded ({first_line(error)})") from error


def _wanted_files(siblings: Iterable[str], hub_id: str) -> list[str]:
    """Return the files to download: no other formats, subfolders or second copies."""
    names = list(siblings)
    top = [name for name in names if "/" not in name]
    tensors = [name for name in top if name.endswith(".safetensors")]
    if SINGLE in tensors:
        tensors = [SINGLE]
    elif INDEX in top:
        # Mistral's repositories have a second copy in 'consolidated' files.
        tensors = [INDEX, *(name for name in tensors if not name.startswith("consolidated"))]
    elif {ADAPTER, ADAPTER_CONFIG} <= set(top):
        tensors = [ADAPTER_CONFIG, ADAPTER]
    else:
        raise no_safetensors(hub_id, top)
    return [
        name for name in (CONFIG, POOLING, MODULES, *TOKENIZER_FILES) if name in names
    ] + tensors
