"""Manifests for GKE: a run on a TPU slice, a sweep by equal workers, the queue of both.

    python launch/gke/render.py queues --accelerator=tpu-v5-lite-podslice --topology=4x4 \\
        --chips=64 | kubectl apply -f -
    python launch/gke/render.py run --name=w2s --image=IMAGE --claim=PVC \\
        --accelerator=tpu-v5-lite-podslice --topology=4x4 -- \\
        --config=configs/quickstart.py --workdir=/shared/run | kubectl apply -f -
    python launch/gke/render.py sweep --name=digits --image=IMAGE --claim=PVC --workers=8 \\
        --accelerator=tpu-v5-lite-podslice --topology=2x2 -- \\
        --config=configs/sweeps/digits.py --workdir=/shared/digits | kubectl apply -f -

What follows `--` are the arguments of `w2s run` (to which --distributed is added) or `w2s sweep`.
The image has this package, the claim is a volume that many pods may write (Filestore,
ReadWriteMany): it is mounted at /shared. Needs JobSet and Kueue in the cluster. Prints YAML, asks
no cluster.
"""

import argparse
import math
import re
import shlex
import sys
from pathlib import Path

import jinja2

HERE = Path(__file__).parent


def main(argv: list[str] | None = None) -> int:
    """Prints the manifest that the arguments ask for."""
    arguments = sys.argv[1:] if argv is None else argv
    split = arguments.index("--") if "--" in arguments else len(arguments)
    parser = _parser()
    options = parser.parse_args(arguments[:split])
    command = arguments[split + 1 :]
    chips = math.prod(map(int, options.topology.split("x")))
    if chips % options.chips_per_host:
        parser.error(f"--topology: {options.topology} is no multiple of {options.chips_per_host}")
    values = vars(options) | {"hosts": chips // options.chips_per_host}
    if options.what != "queues":
        if not command:
            parser.error("no arguments of w2s after --")
        missing = [name for name in ("name", "image", "claim") if not values[name]]
        if missing:
            parser.error(f"--{missing[0]} is needed")
        if options.what == "sweep" and values["hosts"] > 1:
            parser.error("--topology: a worker of a sweep is one host: allowed: as many chips")
        values["command"] = shlex.join(["w2s", options.what, *command])
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE), undefined=jinja2.StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    print(environment.get_template(f"{options.what}.yaml.j2").render(values), end="")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("run", "sweep", "queues"))
    parser.add_argument("--name", type=_label, help="of the JobSet")
    parser.add_argument("--image", help="a container image with w2s_jax[tpu]")
    parser.add_argument("--claim", type=_label, help="a PersistentVolumeClaim, ReadWriteMany")
    parser.add_argument("--accelerator", default="tpu-v5-lite-podslice", help="as GKE names it")
    parser.add_argument("--topology", default="4x4", type=_topology, help="of the slice")
    parser.add_argument("--chips_per_host", default=4, type=int, help="TPUs of a node")
    parser.add_argument("--queue", default="w2s", type=_label, help="Kueue's LocalQueue")
    parser.add_argument("--namespace", default="default", type=_label)
    parser.add_argument("--workers", default=1, type=int, help="sweep: how many")
    parser.add_argument("--restarts", default=20, type=int, help="after a lost node, at most")
    parser.add_argument("--chips", default=64, type=int, help="queues: chips that may be used")
    parser.add_argument("--spot", action="store_true", help="on spot nodes")
    return parser


def _label(text: str) -> str:
    if not re.fullmatch(r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?", text):
        raise argparse.ArgumentTypeError(
            f"{text!r}; allowed: up to 40 of a-z, 0-9 and '-', beginning with a letter"
        )
    return text


def _topology(text: str) -> str:
    if not re.fullmatch(r"\d+x\d+(x\d+)?", text):
        raise argparse.ArgumentTypeError(f"{text!r}; allowed: as 4x4 or 2x2x2")
    return text


if __name__ == "__main__":
    sys.exit(main())
