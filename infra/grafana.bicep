// Azure Managed Grafana. What it may read is in roles.bicep; infra/hooks/grafana puts the dashboards into it.
import { nameOf } from 'shared.bicep'

param location string
param tags object
param token string
param zoneRedundant bool

resource grafana 'Microsoft.Dashboard/grafana@2023-09-01' = {
  name: nameOf('grafana', token)
  location: location
  tags: tags
  sku: { name: 'Standard' }
  identity: { type: 'SystemAssigned' }
  properties: {
    // People and hooks sign in with Entra.
    apiKey: 'Disabled'
    deterministicOutboundIP: 'Disabled'
    publicNetworkAccess: 'Enabled'
    zoneRedundancy: zoneRedundant ? 'Enabled' : 'Disabled'
  }
}

output name string = grafana.name
output url string = grafana.properties.endpoint
