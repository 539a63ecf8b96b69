// Who may do what: every role assignment of the service, and none elsewhere.
import { hostAccountOf, identityNameOf, nameOf } from 'shared.bicep'

param token string
param gpuEnabled bool
param grafanaEnabled bool
@description('Whether the CPU app is a container, which has an image to pull.')
param cpuIsContainer bool
@description('Object id of who publishes models; empty: nobody.')
param deployerPrincipalId string
param deployerPrincipalType string

var role = {
  blobOwner: 'b7e6dc6d-f1e8-4753-8033-0f276bb0955b' // Storage Blob Data Owner
  blobContributor: 'ba92f5b4-2d11-453d-a403-e96b0029c9fe' // Storage Blob Data Contributor
  blobReader: '2a2b9908-6ea1-4ae2-8e65-a410df84e7d1' // Storage Blob Data Reader
  blobDelegator: 'db58b8e5-c6ad-4a2a-8342-4190687cbf4a' // Storage Blob Delegator
  queueReader: '19e7f393-937e-4f77-808e-94535e297925' // Storage Queue Data Reader
  queueSender: 'c6a89b2d-59bc-44d0-9896-0f6e12d7b80a' // Storage Queue Data Message Sender
  queueContributor: '974c5e8b-45b9-4653-ba55-5f855dd0fb88' // Storage Queue Data Contributor
  tableContributor: '0a9a7e1f-b9d0-4cc4-a60d-0319b160aaa3' // Storage Table Data Contributor
  metricsPublisher: '3913510d-42f4-4e42-8a64-420c390055eb' // Monitoring Metrics Publisher
  monitoringReader: '43d0d8ad-25c7-4714-9337-8ba259a9fe05' // Monitoring Reader
  grafanaAdmin: '22926164-76b3-42b3-bc55-97df8dab3e41' // Grafana Admin
  acrPull: '7f951dda-4ed3-4680-a7ca-43fe172d538d' // AcrPull
}

resource dataAccount 'Microsoft.Storage/storageAccounts@2023-05-01' existing = {
  name: nameOf('dataAccount', token)

  resource blobs 'blobServices' existing = {
    name: 'default'

    resource models 'containers' existing = { name: 'models' }
    resource keys 'containers' existing = { name: 'keys' }
    resource bulkIn 'containers' existing = { name: 'bulk-in' }
    resource bulkOut 'containers' existing = { name: 'bulk-out' }
    resource deadLetters 'containers' existing = { name: 'dead-letters' }
  }

  resource queueService 'queueServices' existing = { name: 'default' }
}

resource applicationInsights 'Microsoft.Insights/components@2020-02-02' existing = {
  name: nameOf('applicationInsights', token)
}

resource registry 'Microsoft.ContainerRegistry/registries@2023-07-01' existing = if (gpuEnabled || cpuIsContainer) {
  name: nameOf('registry', token)
}

// In this order: see below.
var apps = gpuEnabled ? ['router', 'cpu', 'gpu'] : ['router', 'cpu']
var router = 0
var cpu = 1
var gpu = 2

resource identities 'Microsoft.ManagedIdentity/userAssignedIdentities@2023-01-31' existing = [
  for app in apps: {
    name: identityNameOf(app, token)
  }
]

// An account for each host, which its own app alone reads and writes: the code that the app runs is in there too.
resource hostAccounts 'Microsoft.Storage/storageAccounts@2023-05-01' existing = [
  for app in apps: {
    name: hostAccountOf(app, token)
  }
]

// Locks, keys and timers in blobs, diagnostic events in tables.
resource hostBlobs 'Microsoft.Authorization/roleAssignments@2022-04-01' = [
  for (app, index) in apps: {
    name: guid(hostAccounts[index].id, identities[index].id, role.blobOwner)
    scope: hostAccounts[index]
    properties: {
      principalId: identities[index].properties.principalId
      principalType: 'ServicePrincipal'
      roleDefinitionId: subscriptionResourceId('Microsoft.Authorization/roleDefinitions', role.blobOwner)
    }
  }
]

resource hostTables 'Microsoft.Authorization/roleAssignments@2022-04-01' = [
  for (app, index) in apps: {
    name: guid(hostAccounts[index].id, identities[index].id, role.tableContributor)
    scope: hostAccounts[index]
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

// The keys document, which has names and hashes: the router reads it, only who deploys writes it.
resource keys 'Microsoft.Authorization/roleAssignments@2022-04-01' = {
  name: guid(dataAccount::blobs::keys.id, identities[router].id, role.blobReader)
  scope: dataAccount::blobs::keys
  properties: {
    principalId: identities[router].properties.principalId
    principalType: 'ServicePrincipal'
    roleDefinitionId: subscriptionResourceId('Microsoft.Authorization/roleDefinitions', role.blobReader)
  }
}

resource keyKeeper 'Microsoft.Authorization/roleAssignments@2022-04-01' = if (!empty(deployerPrincipalId)) {
  name: guid(dataAccount::blobs::keys.id, deployerPrincipalId, role.blobContributor)
  scope: dataAccount::blobs::keys
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

// To sign links to single files for callers: it gives no right to read any, which the container's role does.
resource links 'Microsoft.Authorization/roleAssignments@2022-04-01' = {
  name: guid(dataAccount.id, identities[router].id, role.blobDelegator)
  scope: dataAccount
  properties: {
    principalId: identities[router].properties.principalId
    principalType: 'ServicePrincipal'
    roleDefinitionId: subscriptionResourceId('Microsoft.Authorization/roleDefinitions', role.blobDelegator)
  }
}

// Queues, each by itself. A host reads its app's, counts their messages to scale it, and moves what failed too often to
// NAME-poison. Who passes work on may only add to a queue; the CPU app also looks whether the GPU's is empty.
var ofCpu = ['bulk-events', 'bulk-split', 'bulk-cpu', 'bulk-finish']
var read = concat(
  map(concat(ofCpu, map(ofCpu, name => '${name}-poison')), name => { who: 'cpu', queue: name }),
  gpuEnabled ? map(['bulk-gpu', 'bulk-gpu-poison'], name => { who: 'gpu', queue: name }) : []
)
var sent = concat(
  [
    { who: 'router', queue: 'bulk-split' }
    { who: 'router', queue: 'bulk-finish' }
  ],
  gpuEnabled ? [{ who: 'cpu', queue: 'bulk-gpu' }, { who: 'gpu', queue: 'bulk-finish' }] : []
)
var counted = gpuEnabled ? [{ who: 'cpu', queue: 'bulk-gpu' }] : []
var queueRights = concat(
  map(read, each => union(each, { role: role.queueContributor })),
  map(sent, each => union(each, { role: role.queueSender })),
  map(counted, each => union(each, { role: role.queueReader }))
)

resource queues 'Microsoft.Storage/storageAccounts/queueServices/queues@2023-05-01' existing = [
  for right in queueRights: {
    parent: dataAccount::queueService
    name: right.queue
  }
]

resource queueUsers 'Microsoft.ManagedIdentity/userAssignedIdentities@2023-01-31' existing = [
  for right in queueRights: {
    name: identityNameOf(right.who, token)
  }
]

resource dataQueues 'Microsoft.Authorization/roleAssignments@2022-04-01' = [
  for (right, index) in queueRights: {
    name: guid(queues[index].id, queueUsers[index].id, right.role)
    scope: queues[index]
    properties: {
      principalId: queueUsers[index].properties.principalId
      principalType: 'ServicePrincipal'
      roleDefinitionId: subscriptionResourceId('Microsoft.Authorization/roleDefinitions', right.role)
    }
  }
]

resource topic 'Microsoft.EventGrid/systemTopics@2025-02-15' existing = {
  name: nameOf('topic', token)
}

resource eventsQueue 'Microsoft.Storage/storageAccounts/queueServices/queues@2023-05-01' existing = {
  parent: dataAccount::queueService
  name: 'bulk-events'
}

resource events 'Microsoft.Authorization/roleAssignments@2022-04-01' = {
  name: guid(eventsQueue.id, topic.id, role.queueSender)
  scope: eventsQueue
  properties: {
    principalId: topic.identity.principalId
    principalType: 'ServicePrincipal'
    roleDefinitionId: subscriptionResourceId('Microsoft.Authorization/roleDefinitions', role.queueSender)
  }
}

// What it could not put there it puts here.
resource deadLetters 'Microsoft.Authorization/roleAssignments@2022-04-01' = {
  name: guid(dataAccount::blobs::deadLetters.id, topic.id, role.blobContributor)
  scope: dataAccount::blobs::deadLetters
  properties: {
    principalId: topic.identity.principalId
    principalType: 'ServicePrincipal'
    roleDefinitionId: subscriptionResourceId('Microsoft.Authorization/roleDefinitions', role.blobContributor)
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

var containers = concat(gpuEnabled ? [gpu] : [], cpuIsContainer ? [cpu] : [])

resource images 'Microsoft.Authorization/roleAssignments@2022-04-01' = [
  for app in containers: {
    name: guid(registry.id, identities[app].id, role.acrPull)
    scope: registry
    properties: {
      principalId: identities[app].properties.principalId
      principalType: 'ServicePrincipal'
      roleDefinitionId: subscriptionResourceId('Microsoft.Authorization/roleDefinitions', role.acrPull)
    }
  }
]

resource grafana 'Microsoft.Dashboard/grafana@2023-09-01' existing = if (grafanaEnabled) {
  name: nameOf('grafana', token)
}

// Grafana reads metrics and logs of this resource group, and nothing of another one.
resource grafanaReads 'Microsoft.Authorization/roleAssignments@2022-04-01' = if (grafanaEnabled) {
  name: guid(resourceGroup().id, grafana.id, role.monitoringReader)
  properties: {
    principalId: grafana!.identity.principalId
    principalType: 'ServicePrincipal'
    roleDefinitionId: subscriptionResourceId('Microsoft.Authorization/roleDefinitions', role.monitoringReader)
  }
}

// Who deploys imports the dashboards.
var grafanaIsKept = grafanaEnabled && !empty(deployerPrincipalId)

resource grafanaKeeper 'Microsoft.Authorization/roleAssignments@2022-04-01' = if (grafanaIsKept) {
  name: guid(grafana.id, deployerPrincipalId, role.grafanaAdmin)
  scope: grafana
  properties: {
    principalId: deployerPrincipalId
    principalType: deployerPrincipalType
    roleDefinitionId: subscriptionResourceId('Microsoft.Authorization/roleDefinitions', role.grafanaAdmin)
  }
}
