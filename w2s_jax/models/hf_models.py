"""Models on the Hugging Face hub: from an id to a local folder. Imports no JAX."""

import os
import re
from collections.abc import Iterable
from pathlib import Path

from w2s_jax.core import hf_hub
from w2s_jax.core.errors import InputError, first_line
from w2s_jax.models.checkpoint_files import (
    CONFIG,
    INDEX,
    POOLING,
    SINGLE,
    TOKENIZER_FILES,
    no_safetensors,
)

_ID = re.compile(r"(?P<name>\w[\w.-]*(/[\w.-]+)?)(@(?P<revision>[\w./-]+))?")


def split_id(path_or_id: str) -> tuple[str, str | None] | None:
    """(repository, revision or None) of a hub id; None if it is not spelt like one."""
    found = _ID.fullmatch(path_or_id)
    return None if found is None else (found["name"], found["revision"])


def local_folder(path_or_id: str | os.PathLike[str]) -> Path:
    """The folder of a model that is named by its path or by its id on the hub.

    Args:
      path_or_id: a folder; or a hub id, which may end in '@revision' (a branch, a tag such as
        Pythia's 'step3000', or a commit). Of a repository only safetensors, JSON and tokenizer
        files are downloaded, into the hub's cache; the environment's HF_ENDPOINT, HF_TOKEN,
        HF_HUB_CACHE and HF_HUB_OFFLINE hold. Where the hub does not answer, the cache is used.

    Raises:
      hub.NotFound: if there is neither; says what was tried.
      InputError: if it cannot be read or had.
    """
    path = Path(path_or_id).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise InputError(f"{path}: a file; allowed: the folder of a model")
    found = split_id(str(path_or_id))
    if found is None:
        raise hf_hub.NotFound(
            f"{path}: no such folder; allowed: a folder, or a hub id such as 'EleutherAI/pythia-"
            "70m' or 'EleutherAI/pythia-70m@step3000'"
        )
    return _download(*found)


def _download(name: str, revision: str | None) -> Path:
    place = name if revision is None else f"{name}@{revision}"
    from huggingface_hub import constants, errors, snapshot_download

    unreachable = None
    wanted = None
    try:
        wanted = _files(hf_hub.ask("model", name, place, revision).files, place)
    except hf_hub.Unreachable as error:
        offline = hf_hub.offline()
        unreachable = str(error) if offline else f"{hf_hub.endpoint()} is not reachable ({error})"
    except hf_hub.NotFound as error:
        raise hf_hub.NotFound(
            f"{error} (asked: {hf_hub.endpoint()}); nor is there such a folder"
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
            f"{place}: no such folder, and not in the hub's cache ({constants.HF_HUB_CACHE}): "
            f"{unreachable or first_line(error)}"
        ) from error
    except Exception as error:  # its HTTP library, and so the errors, differ between versions
        raise InputError(f"{place}: cannot be downloaded ({first_line(error)})") from error


def _files(siblings: Iterable[str], place: str) -> list[str]:
    """What of a repository is downloaded: no other formats, folders or second copies."""
    names = list(siblings)
    top = [name for name in names if "/" not in name]
    tensors = [name for name in top if name.endswith(".safetensors")]
    if SINGLE in tensors:
        tensors = [SINGLE]
    elif INDEX in top:
        # Mistral's repositories hold everything once more in 'consolidated' files.
        tensors = [INDEX, *(name for name in tensors if not name.startswith("consolidated"))]
    else:
        raise no_safetensors(place, top)
    return [name for name in (CONFIG, POOLING, *TOKENIZER_FILES) if name in names] + tensors
