#!/bin/sh
# An MLflow server on PostgreSQL and S3 in which everybody has a name and a password. Secrets come from files alone, one
# value in each, in the folder SECRETS (/run/secrets): none stands in a list of processes, in a manifest or in an image.
#
#   postgres-uri         postgresql+psycopg://USER:PASSWORD@HOST:PORT/DATABASE, of the store
#   postgres-users-uri   the same for a second database: names and passwords of the users
#   admin-password       of the user `admin`, when the server meets its database for the first time
#   flask-key            any long random text, the same in every replica
#   s3-access-key, s3-secret-key   of the bucket; leave them out where the machine has a role of its own
#
# ARTIFACTS (s3://BUCKET/PREFIX) is where artifacts go; MLFLOW_S3_ENDPOINT_URL names a server that is not AWS's own.
# ALLOWED_HOSTS are the names by which clients call the server, with ports ("mlflow:5000,tracking.example.org").
# HOST and PORT (0.0.0.0, 5000), WORKERS (2). A new user sees nothing until somebody grants it.
set -eu
secrets=${SECRETS:-/run/secrets}
refuse() { echo "serve-mlflow: $1; $2" >&2; exit 2; }
secret() {
  [ -s "$secrets/$1" ] || refuse "the secret $secrets/$1 is missing or empty" "put its value in this file"
  tr -d '\r\n' <"$secrets/$1"
}

[ -n "${ARTIFACTS:-}" ] || refuse "ARTIFACTS is not set" "name the place of artifacts, for example s3://mlflow/artifacts"
MLFLOW_BACKEND_STORE_URI=$(secret postgres-uri)
users=$(secret postgres-users-uri)
MLFLOW_AUTH_ADMIN_USERNAME=admin
MLFLOW_AUTH_ADMIN_PASSWORD=$(secret admin-password)
MLFLOW_FLASK_SERVER_SECRET_KEY=$(secret flask-key)
export MLFLOW_BACKEND_STORE_URI MLFLOW_AUTH_ADMIN_USERNAME MLFLOW_AUTH_ADMIN_PASSWORD MLFLOW_FLASK_SERVER_SECRET_KEY
if [ -e "$secrets/s3-access-key" ] || [ -e "$secrets/s3-secret-key" ]; then
  AWS_ACCESS_KEY_ID=$(secret s3-access-key)
  AWS_SECRET_ACCESS_KEY=$(secret s3-secret-key)
  export AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY
fi

[ -n "${MLFLOW_S3_ENDPOINT_URL:-}" ] || unset MLFLOW_S3_ENDPOINT_URL # an empty one is an address to MLflow

umask 077
MLFLOW_AUTH_CONFIG_PATH=$(mktemp "${TMPDIR:-/tmp}/mlflow-auth.XXXXXX")
export MLFLOW_AUTH_CONFIG_PATH
# An .ini reads %% as one %
cat >"$MLFLOW_AUTH_CONFIG_PATH" <<END
[mlflow]
default_permission = NO_PERMISSIONS
database_uri = $(printf %s "$users" | sed 's/%/%%/g')
authorization_function = mlflow.server.auth:authenticate_request_basic_auth
END
# Eight processes and 1.4 GB wait for jobs of language models (measured with MLflow 3.17); no run sends one.
export MLFLOW_SERVER_ENABLE_JOB_EXECUTION="${MLFLOW_SERVER_ENABLE_JOB_EXECUTION:-false}"
# A worker that has not imported MLflow within uvicorn's 5 s would be ended, again and again.
exec mlflow server --uvicorn-opts "--timeout-worker-healthcheck 120" --app-name basic-auth \
  --host "${HOST:-0.0.0.0}" --port "${PORT:-5000}" --workers "${WORKERS:-2}" \
  --artifacts-destination "$ARTIFACTS" --allowed-hosts "${ALLOWED_HOSTS:-localhost:${PORT:-5000}}"
