#!/usr/bin/env bash
# Makes the base of the images, Debian 12 with its Python 3.11, from Debian's packages alone: for where no registry can be reached to
# pull one from. Needs root, mmdebstrap and a Docker daemon.
#   infra/images/base.sh [NAME]          NAME is what the base is called; by default dermaflow-base:local
set -euo pipefail

name=${1:-dermaflow-base:local}
for program in mmdebstrap docker; do
  command -v "$program" >/dev/null || {
    echo "error: $program is not installed; on Debian: apt-get install mmdebstrap docker.io" >&2
    exit 2
  }
done
docker version >/dev/null 2>&1 || {
  echo "error: the Docker daemon does not answer; start it, or set DOCKER_HOST" >&2
  exit 2
}

archive=$(mktemp --suffix=.tar)
trap 'rm -f "$archive"' EXIT
# python3-venv makes the environment that wheels are installed into; wheels bring every library they need beside the C library.
mmdebstrap --quiet --variant=minbase --include=ca-certificates,python3,python3-venv \
  --dpkgopt=force-unsafe-io \
  --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
  bookworm "$archive"
docker import --change 'CMD ["python3"]' "$archive" "$name" >/dev/null
docker image inspect --format "$name: {{.Id}}, {{.Size}} bytes" "$name"
