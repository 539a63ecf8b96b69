#!/bin/sh
# After provisioning and after a deployment: requests that one GPU replica takes at a time, if
# GPU_HTTP_CONCURRENCY asks for another number than the platform's 10. Bicep cannot: its types do not have
# allowScalingRuleOverride, and each of its deployments resets the rule.
set -eu

concurrency=${GPU_HTTP_CONCURRENCY:-10}
if [ -z "${GPU_APP_ID:-}" ] || [ "$concurrency" = 10 ]; then
    exit 0
fi
body=$(mktemp)
trap 'rm -f "$body"' EXIT
cat >"$body" <<JSON
{"properties": {"template": {"scale": {"allowScalingRuleOverride": true, "rules": [
  {"name": "http", "http": {"metadata": {"concurrentRequests": "$concurrency"}}}]}}}}
JSON
az rest --method PATCH --url "$GPU_APP_ID?api-version=2026-03-02-preview" --body "@$body" --output none
