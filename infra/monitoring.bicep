// Application Insights over a Log Analytics workspace, and the workbook over both.
import { nameOf } from 'shared.bicep'

param location string
param tags object
param token string

resource workspace 'Microsoft.OperationalInsights/workspaces@2023-09-01' = {
  name: 'log-${token}'
  location: location
  tags: tags
  properties: {
    sku: { name: 'PerGB2018' }
    retentionInDays: 30
    // A loop that logs must not cost more than the service: about 3 USD a day at most.
    workspaceCapping: { dailyQuotaGb: 1 }
  }
}

resource applicationInsights 'Microsoft.Insights/components@2020-02-02' = {
  name: nameOf('applicationInsights', token)
  location: location
  tags: tags
  kind: 'web'
  properties: {
    Application_Type: 'web'
    WorkspaceResourceId: workspace.id
    // The instrumentation key alone lets nobody write: the apps show a token, see roles.bicep.
    DisableLocalAuth: true
  }
}

// Its queries name no resource: they ask the one that it belongs to, or falls back to.
resource workbook 'Microsoft.Insights/workbooks@2023-06-01' = {
  name: guid(applicationInsights.id, 'workbook')
  location: location
  tags: tags
  kind: 'shared'
  properties: {
    displayName: 'BlitzEmbedding'
    category: 'workbook'
    sourceId: applicationInsights.id
    serializedData: string(union(
      loadJsonContent('dashboards/workbook.json'),
      { fallbackResourceIds: [applicationInsights.id] }
    ))
  }
}

output workspaceId string = workspace.id
output applicationInsightsId string = applicationInsights.id
