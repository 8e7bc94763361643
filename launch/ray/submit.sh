#!/usr/bin/env bash
# Submit a sweep as a job of a Ray cluster (see cluster.yaml in this folder, or `ray start`).
#
#   launch/ray/submit.sh [--address=http://HEAD:8265] [--dry_run] -- SWEEP ARGUMENTS...
#
#   launch/ray/submit.sh --address=http://10.0.0.2:8265 -- \
#       --config=/shared/w2s_jax/configs/sweeps/digits.py --workdir=/shared/digits --resources=num_gpus=1
#
#   --address=URL   of the cluster's job server (default: RAY_API_SERVER_ADDRESS, or this machine's)
#   --dry_run       print the exact command instead of running it
#
# The driver, `w2s sweep --executor=ray`, runs on the cluster's head, so this machine may be shut down.
# Run the same command to resume. The package must be installed on all nodes. The working directory,
# the sweep file and the data must be on a file system that all nodes share.
set -euo pipefail

address="${RAY_API_SERVER_ADDRESS:-http://127.0.0.1:8265}" dry_run=''
while [ $# -gt 0 ]; do
    case "$1" in
        --help | -h) sed -n '2,/^set /p' "$0" | sed -e '/^set /d' -e 's/^# \{0,1\}//' && exit 0 ;;
        --address=*) address="${1#*=}" ;;
        --dry_run) dry_run=yes ;;
        --) shift && break ;;
        *) echo "submit.sh: unknown argument '$1'; see --help" >&2 && exit 2 ;;
    esac
    shift
done
[ $# -gt 0 ] || { echo "submit.sh: give the arguments of w2s sweep after --; see --help" >&2 && exit 2; }
command=(ray job submit --address "$address" --no-wait -- w2s sweep --executor=ray "$@")
if [ -n "$dry_run" ]; then
    printf '%q ' "${command[@]}" && echo
else
    "${command[@]}"
fi
