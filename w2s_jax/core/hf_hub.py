"""Ask the Hugging Face hub about a repository, in one request. Imports no JAX.

Respects HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE. The package huggingface_hub is imported on first
use.
"""

from dataclasses import dataclass
from typing import Any

from w2s_jax.core.errors import InputError, first_line

INSTALL = "pip install 'w2s_jax[hub]'"
# Timeout of the one request, without retries: those of the hub's client and of the libraries on
# top of it take most of a minute without a network.
_SECONDS = 5.0


class Unreachable(Exception):
    """The hub does not answer, or offline mode is on; the message is the reason only."""


class NotFound(InputError):
    """Neither a local folder nor, as far as can be seen, a repository of the hub."""


@dataclass(frozen=True)
class Repository:
    """A repository at a revision: its commit, and the names of its files."""

    commit: str
    files: tuple[str, ...]


def endpoint() -> str:
    """Return the hub's address."""
    from huggingface_hub import constants

    return str(constants.ENDPOINT)


def offline() -> bool:
    """Return whether the hub must not be asked (HF_HUB_OFFLINE)."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def ask(kind: str, name: str, subject: str, revision: str | None = None) -> Repository:
    """Ask the hub about a repository.

    Args:
      kind: 'model' or 'dataset'.
      name: the repository, '<organisation>/<name>'.
      subject: what errors begin with.
      revision: a branch, tag or commit (None: the main branch).

    Raises:
      Unreachable: the hub does not answer within seconds, or offline mode is on.
      NotFound: there is no such repository.
      InputError: the repository is gated, has no such revision, or is not accessible otherwise.
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
        raise InputError(
            f"{subject}: gated; accept its terms at {page} and set HF_TOKEN"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise InputError(f"{subject}: {name} has no revision {revision!r}") from error
    except errors.RepositoryNotFoundError as error:
        raise NotFound(
            f"{subject}: there is no such {kind}, or it is private and HF_TOKEN gives no access"
        ) from error
    except errors.HfHubHTTPError as error:
        raise InputError(f"{subject}: {first_line(error)}") from error
    except Exception as error:  # its HTTP library, and so the errors, differ between versions
        raise Unreachable(first_line(error)) from error
    return Repository(str(info.sha), tuple(str(file.rfilename) for file in info.siblings or ()))


def answers(kind: str, name: str) -> bool:
    """Return whether the hub answers a question about a repository, even if there is none."""
    try:
        ask(kind, name, name)
    except Unreachable:
        return False
    except InputError:
        return True
    return True
