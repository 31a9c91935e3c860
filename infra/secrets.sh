#!/usr/bin/env bash
# Makes the secrets of a stack, once, as files: infra/secrets.sh FOLDER. Random, each its own; there are no defaults, and a
# secret that is there is never changed. The folder must be one that git ignores, or lie outside of the repository.
set -euo pipefail
umask 077

folder=${1:?"usage: infra/secrets.sh FOLDER"}
mkdir -p "$folder"/{postgres,mlflow/accounts,s3}
top=$(git -C "$folder" rev-parse --show-toplevel 2>/dev/null || true)
if [ -n "$top" ] && ! git -C "$folder" check-ignore --quiet "$folder/s3/s3.json"; then
  echo "error: $folder is in the repository $top and git does not ignore it: its secrets would be committed; name another" >&2
  exit 2
fi

# 32 characters of [a-z2-7]: 160 bits. No newline at the end, since tools take a file as it is.
secret() { head -c 20 /dev/urandom | base32 | tr -d '\n=' | tr '[:upper:]' '[:lower:]'; }

once() { # FILE: a secret in it, whole or not at all
  [ -s "$1" ] || { secret > "$1.part" && mv "$1.part" "$1"; }
}

once "$folder/postgres/postgres-password"
once "$folder/postgres/mlflow-password"
once "$folder/mlflow/admin-password"
once "$folder/mlflow/flask-secret-key"

# Accounts on MLflow: NAME.env for who acts as one, and the password alone, by the account's name, for `dermaflow roles`.
for role in ci approver auditor; do
  file="$folder/mlflow/$role.env"
  if [ ! -s "$file" ]; then
    printf 'MLFLOW_TRACKING_USERNAME=dermaflow-%s\nMLFLOW_TRACKING_PASSWORD=%s\n' "$role" "$(secret)" > "$file.part"
    mv "$file.part" "$file"
  fi
  sed -n 's/^MLFLOW_TRACKING_PASSWORD=//p' "$file" | tr -d '\n' > "$folder/mlflow/accounts/dermaflow-$role"
done

# Who may do what in S3: NAME ACTION...; SeaweedFS has no finer rights than these. Object lock keeps the ledger all the same.
identities=(
  "admin Admin Read Write List Tagging"
  "mlflow Read:dermaflow-artifacts Write:dermaflow-artifacts List:dermaflow-artifacts"
  "steps Read:dermaflow-data List:dermaflow-data Read:dermaflow-artifacts Write:dermaflow-artifacts List:dermaflow-artifacts"
  "register Read:dermaflow-ledger Write:dermaflow-ledger List:dermaflow-ledger"
  "approver Read:dermaflow-ledger Write:dermaflow-ledger List:dermaflow-ledger"
  "auditor Read:dermaflow-ledger List:dermaflow-ledger"
  "trigger Read:dermaflow-data List:dermaflow-data Read:dermaflow-artifacts Write:dermaflow-artifacts List:dermaflow-artifacts"
  "backup Read:dermaflow-backups Write:dermaflow-backups List:dermaflow-backups"
)
listed=()
for identity in "${identities[@]}"; do
  read -r -a words <<< "$identity"
  name=${words[0]}
  file="$folder/s3/$name.env"
  if [ ! -s "$file" ]; then
    printf 'AWS_ACCESS_KEY_ID=dermaflow-%s\nAWS_SECRET_ACCESS_KEY=%s\n' "$name" "$(secret)" > "$file.part"
    mv "$file.part" "$file"
  fi
  listed+=("$(printf '{"name": "%s", "credentials": [{"accessKey": "dermaflow-%s", "secretKey": "%s"}], "actions": [%s]}' \
    "$name" "$name" "$(sed -n 's/^AWS_SECRET_ACCESS_KEY=//p' "$file")" "$(printf '"%s", ' "${words[@]:1}" | sed 's/, $//')")")
done
{
  printf '{"identities": [\n  %s' "${listed[0]}"
  printf ',\n  %s' "${listed[@]:1}"
  printf '\n]}\n'
} > "$folder/s3/s3.json.part"
mv "$folder/s3/s3.json.part" "$folder/s3/s3.json"
echo "secrets are in $folder" >&2
