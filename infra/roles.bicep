// Who may do what: every role assignment of the service, and none elsewhere.
import { identityNameOf, nameOf } from 'shared.bicep'

param token string
param gpuEnabled bool
@description('Object id of who publishes models; empty: nobody.')
param deployerPrincipalId string
param deployerPrincipalType string

var role = {
  blobOwner: 'b7e6dc6d-f1e8-4753-8033-0f276bb0955b' // Storage Blob Data Owner
  blobContributor: 'ba92f5b4-2d11-453d-a403-e96b0029c9fe' // Storage Blob Data Contributor
  blobReader: '2a2b9908-6ea1-4ae2-8e65-a410df84e7d1' // Storage Blob Data Reader
  queueSender: 'c6a89b2d-59bc-44d0-9896-0f6e12d7b80a' // Storage Queue Data Message Sender
  queueContributor: '974c5e8b-45b9-4653-ba55-5f855dd0fb88' // Storage Queue Data Contributor
  tableContributor: '0a9a7e1f-b9d0-4cc4-a60d-0319b160aaa3' // Storage Table Data Contributor
  metricsPublisher: '3913510d-42f4-4e42-8a64-420c390055eb' // Monitoring Metrics Publisher
  acrPull: '7f951dda-4ed3-4680-a7ca-43fe172d538d' // AcrPull
}

resource eventsIdentity 'Microsoft.ManagedIdentity/userAssignedIdentities@2023-01-31' existing = {
  name: identityNameOf('events', token)
}

resource hostAccount 'Microsoft.Storage/storageAccounts@2023-05-01' existing = {
  name: nameOf('hostAccount', token)
}

resource dataAccount 'Microsoft.Storage/storageAccounts@2023-05-01' existing = {
  name: nameOf('dataAccount', token)

  resource blobs 'blobServices' existing = {
    name: 'default'

    resource models 'containers' existing = { name: 'models' }
    resource bulkIn 'containers' existing = { name: 'bulk-in' }
    resource bulkOut 'containers' existing = { name: 'bulk-out' }
  }

  resource queueService 'queueServices' existing = {
    name: 'default'

    resource bulkEvents 'queues' existing = { name: 'bulk-events' }
  }
}

resource applicationInsights 'Microsoft.Insights/components@2020-02-02' existing = {
  name: nameOf('applicationInsights', token)
}

resource registry 'Microsoft.ContainerRegistry/registries@2023-07-01' existing = if (gpuEnabled) {
  name: nameOf('registry', token)
}

// In this order: see below.
var apps = gpuEnabled ? ['router', 'cpu', 'gpu'] : ['router', 'cpu']
var cpu = 1
var gpu = 2

resource identities 'Microsoft.ManagedIdentity/userAssignedIdentities@2023-01-31' existing = [
  for app in apps: {
    name: identityNameOf(app, token)
  }
]

// The hosts: locks, keys and timers in blobs, diagnostic events in tables.
resource hostBlobs 'Microsoft.Authorization/roleAssignments@2022-04-01' = [
  for (app, index) in apps: {
    name: guid(hostAccount.id, identities[index].id, role.blobOwner)
    scope: hostAccount
    properties: {
      principalId: identities[index].properties.principalId
      principalType: 'ServicePrincipal'
      roleDefinitionId: subscriptionResourceId('Microsoft.Authorization/roleDefinitions', role.blobOwner)
    }
  }
]

resource hostTables 'Microsoft.Authorization/roleAssignments@2022-04-01' = [
  for (app, index) in apps: {
    name: guid(hostAccount.id, identities[index].id, role.tableContributor)
    scope: hostAccount
    properties: {
      principalId: identities[index].properties.principalId
      principalType: 'ServicePrincipal'
      roleDefinitionId: subscriptionResourceId('Microsoft.Authorization/roleDefinitions', role.tableContributor)
    }
  }
]

// Models: every app reads them, only who deploys writes them.
resource models 'Microsoft.Authorization/roleAssignments@2022-04-01' = [
  for (app, index) in apps: {
    name: guid(dataAccount::blobs::models.id, identities[index].id, role.blobReader)
    scope: dataAccount::blobs::models
    properties: {
      principalId: identities[index].properties.principalId
      principalType: 'ServicePrincipal'
      roleDefinitionId: subscriptionResourceId('Microsoft.Authorization/roleDefinitions', role.blobReader)
    }
  }
]

resource publisher 'Microsoft.Authorization/roleAssignments@2022-04-01' = if (!empty(deployerPrincipalId)) {
  name: guid(dataAccount::blobs::models.id, deployerPrincipalId, role.blobContributor)
  scope: dataAccount::blobs::models
  properties: {
    principalId: deployerPrincipalId
    principalType: deployerPrincipalType
    roleDefinitionId: subscriptionResourceId('Microsoft.Authorization/roleDefinitions', role.blobContributor)
  }
}

// Bulk files: the CPU app reads and splits them, and all three work on the results.
resource bulkIn 'Microsoft.Authorization/roleAssignments@2022-04-01' = {
  name: guid(dataAccount::blobs::bulkIn.id, identities[cpu].id, role.blobReader)
  scope: dataAccount::blobs::bulkIn
  properties: {
    principalId: identities[cpu].properties.principalId
    principalType: 'ServicePrincipal'
    roleDefinitionId: subscriptionResourceId('Microsoft.Authorization/roleDefinitions', role.blobReader)
  }
}

resource bulkOut 'Microsoft.Authorization/roleAssignments@2022-04-01' = [
  for (app, index) in apps: {
    name: guid(dataAccount::blobs::bulkOut.id, identities[index].id, role.blobContributor)
    scope: dataAccount::blobs::bulkOut
    properties: {
      principalId: identities[index].properties.principalId
      principalType: 'ServicePrincipal'
      roleDefinitionId: subscriptionResourceId('Microsoft.Authorization/roleDefinitions', role.blobContributor)
    }
  }
]

// The account's queues are all of bulk embedding. The router only writes to them; the backends' hosts read
// them, and the scale controller counts their messages as the app.
resource dataQueues 'Microsoft.Authorization/roleAssignments@2022-04-01' = [
  for (app, index) in apps: {
    name: guid(dataAccount.id, identities[index].id, app == 'router' ? role.queueSender : role.queueContributor)
    scope: dataAccount
    properties: {
      principalId: identities[index].properties.principalId
      principalType: 'ServicePrincipal'
      roleDefinitionId: subscriptionResourceId(
        'Microsoft.Authorization/roleDefinitions',
        app == 'router' ? role.queueSender : role.queueContributor
      )
    }
  }
]

resource events 'Microsoft.Authorization/roleAssignments@2022-04-01' = {
  name: guid(dataAccount::queueService::bulkEvents.id, eventsIdentity.id, role.queueSender)
  scope: dataAccount::queueService::bulkEvents
  properties: {
    principalId: eventsIdentity.properties.principalId
    principalType: 'ServicePrincipal'
    roleDefinitionId: subscriptionResourceId('Microsoft.Authorization/roleDefinitions', role.queueSender)
  }
}

resource telemetry 'Microsoft.Authorization/roleAssignments@2022-04-01' = [
  for (app, index) in apps: {
    name: guid(applicationInsights.id, identities[index].id, role.metricsPublisher)
    scope: applicationInsights
    properties: {
      principalId: identities[index].properties.principalId
      principalType: 'ServicePrincipal'
      roleDefinitionId: subscriptionResourceId('Microsoft.Authorization/roleDefinitions', role.metricsPublisher)
    }
  }
]

resource image 'Microsoft.Authorization/roleAssignments@2022-04-01' = if (gpuEnabled) {
  name: guid(registry.id, identities[gpu].id, role.acrPull)
  scope: registry
  properties: {
    principalId: identities[gpu].properties.principalId
    principalType: 'ServicePrincipal'
    roleDefinitionId: subscriptionResourceId('Microsoft.Authorization/roleDefinitions', role.acrPull)
  }
}
