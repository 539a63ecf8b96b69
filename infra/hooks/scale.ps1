# After provisioning and after a deployment: sets the GPU app's scale rules, with GPU_HTTP_CONCURRENCY requests a replica.
# 0 leaves the platform's rules, which with a user-assigned identity do not cover the app's queues. Bicep cannot do this:
# its types lack allowScalingRuleOverride, and each of its deployments resets the rules to those that the platform derives
# from the triggers. The platform derives none beside rules that are set, so the app's queues are here too. There is one
# replica for every eight chunks: a chunk takes a moment, and a replica is paid for until it has been idle for minutes.
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
