#!/usr/bin/env bash
# Makes a Docker daemon for the tests on a bare Debian machine: installs it, starts it, builds the base image and lays
# out the wheels for the transformers image. May be run again: what is there is kept.
#
#   . .ci/docker-for-tests.sh             sets DOCKER_HOST and LLEM_TEST_WHEELS in this shell
#   .ci/docker-for-tests.sh               prints what to set instead
#   .ci/docker-for-tests.sh stop          ends the daemon that this script started
#
# LLEM_DOCKER_DIR moves everything it keeps (about 4 GB). Needs root. Progress goes to standard error.
if [ "${BASH_SOURCE[0]}" != "$0" ]; then
    llem_docker_exports=$(bash "${BASH_SOURCE[0]}") || return 1
    eval "$llem_docker_exports"
    unset llem_docker_exports
    return 0
fi

set -euo pipefail

dir=${LLEM_DOCKER_DIR:-/var/tmp/pytest-llem-docker}
here=$(cd "$(dirname "$0")/.." && pwd)
base=llem-test-base
export DOCKER_HOST=unix://$dir/docker.sock
exec 3>&1 1>&2
mkdir -p "$dir"

alive() { docker version --format '{{.Server.Version}}' >/dev/null 2>&1; }

if [ "${1:-}" = stop ]; then
    # Until it is gone: it removes this file last, which may be that of the next daemon by then.
    pid=$(cat "$dir/pid" 2>/dev/null) && kill "$pid" && timeout 60 tail --pid="$pid" -f /dev/null || true
    exit 0
fi

exec 9>"$dir/lock"
flock 9

packages=()
command -v dockerd >/dev/null || packages+=(docker.io)
command -v iptables >/dev/null || packages+=(iptables)
if [ ${#packages[@]} -gt 0 ] || { ! command -v debootstrap >/dev/null && [ ! -f "$dir/rootfs.tar" ]; }; then
    command -v debootstrap >/dev/null || packages+=(debootstrap)
    apt-get update -q
    DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "${packages[@]}"
fi

if ! alive; then
    rm -f "$dir/pid" "$dir/docker.sock"
    setsid nohup dockerd --data-root "$dir/data" --exec-root "$dir/exec" -H "$DOCKER_HOST" --pidfile "$dir/pid" \
        --iptables=false --ip6tables=false --bridge=none >"$dir/dockerd.log" 2>&1 </dev/null 3>&- 9>&- &
    for _ in $(seq 120); do
        alive && break
        sleep 0.5
    done
    alive || { tail -20 "$dir/dockerd.log"; exit 1; }
fi

if ! docker image inspect "$base" >/dev/null 2>&1; then
    if [ ! -f "$dir/rootfs.tar" ]; then
        rm -rf "$dir/rootfs"
        debootstrap --variant=minbase --include=python3,python3-pip,python3-venv,ca-certificates \
            bookworm "$dir/rootfs" >"$dir/debootstrap.log" || { tail -20 "$dir/debootstrap.log"; exit 1; }
        rm -rf "$dir"/rootfs/var/cache/apt/archives/*.deb
        tar -C "$dir/rootfs" -cf "$dir/rootfs.tar.part" .
        mv "$dir/rootfs.tar.part" "$dir/rootfs.tar"
        rm -rf "$dir/rootfs"
    fi
    docker import "$dir/rootfs.tar" "$base" >/dev/null
fi

# The base image has Debian 12's Python 3.11, whatever runs the tests.
wanted=$(sha256sum "$here/images/transformers/requirements.txt" | cut -c1-16)
if [ "$(cat "$dir/wheels/.complete" 2>/dev/null || true)" != "$wanted" ]; then
    rm -rf "$dir/wheels"
    mkdir -p "$dir/wheels"
    python=${PYTHON:-python3}
    if ! "$python" -m pip --version >/dev/null 2>&1; then
        "$python" -m venv "$dir/pip"
        python=$dir/pip/bin/python
    fi
    "$python" -m pip download -q --only-binary=:all: --python-version 3.11 -d "$dir/wheels" \
        -r "$here/images/transformers/requirements.txt" setuptools
    echo "$wanted" >"$dir/wheels/.complete"
fi

echo "export DOCKER_HOST=$DOCKER_HOST LLEM_TEST_WHEELS=$dir/wheels" >&3
