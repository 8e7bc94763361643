"""Print manifests for GKE: a run on a TPU slice, a sweep by equal workers, the queue of both.

    python launch/gke/render.py queues --accelerator=tpu-v5-lite-podslice --topology=4x4 \\
        --chips=64 | kubectl apply -f -
    python launch/gke/render.py run --name=w2s --image=IMAGE --claim=PVC \\
        --accelerator=tpu-v5-lite-podslice --topology=4x4 -- \\
        --config=configs/quickstart.py --workdir=/shared/run | kubectl apply -f -
    python launch/gke/render.py sweep --name=digits --image=IMAGE --claim=PVC --workers=8 \\
        --accelerator=tpu-v5-lite-podslice --topology=2x2 -- \\
        --config=configs/sweeps/digits.py --workdir=/shared/digits | kubectl apply -f -

The arguments after `--` are those of `w2s run` (to which --distributed is added) or `w2s sweep`.
The image must have this package. The claim must be a volume that many pods can write (Filestore,
ReadWriteMany); it is mounted at /shared. The cluster needs JobSet and Kueue. Prints YAML and does
not contact the cluster.
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
    """Print the manifest for the command line and return the exit status."""
    arguments = sys.argv[1:] if argv is None else argv
    split = arguments.index("--") if "--" in arguments else len(arguments)
    parser = _parser()
    options = parser.parse_args(arguments[:split])
    command = arguments[split + 1 :]
    chips = math.prod(map(int, options.topology.split("x")))
    if chips % options.chips_per_host:
        parser.error(
            f"--topology: {options.topology} is not a multiple of {options.chips_per_host} chips"
        )
    values = vars(options) | {"hosts": chips // options.chips_per_host}
    if options.what != "queues":
        if not command:
            parser.error("give the arguments of w2s after --")
        missing = [name for name in ("name", "image", "claim") if not values[name]]
        if missing:
            parser.error(f"--{missing[0]} is required")
        if options.what == "sweep" and values["hosts"] > 1:
            parser.error("--topology: a worker of a sweep has one host; use as many chips")
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
    parser.add_argument("--name", type=_label, help="name of the JobSet")
    parser.add_argument("--image", help="a container image with w2s_jax[tpu]")
    parser.add_argument("--claim", type=_label, help="a PersistentVolumeClaim, ReadWriteMany")
    parser.add_argument(
        "--accelerator", default="tpu-v5-lite-podslice", help="GKE's name of the accelerator"
    )
    parser.add_argument("--topology", default="4x4", type=_topology, help="topology of the slice")
    parser.add_argument("--chips_per_host", default=4, type=int, help="chips per node")
    parser.add_argument("--queue", default="w2s", type=_label, help="Kueue's LocalQueue")
    parser.add_argument("--namespace", default="default", type=_label)
    parser.add_argument("--workers", default=1, type=int, help="sweep: number of workers")
    parser.add_argument("--restarts", default=20, type=int, help="most restarts after lost nodes")
    parser.add_argument("--chips", default=64, type=int, help="queues: quota of chips")
    parser.add_argument("--spot", action="store_true", help="on spot nodes")
    return parser


def _label(text: str) -> str:
    if not re.fullmatch(r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?", text):
        raise argparse.ArgumentTypeError(
            f"{text!r}; allowed: up to 40 of a-z, 0-9 and '-', starting with a letter"
        )
    return text


def _topology(text: str) -> str:
    if not re.fullmatch(r"\d+x\d+(x\d+)?", text):
        raise argparse.ArgumentTypeError(f"{text!r}; must have the form 4x4 or 2x2x2")
    return text


if __name__ == "__main__":
    sys.exit(main())
