#!/bin/sh
# Makes MLflow's role and its two databases, once, when Postgres starts on an empty volume. The role owns them and nothing else.
# The password is read by psql itself: on a command line other processes could see it.
set -eu
psql --set=ON_ERROR_STOP=1 --username="${POSTGRES_USER:-postgres}" --dbname=postgres <<'SQL'
\set password `cat "${MLFLOW_PASSWORD_FILE:-/run/secrets/postgres/mlflow-password}"`
CREATE ROLE mlflow LOGIN PASSWORD :'password';
CREATE DATABASE mlflow OWNER mlflow;
CREATE DATABASE mlflow_auth OWNER mlflow;
REVOKE ALL ON DATABASE mlflow, mlflow_auth FROM PUBLIC;
SQL
