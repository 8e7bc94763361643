"""What the Hugging Face hub says of a repository, in one request. Imports no JAX.

The environment's HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE hold. The package huggingface_hub is
imported when first needed.
"""

from dataclasses import dataclass
from typing import Any

from w2s_jax.core.errors import InputError

INSTALL = "pip install 'w2s_jax[hub]'"
# How long the hub may take to answer. One request without retries: those of its client and of the
# libraries on top of it take most of a minute without a network.
_SECONDS = 5.0


class Unreachable(Exception):
    """The hub does not answer, or is not to be asked; the message says why, without a place."""


class NotFound(InputError):
    """What a user named is neither here nor, as far as can be seen, on the hub."""


@dataclass(frozen=True)
class Repository:
    """What the hub has of a repository at a revision: the commit, and the names of its files."""

    commit: str
    files: tuple[str, ...]


def endpoint() -> str:
    """The hub's address."""
    from huggingface_hub import constants

    return str(constants.ENDPOINT)


def offline() -> bool:
    """Whether the hub is not to be asked (HF_HUB_OFFLINE)."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def ask(kind: str, name: str, place: str, revision: str | None = None) -> Repository:
    """What the hub has of a repository.

    Args:
      kind: 'model' or 'dataset'.
      name: the repository, '<organisation>/<name>'.
      place: what the errors call it.
      revision: a branch, a tag or a commit (None: the main branch).

    Raises:
      Unreachable: if the hub does not answer within seconds, or is not to be asked.
      NotFound: if it has no such repository.
      InputError: if the repository is gated, has no such revision, or cannot be had otherwise.
    """
    from huggingface_hub import HfApi, errors

    if offline():
        raise Unreachable("offline mode (HF_HUB_OFFLINE)")
    try:
        api = HfApi()
        info: Any = (api.dataset_info if kind == "dataset" else api.model_info)(
            name, revision=revision, timeout=_SECONDS
        )
    except errors.GatedRepoError as error:
        page = f"{endpoint()}/{'datasets/' if kind == 'dataset' else ''}{name}"
        raise InputError(f"{place}: gated; accept its terms at {page} and set HF_TOKEN") from error
    except errors.RevisionNotFoundError as error:
        raise InputError(f"{place}: {name} has no revision {revision!r}") from error
    except errors.RepositoryNotFoundError as error:
        raise NotFound(
            f"{place}: there is no such {kind}, or it is private and HF_TOKEN gives no access"
        ) from error
    except errors.HfHubHTTPError as error:
        raise InputError(f"{place}: {first_line(error)}") from error
    except Exception as error:  # its HTTP library, and so the errors, differ between versions
        raise Unreachable(f"{type(error).__name__}: {first_line(error)}") from error
    return Repository(str(info.sha), tuple(str(file.rfilename) for file in info.siblings or ()))


def answers(kind: str, name: str) -> bool:
    """Whether the hub says anything of a repository, be it that there is none."""
    try:
        ask(kind, name, name)
    except (Unreachable, ImportError):
        return False
    except InputError:
        return True
    return True


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type if it has none."""
    lines = str(error).strip().splitlines()
    return lines[0].strip() if lines else type(error).__name__
