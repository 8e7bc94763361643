"""Files of tiny sweeps, on the tiny task."""

from pathlib import Path
from typing import Any

#: Changes to the recipe: two models, each pretrained once, on one device.
PAIR = {"strong.model": "gpt-d8", "mesh.data": 1, "strong.pretrain.seed": 1}


def write_sweep(
    path: Path, data_dir: Path, points: str, changes: dict[str, Any] | None = None
) -> Path:
    """Writes a sweep file.

    Args:
      path: where to.
      data_dir: of `testing.write_tiny_task`.
      points: what the file's `sweep` returns, an expression in the sweep language.
      changes: what its recipe changes of the tiny one, by dotted names.
    """
    path.write_text(
        "from w2s_jax.sweep.space import *\n"
        "from w2s_jax.testing import tiny_config\n"
        "def get_config():\n"
        f"    config = tiny_config({str(data_dir)!r})\n"
        f"    config.update_from_flattened_dict({changes or {}!r})\n"
        "    return config\n"
        f"def sweep():\n    return {points}\n"
    )
    return path
