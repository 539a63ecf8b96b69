// What Azure's own services tell of themselves, into the workspace: who changed what in the data account, events that
// were not delivered, the registry's logins and images, the gateway's requests. Not what is merely read, which would
// fill the daily cap.
import { nameOf } from 'shared.bicep'

param token string
param workspaceId string
param hasContainers bool
param apiManagementEnabled bool

resource dataAccount 'Microsoft.Storage/storageAccounts@2023-05-01' existing = {
  name: nameOf('dataAccount', token)

  resource blobs 'blobServices' existing = { name: 'default' }
  resource queueService 'queueServices' existing = { name: 'default' }
}

resource topic 'Microsoft.EventGrid/systemTopics@2025-02-15' existing = {
  name: nameOf('topic', token)
}

resource registry 'Microsoft.ContainerRegistry/registries@2023-07-01' existing = if (hasContainers) {
  name: nameOf('registry', token)
}

resource gateway 'Microsoft.ApiManagement/service@2024-05-01' existing = if (apiManagementEnabled) {
  name: 'apim-${token}'
}

resource ofBlobs 'Microsoft.Insights/diagnosticSettings@2021-05-01-preview' = {
  name: 'logs'
  scope: dataAccount::blobs
  properties: {
    workspaceId: workspaceId
    logs: [for category in ['StorageWrite', 'StorageDelete']: { category: category, enabled: true }]
  }
}

resource ofQueues 'Microsoft.Insights/diagnosticSettings@2021-05-01-preview' = {
  name: 'logs'
  scope: dataAccount::queueService
  properties: {
    workspaceId: workspaceId
    logs: [{ category: 'StorageWrite', enabled: true }]
  }
}

resource ofTopic 'Microsoft.Insights/diagnosticSettings@2021-05-01-preview' = {
  name: 'logs'
  scope: topic
  properties: {
    workspaceId: workspaceId
    logs: [{ category: 'DeliveryFailures', enabled: true }]
  }
}

resource ofRegistry 'Microsoft.Insights/diagnosticSettings@2021-05-01-preview' = if (hasContainers) {
  name: 'logs'
  scope: registry
  properties: {
    workspaceId: workspaceId
    logs: [
      for category in ['ContainerRegistryRepositoryEvents', 'ContainerRegistryLoginEvents']: {
        category: category
        enabled: true
      }
    ]
  }
}

// No body, and no key: a caller's may be in the address, as ?code=KEY.
resource logger 'Microsoft.ApiManagement/service/loggers@2024-05-01' = if (apiManagementEnabled) {
  parent: gateway
  name: 'azuremonitor'
  properties: { loggerType: 'azureMonitor', isBuffered: true }
}

var withoutBody = {
  body: { bytes: 0 }
  headers: []
  dataMasking: {
    queryParams: [{ value: '*', mode: 'Hide' }]
    headers: [{ value: '*', mode: 'Hide' }]
  }
}

resource masked 'Microsoft.ApiManagement/service/diagnostics@2024-05-01' = if (apiManagementEnabled) {
  parent: gateway
  name: 'azuremonitor'
  properties: {
    loggerId: logger.id
    logClientIp: false
    sampling: { samplingType: 'fixed', percentage: 100 }
    frontend: { request: withoutBody, response: withoutBody }
    backend: { request: withoutBody, response: withoutBody }
  }
}

resource ofGateway 'Microsoft.Insights/diagnosticSettings@2021-05-01-preview' = if (apiManagementEnabled) {
  name: 'logs'
  scope: gateway
  properties: {
    workspaceId: workspaceId
    logAnalyticsDestinationType: 'Dedicated'
    logs: [{ category: 'GatewayLogs', enabled: true }]
  }
  // Or requests would be logged before their keys are masked.
  dependsOn: [masked]
}
