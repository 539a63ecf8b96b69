# After provisioning: the dashboards, into Azure Managed Grafana if there is one.
$ErrorActionPreference = 'Stop'

python (Join-Path $PSScriptRoot 'grafana.py')
exit $LASTEXITCODE
