# After a deployment: blobs in bulk-in call the router. The function and its key are there only once the
# deployed code has started, so this waits for them. Making the subscription again changes nothing.
$ErrorActionPreference = 'Stop'
Set-Location (Join-Path $PSScriptRoot '../..')
$pause = if ($env:HOOK_PAUSE_S) { $env:HOOK_PAUSE_S } else { 30 }

for ($try = 1; ; $try++) {
    az deployment group create --subscription $env:AZURE_SUBSCRIPTION_ID --resource-group $env:AZURE_RESOURCE_GROUP `
        --name bulk-subscription --template-file infra/hooks/subscription.bicep `
        --parameters topicName=$env:EVENT_GRID_TOPIC_NAME appName=$env:ROUTER_APP_NAME --output none
    if ($LASTEXITCODE -eq 0) { break }
    if ($try -ge 10) { throw 'the bulk subscription could not be made; azd hooks run postdeploy tries again' }
    Start-Sleep -Seconds $pause
}
