#!/bin/sh
# After provisioning and after a deployment: sets the GPU app's scale rules, with GPU_HTTP_CONCURRENCY requests a replica.
# 0 leaves the platform's rules, which with a user-assigned identity do not cover the app's queues. Bicep cannot do this:
# its types lack allowScalingRuleOverride, and each of its deployments resets the rules to those that the platform derives
# from the triggers. The platform derives none beside rules that are set, so the app's queues are here too. There is one
# replica for every eight chunks: a chunk takes a moment, and a replica is paid for until it has been idle for minutes.
set -eu

requests=${GPU_HTTP_CONCURRENCY:-10}
if [ -z "${GPU_APP_ID:-}" ] || [ "$requests" = 0 ]; then
    exit 0
fi
queue_rule() {
    cat <<JSON
{"name": "$1", "custom": {"type": "azure-queue", "identity": "$GPU_IDENTITY_ID", "metadata":
    {"accountName": "$DATA_ACCOUNT_NAME", "queueName": "$1", "queueLength": "8"}}}
JSON
}
body=$(mktemp)
trap 'rm -f "$body"' EXIT
cat >"$body" <<JSON
{"properties": {"template": {"scale": {"allowScalingRuleOverride": true, "rules": [
  {"name": "http", "http": {"metadata": {"concurrentRequests": "$requests"}}},
  $(queue_rule bulk-gpu),
  $(queue_rule bulk-gpu-poison)]}}}}
JSON
az rest --method PATCH --url "$GPU_APP_ID?api-version=2026-03-02-preview" --body "@$body" --output none
