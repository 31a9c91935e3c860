#!/usr/bin/env bash
# The local stack: makes what it needs the first time, builds MLflow's image, starts everything, waits until it answers, and sets
# up MLflow's roles.
set -euo pipefail
cd "$(dirname "$0")"

../secrets.sh secrets
mkdir -p data/postgres data/s3
# The containers run as who started them, so that files of secrets need be readable by nobody else; root's run as 10001.
user=$(id -u) group=$(id -g)
if [ "$user" = 0 ]; then
  user=10001 group=10001
  chown -R "$user:$group" secrets data
fi
printf 'DERMAFLOW_UID=%s\nDERMAFLOW_GID=%s\n' "$user" "$group" > .env
docker compose up --build --detach --wait "$@"
docker compose run --rm --no-TTY roles >&2
echo "MLflow: http://127.0.0.1:5000, accounts in infra/compose/secrets/mlflow: ci.env, approver.env, auditor.env, admin-password" >&2
echo "S3:     http://127.0.0.1:8333, keys in infra/compose/secrets/s3" >&2
