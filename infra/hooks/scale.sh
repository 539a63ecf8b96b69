#!/bin/sh
# After provisioning and after a deployment: the GPU app's own scale rules, with GPU_HTTP_CONCURRENCY requests a
# replica; 0 leaves the platform's, which for a user-assigned identity have none for its queues. Bicep cannot: its types do not have allowScalingRuleOverride, and each of
# its deployments resets the rules to the platform's, which it derives from the triggers. With rules of one's
# own it derives none, so the queues that the app reads are here too. A replica for every eight chunks: each
# takes a moment, and a replica is paid for until it has been idle for minutes.
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
