# Before provisioning: what Bicep cannot make, and what Azure knows that this azd environment does not.
$ErrorActionPreference = 'Stop'

python (Join-Path $PSScriptRoot 'prepare.py')
exit $LASTEXITCODE
