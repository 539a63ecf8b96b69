# Before provisioning: what Bicep cannot make. The Entra application that stands for the backends, a first
# key for callers, and the budget's first month; each only if it is not in azd's environment yet.
$ErrorActionPreference = 'Stop'

function Assert-Success { if ($LASTEXITCODE -ne 0) { throw "the last command failed: $LASTEXITCODE" } }

if (-not $env:BACKEND_APP_ID) {
    $name = "blitz-embedding-$env:AZURE_ENV_NAME"
    # A --display-name would find every app whose name begins so.
    $id = az ad app list --filter "displayName eq '$name'" --query '[0].appId' --output tsv
    Assert-Success
    if (-not $id) {
        $id = az ad app create --display-name $name --sign-in-audience AzureADMyOrg `
            --requested-access-token-version 2 --query appId --output tsv
        Assert-Success
    }
    az ad app update --id $id --identifier-uris "api://$id"
    Assert-Success
    # Without a service principal in the tenant the router gets no token for it.
    az ad sp show --id $id --output none 2>$null
    if ($LASTEXITCODE -ne 0) {
        az ad sp create --id $id --output none
        Assert-Success
    }
    azd env set BACKEND_APP_ID $id
    Assert-Success
}

# API Management has keys of its own.
if (-not $env:API_KEY_HASHES -and $env:API_MANAGEMENT_ENABLED -ne 'true') {
    $bytes = [byte[]]::new(32)
    [System.Security.Cryptography.RandomNumberGenerator]::Fill($bytes)
    $key = [Convert]::ToBase64String($bytes).TrimEnd('=').Replace('+', '-').Replace('/', '_')
    $digest = [System.Security.Cryptography.SHA256]::HashData([Text.Encoding]::ASCII.GetBytes($key))
    azd env set API_KEY_HASHES ([Convert]::ToHexString($digest).ToLower())
    Assert-Success
    Write-Host "A key for callers, shown this once; only its hash is kept: $key"
}

if (-not $env:BUDGET_START) {
    azd env set BUDGET_START (Get-Date -Format 'yyyy-MM-01')
    Assert-Success
}
