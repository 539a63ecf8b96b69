#!/bin/sh
# Before provisioning: what Bicep cannot make. The Entra application that stands for the backends, a first
# key for callers, and the budget's first month; each only if it is not in azd's environment yet.
set -eu

if [ -z "${BACKEND_APP_ID:-}" ]; then
    name="blitz-embedding-$AZURE_ENV_NAME"
    # A --display-name would find every app whose name begins so.
    id=$(az ad app list --filter "displayName eq '$name'" --query '[0].appId' --output tsv)
    if [ -z "$id" ]; then
        id=$(az ad app create --display-name "$name" --sign-in-audience AzureADMyOrg \
            --requested-access-token-version 2 --query appId --output tsv)
    fi
    az ad app update --id "$id" --identifier-uris "api://$id"
    # Without a service principal in the tenant the router gets no token for it.
    if ! az ad sp show --id "$id" --output none 2>/dev/null; then
        az ad sp create --id "$id" --output none
    fi
    azd env set BACKEND_APP_ID "$id"
fi

# API Management has keys of its own.
if [ -z "${API_KEY_HASHES:-}" ] && [ "${API_MANAGEMENT_ENABLED:-false}" != true ]; then
    key=$(python3 -c 'import secrets; print(secrets.token_urlsafe(32))')
    hash=$(printf %s "$key" | python3 -c 'import hashlib, sys; print(hashlib.sha256(sys.stdin.buffer.read()).hexdigest())')
    azd env set API_KEY_HASHES "$hash"
    echo "A key for callers, shown this once; only its hash is kept: $key"
fi

if [ -z "${BUDGET_START:-}" ]; then
    azd env set BUDGET_START "$(date +%Y-%m-01)"
fi
