# After provisioning and after a deployment: requests that one GPU replica takes at a time, if
# GPU_HTTP_CONCURRENCY asks for another number than the platform's 10. Bicep cannot: its types do not have
# allowScalingRuleOverride, and each of its deployments resets the rule.
$ErrorActionPreference = 'Stop'

$concurrency = if ($env:GPU_HTTP_CONCURRENCY) { $env:GPU_HTTP_CONCURRENCY } else { '10' }
if (-not $env:GPU_APP_ID -or $concurrency -eq '10') { exit 0 }
$body = New-TemporaryFile
try {
    Set-Content -Path $body -Value @"
{"properties": {"template": {"scale": {"allowScalingRuleOverride": true, "rules": [
  {"name": "http", "http": {"metadata": {"concurrentRequests": "$concurrency"}}}]}}}}
"@
    az rest --method PATCH --url "$($env:GPU_APP_ID)?api-version=2026-03-02-preview" --body "@$body" --output none
    if ($LASTEXITCODE -ne 0) { throw 'the scale rule could not be set' }
}
finally {
    Remove-Item $body
}
