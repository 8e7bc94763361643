"""Sweeps on real clusters of this machine: a sweep file, its results, and a network of its own."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

from tiny_sweeps import PAIR, write_sweep

#: A network with nothing but itself; daemons of clusters also want a second address there.
_LOOPBACK = 'ip link set lo up && ip addr add 127.0.0.2/8 dev lo && exec "$@"'


def isolated() -> list[str]:
    """What to put before a command so that it reaches nothing but itself; [] if that cannot be."""
    before = ["unshare", "-n", "sh", "-c", _LOOPBACK, "sh"]
    try:
        works = subprocess.run([*before, "true"], capture_output=True, timeout=20).returncode == 0
    except OSError:
        works = False
    return before if works else []


def environment() -> dict[str, str]:
    """Of processes that take the code that is tested."""
    code = str(Path(__file__).parents[1])
    paths = os.pathsep.join(filter(None, [code, os.environ.get("PYTHONPATH", "")]))
    return os.environ | {
        "PYTHONPATH": paths,
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
    }


def sweep_file(path: Path, data_dir: Path, points: str, *, pretrain_steps: int = 10) -> Path:
    """Writes a tiny sweep of two models, of which checkpoints are stored all the time."""
    often = {"pretrain.steps": pretrain_steps, "checkpoint.every_minutes": 0.005}
    return write_sweep(path, data_dir, points, PAIR | often)


#: Lines of a sweep file: a loss with which phases fail, and one with which their process ends.
BROKEN_LOSS = """
import os
from w2s_jax import losses
@losses.register("deadly", coupled=False)
def deadly(logits_BC, targets_BC, step_fraction, *, weights_B=None, state=None):
    os._exit(3)
@losses.register("broken", coupled=False)
def broken(logits_BC, targets_BC, step_fraction, *, weights_B=None, state=None):
    return losses.LOSSES["xent"](logits_BC, targets_BC, step_fraction) * float("nan")
"""


def command(recipe: Path, workdir: Path, *options: str) -> list[str]:
    """A `w2s sweep`."""
    code = [sys.executable, "-m", "w2s_jax.cli.main", "sweep"]
    return [*code, f"--config={recipe}", f"--workdir={workdir}", *options]


def results(workdir: Path) -> dict[str, dict]:
    """run -> what must be equal bit for bit however it was computed."""
    parts = ("weak", "ceiling", "students", "stages")
    found = {p.parent.name: json.loads(p.read_text()) for p in workdir.glob("runs/*/result.json")}
    return {name: {part: result[part] for part in parts} for name, result in found.items()}


def completed(logs: list[Path]) -> list[str]:
    """The lines that workers printed of phases that they completed."""
    lines = [line for path in logs for line in path.read_text(errors="replace").splitlines()]
    return [line for line in lines if re.match(r"\[\d+/\d+\] ", line) and "failed:" not in line]
