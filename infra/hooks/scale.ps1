# After provisioning and after a deployment: the GPU app's own scale rules, with GPU_HTTP_CONCURRENCY requests a
# replica; 0 leaves the platform's, which for a user-assigned identity have none for its queues. Bicep cannot: its types do not have allowScalingRuleOverride, and each of
# its deployments resets the rules to the platform's, which it derives from the triggers. With rules of one's
# own it derives none, so the queues that the app reads are here too. A replica for every eight chunks: each
# takes a moment, and a replica is paid for until it has been idle for minutes.
$ErrorActionPreference = 'Stop'

$requests = if ($env:GPU_HTTP_CONCURRENCY) { $env:GPU_HTTP_CONCURRENCY } else { '10' }
if (-not $env:GPU_APP_ID -or $requests -eq '0') { exit 0 }
function Get-QueueRule([string]$Queue) {
    @"
{"name": "$Queue", "custom": {"type": "azure-queue", "identity": "$($env:GPU_IDENTITY_ID)", "metadata":
    {"accountName": "$($env:DATA_ACCOUNT_NAME)", "queueName": "$Queue", "queueLength": "8"}}}
"@
}
$body = New-TemporaryFile
try {
    Set-Content -Path $body -Value @"
{"properties": {"template": {"scale": {"allowScalingRuleOverride": true, "rules": [
  {"name": "http", "http": {"metadata": {"concurrentRequests": "$requests"}}},
  $(Get-QueueRule 'bulk-gpu'),
  $(Get-QueueRule 'bulk-gpu-poison')]}}}}
"@
    az rest --method PATCH --url "$($env:GPU_APP_ID)?api-version=2026-03-02-preview" --body "@$body" --output none
    if ($LASTEXITCODE -ne 0) { throw 'the scale rules could not be set' }
}
finally {
    Remove-Item $body
}
