"""A Slurm that runs nothing: sbatch, squeue, scontrol and srun, with the limits of a cluster.

Folder/limits.json: `array` (MaxArraySize, also printed by scontrol), `hidden` (the same,
not printed), `jobs` (of a user in the queue), `dependency` (characters).
Folder/queue.json: the submitted jobs.
"""

import json
import os
import re
import sys
from pathlib import Path
from typing import Any

PROGRAMS = ("sbatch", "squeue", "scontrol", "srun")


def install(folder: Path, *programs: str, **limits: int) -> str:
    """Write the programs into a folder, and return the PATH with nothing else."""
    folder.mkdir(exist_ok=True)
    for name in programs or PROGRAMS:
        program = folder / name
        program.write_text(f"#!/bin/sh\nexec {sys.executable} -S {__file__} {name} {folder} $@\n")
        program.chmod(0o755)
    (folder / "limits.json").write_text(json.dumps(limits))
    (folder / "queue.json").write_text("[]")
    return str(folder)


def queue(folder: Path) -> list[dict[str, Any]]:
    """The jobs in the queue, arrays as one."""
    return json.loads((folder / "queue.json").read_text())


def end(folder: Path, count: int) -> None:
    """Let the first jobs end."""
    (folder / "queue.json").write_text(json.dumps(queue(folder)[count:]))


def _sbatch(folder: Path, limits: dict[str, int], script: str) -> str | None:
    text = Path(script).read_text()
    jobs = queue(folder)

    def option(name: str) -> str:
        found = re.search(rf"^#SBATCH --{name}=(.*)$", text, re.MULTILINE)
        return found[1] if found else ""

    array = re.match(r"0-(\d+)", option("array"))
    size = int(array[1]) + 1 if array else 1
    if array and size > limits.get("array", limits.get("hidden", size)):
        return "Invalid job array specification"
    if sum(job["size"] for job in jobs) + size > limits.get("jobs", 10**9):
        return (
            "Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)"
        )
    if len(option("dependency")) > limits.get("dependency", 10**9):
        return "Pathname of a file, directory or other parameter too long"
    number = max((job["id"] for job in jobs), default=0) + 1
    jobs.append(
        {
            "id": number,
            "size": size,
            "array": bool(array),
            "name": option("job-name"),
            "dependency": option("dependency"),
        }
    )
    (folder / "queue.json").write_text(json.dumps(jobs))
    print(f"Submitted batch job {number}")
    return None


def main() -> int:
    program, folder, *arguments = sys.argv[1:]
    limits = json.loads((Path(folder) / "limits.json").read_text())
    with open(os.path.join(folder, "calls"), "a") as file:
        print(program, *arguments, file=file)
    if program == "sbatch":
        error = _sbatch(Path(folder), limits, arguments[0])
        if error:
            print(f"sbatch: error: Batch job submission failed: {error}", file=sys.stderr)
            return 1
    if program == "squeue":
        for job in queue(Path(folder)):
            names = [f"{job['id']}_{i}" for i in range(job["size"])]
            print("\n".join(names if job["array"] else [str(job["id"])]))
    if program == "scontrol" and "array" in limits:
        print(f"AccountingStorageHost   = localhost\nMaxArraySize            = {limits['array']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
