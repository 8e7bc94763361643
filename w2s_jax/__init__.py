"""w2s_jax: weak-to-strong generalization in JAX.

    import w2s_jax
    from w2s_jax.config import default_config

    result = w2s_jax.run(default_config(), "runs/first")

Importing the package imports no JAX.
"""

import os
from typing import TYPE_CHECKING, Any

from w2s_jax.core.version import __version__ as __version__

if TYPE_CHECKING:
    from ml_collections import config_dict


def run(config: "config_dict.ConfigDict", workdir: str | os.PathLike[str]) -> dict[str, Any]:
    """Run the experiment that `config` describes in `workdir` and return its result.json.

    See `w2s_jax.execution.execute.run`, which has more options, for what is resumed and what is
    refused.
    """
    from w2s_jax.execution import execute

    return execute.run(config, workdir)
