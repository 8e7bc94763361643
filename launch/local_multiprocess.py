"""Start several processes of one command on this machine, joined by `jax.distributed`.

    python launch/local_multiprocess.py -n 2 --devices_per_process 4 -- w2s run --config=...

Each process finds the others by JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID.
Process 0 uses this terminal; lines of the others are prefixed with their number. When a process
fails, the others are stopped, and its exit status is returned. SIGTERM and SIGINT are forwarded to
all; the exit status is then 75. Needs only Python.
"""

import argparse
import collections
import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from typing import IO

#: Exit status of an interrupted run; run the same command to resume it.
INTERRUPTED = 75
#: Seconds that processes have to end, first by themselves when one has failed, then after SIGTERM.
GRACE_SECONDS = 5.0
#: Number of last lines of the process that failed first, printed at the end.
LAST_LINES = 15


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    options = _parser().parse_args(argv)
    command = options.command[1:] if options.command[:1] == ["--"] else options.command
    if not command:
        print("local_multiprocess: give a command after --", file=sys.stderr)
        return 2
    if options.n < 1:
        print(f"local_multiprocess: -n: {options.n}; allowed: 1 or more", file=sys.stderr)
        return 2
    port = options.port or free_port()
    devices = options.devices_per_process
    settings = [variables(port, options.n, i, devices) for i in range(options.n)]
    if options.dry_run:
        for each in settings:
            words = [*(f"{name}={value}" for name, value in each.items()), *command]
            print(" ".join(map(shlex.quote, words)))
        return 0
    return Processes(command, settings).wait()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="local_multiprocess.py",
        description="Start several processes of one command on this machine, joined by "
        "jax.distributed, as a pod does with one process per host; for tests and for GPUs.",
        epilog="Exit status: that of the process that failed first, 75 after a signal, else 0.",
        allow_abbrev=False,
    )
    parser.add_argument("-n", type=int, required=True, metavar="N", help="number of processes")
    parser.add_argument(
        "--devices_per_process",
        type=int,
        metavar="D",
        help="simulate this number of CPU devices in each (default: use the real devices)",
    )
    parser.add_argument("--port", type=int, help="port of the coordinator (default: a free one)")
    parser.add_argument("--dry_run", action="store_true", help="print the commands and stop")
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="-- COMMAND ...")
    return parser


def free_port() -> int:
    """Return a free port of this machine."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def variables(port: int, count: int, index: int, devices: int | None) -> dict[str, str]:
    """Return the variables that are added to the environment of a process."""
    found = {
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
        "JAX_NUM_PROCESSES": str(count),
        "JAX_PROCESS_ID": str(index),
    }
    if devices is not None:
        found |= {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)}
    return found


class Processes:
    """Processes of one command that end together."""

    def __init__(self, command: list[str], settings: list[dict[str, str]]):
        self.signalled = False
        self.tails = [collections.deque[str](maxlen=LAST_LINES) for _ in settings]
        self.running: list[subprocess.Popen[str]] = []
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._forward)
        try:
            for each in settings:
                self.running.append(
                    subprocess.Popen(
                        command,
                        env=os.environ | each,
                        stdout=subprocess.PIPE if self.running else None,
                        stderr=subprocess.PIPE,
                        text=True,
                        errors="replace",
                        # Ctrl-C reaches them through this program, once.
                        start_new_session=True,
                    )
                )
        except OSError as error:
            print(f"local_multiprocess: {command[0]}: {error.strerror}", file=sys.stderr)
            self._end()
            raise SystemExit(2) from error
        self.readers = [
            threading.Thread(target=self._read, args=(i, stream), daemon=True)
            for i, process in enumerate(self.running)
            for stream in (process.stdout, process.stderr)
            if stream is not None
        ]
        for reader in self.readers:
            reader.start()

    def wait(self) -> int:
        """Wait for all processes, stop the others when one fails, and return the exit status."""
        failed: int | None = None
        failed_at = 0.0
        while any(process.poll() is None for process in self.running):
            if failed is None:
                failed = self._first_failure()
                failed_at = time.monotonic()
            elif time.monotonic() - failed_at > GRACE_SECONDS:
                self._end()
            time.sleep(0.05)
        for reader in self.readers:
            reader.join(timeout=GRACE_SECONDS)
        failed = self._first_failure() if failed is None else failed
        if failed is None:
            return 0
        status = self.running[failed].returncode
        stopped = self.signalled and status in (-signal.SIGTERM, -signal.SIGINT)
        if stopped or status == INTERRUPTED:
            return INTERRUPTED
        self._print_failure(failed, status)
        return status if status > 0 else 128 - status

    def _first_failure(self) -> int | None:
        """Return the lowest index of a process that has failed, or None."""
        return next((i for i, process in enumerate(self.running) if process.poll()), None)

    def _end(self) -> None:
        """Stop the processes that still run, with SIGTERM first so that they can save."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            left = [process for process in self.running if process.poll() is None]
            for process in left:
                process.send_signal(number)
            until = time.monotonic() + GRACE_SECONDS
            while time.monotonic() < until and any(process.poll() is None for process in left):
                time.sleep(0.05)

    def _forward(self, number: int, _: object) -> None:
        self.signalled = True
        for process in self.running:
            if process.poll() is None:
                process.send_signal(number)

    def _read(self, index: int, stream: IO[str]) -> None:
        """Pass on the output of a process."""
        for line in stream:
            self.tails[index].append(line)
            sys.stderr.write(line if index == 0 else f"[{index}] {line}")
            sys.stderr.flush()

    def _print_failure(self, index: int, status: int) -> None:
        how = f"signal {-status}" if status < 0 else f"status {status}"
        print(f"local_multiprocess: process {index} exited with {how}", file=sys.stderr)
        for line in self.tails[index]:
            print(f"  {line.rstrip()}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
