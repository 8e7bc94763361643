#!/usr/bin/env bash
# Run a command on all hosts of a Cloud TPU slice, through queued resources, until it succeeds.
#
#   launch/tpu_vm.sh --name=w2s --zone=us-west4-a --type=v5litepod-16 [options] -- COMMAND...
#
#   launch/tpu_vm.sh --name=w2s --zone=us-west4-a --type=v5litepod-16 --spot -- \
#       w2s run --config=configs/quickstart.py --workdir=/mnt/share/run --distributed
#
# It requests the slice, waits for it, installs the package on all hosts, and runs the command on all
# of them at once. When a spot slice is preempted, it requests a new one and runs the same command,
# which resumes; likewise after exit status 75 (interrupted). Any other status ends the script. The
# slice is deleted at the end, unless --keep is given.
#
#   --name=NAME       of the queued resource, and of the TPU
#   --zone=ZONE       zone of the slice
#   --type=TYPE       accelerator type, as v5litepod-16 or v6e-8
#   --runtime=NAME    runtime version of the hosts (default: that of the type's generation)
#   --project=ID      (default: gcloud's)
#   --source=PIP      what pip installs (default: this repository at its commit, from its remote
#                     'origin'); [tpu] is added to it
#   --setup=COMMAND   runs on each host first, for example to mount the shared file system
#   --spot            a spot slice
#   --keep            do not delete the slice at the end
#   --poll=SECONDS    interval between checks of the state (default: 30)
#   --dry_run         print the exact commands instead of running them
#
# The command's --workdir must be on a file system that all hosts share (e.g. Filestore), mounted by
# --setup. Exit status: the command's; 2 for bad arguments; 1 if the request fails.
set -euo pipefail

usage() { sed -n '2,/^set /p' "$0" | sed -e '/^set /d' -e 's/^# \{0,1\}//'; }
fail() {
    echo "tpu_vm.sh: $1" >&2
    exit "${2:-2}"
}

name='' zone='' type='' runtime='' project='' source='' setup='' spot='' keep='' dry_run='' poll=30
while [ $# -gt 0 ]; do
    case "$1" in
        --help | -h) usage && exit 0 ;;
        --name=*) name="${1#*=}" ;;
        --zone=*) zone="${1#*=}" ;;
        --type=*) type="${1#*=}" ;;
        --runtime=*) runtime="${1#*=}" ;;
        --project=*) project="${1#*=}" ;;
        --source=*) source="${1#*=}" ;;
        --setup=*) setup="${1#*=}" ;;
        --poll=*) poll="${1#*=}" ;;
        --spot) spot=yes ;;
        --keep) keep=yes ;;
        --dry_run) dry_run=yes ;;
        --) shift && break ;;
        *) fail "unknown argument '$1'; see --help" ;;
    esac
    shift
done
[ -n "$name" ] && [ -n "$zone" ] && [ -n "$type" ] || fail "--name, --zone and --type are required; see --help"
[ $# -gt 0 ] || fail "give a command after --; see --help"

if [ -z "$runtime" ]; then
    case "$type" in
        v4-*) runtime=tpu-ubuntu2204-base ;;
        v5litepod-*) runtime=v2-alpha-tpuv5-lite ;;
        v5p-*) runtime=v2-alpha-tpuv5 ;;
        v6e-*) runtime=v2-alpha-tpuv6e ;;
        *) fail "--type: '$type' has no known runtime; give --runtime" ;;
    esac
fi
if [ -z "$source" ]; then
    here="$(dirname "$0")"
    origin="$(git -C "$here" remote get-url origin 2>/dev/null)" || fail "--source is required: this repository has no remote 'origin'"
    source="git+$origin@$(git -C "$here" rev-parse HEAD)"
fi
where=(--zone="$zone")
[ -z "$project" ] || where+=(--project="$project")
command="$(printf '%q ' "$@")"
command="${command% }"

# Run a command, or print it in dry runs.
run() {
    if [ -n "$dry_run" ]; then
        (printf '%q ' "$@") | sed 's/ $//' && echo
    else
        "$@"
    fi
}
state() {
    gcloud compute tpus queued-resources describe "$name" "${where[@]}" --format='value(state.state)' 2>/dev/null || echo ABSENT
}
on_all() { run gcloud compute tpus tpu-vm ssh "$name" "${where[@]}" --worker=all --command="$1"; }
delete() { run gcloud compute tpus queued-resources delete "$name" "${where[@]}" --force --quiet; }
create() {
    local request=(gcloud compute tpus queued-resources create "$name" --node-id="$name" "${where[@]}")
    request+=(--accelerator-type="$type" --runtime-version="$runtime")
    [ -z "$spot" ] || request+=(--spot)
    run "${request[@]}"
}

# Wait until the slice is active; fail if it never will be.
await() {
    [ -z "$dry_run" ] || { echo "# until ACTIVE, every ${poll} s:" && run gcloud compute tpus queued-resources describe "$name" "${where[@]}" --format='value(state.state)' && return; }
    while true; do
        case "$(state)" in
            ACTIVE) return 0 ;;
            FAILED | SUSPENDED | SUSPENDING | ABSENT) return 1 ;;
            *) sleep "$poll" ;;
        esac
    done
}

if [ -z "$dry_run" ]; then
    command -v gcloud >/dev/null || fail "gcloud is not installed" 1
    [ -n "$keep" ] || trap 'delete || true' EXIT
fi
install="python3 -m venv ~/w2s && ~/w2s/bin/pip install --quiet 'w2s_jax[tpu] @ $source'"
while true; do
    # A slice of an earlier attempt is used again.
    if [ -n "$dry_run" ] || [ "$(state)" = ABSENT ]; then create; fi
    status=1
    if await; then
        [ -z "$setup" ] || on_all "$setup"
        status=0
        { on_all "$install" && on_all "PATH=~/w2s/bin:\$PATH $command"; } || status=$?
    fi
    if [ -n "$dry_run" ]; then
        echo "# exit status 0: done; 75, or the slice was preempted: delete it and start again"
        [ -n "$keep" ] || delete
        exit 0
    fi
    [ "$status" -ne 0 ] || exit 0
    case "$(state)" in
        ACTIVE) [ "$status" -eq 75 ] || exit "$status" ;;
        FAILED) fail "the request for $name failed: see gcloud compute tpus queued-resources describe" 1 ;;
        *) [ -n "$spot" ] || fail "$name no longer exists" 1 ;;
    esac
    echo "tpu_vm.sh: interrupted; running the same command again" >&2
    if [ "$(state)" != ACTIVE ]; then delete && sleep "$poll"; fi
done
