// The CPU backend as a container, instead of app/cpu.bicep: INT8 models, for the router alone. Not of kind functionapp:
// its scale rules are these, so that they can count the CPU too.
import { identityNameOf, nameOf } from '../shared.bicep'

param location string
param tags object
param token string
param backendAppId string
param audience string
@description('Empty: there is no GPU app, and no bulk job goes to it.')
param gpuUrl string
param image string
param warmModels string
param defaultModel string
param minReplicas int
param maxReplicas int

resource identity 'Microsoft.ManagedIdentity/userAssignedIdentities@2023-01-31' existing = {
  name: identityNameOf('cpu', token)
}

// What the app reads, with what failed too often; a replica for each message of host.json's batchSize.
var queues = ['bulk-events', 'bulk-split', 'bulk-cpu', 'bulk-finish']
var queueRules = map(concat(queues, map(queues, name => '${name}-poison')), name => {
  name: name
  custom: {
    type: 'azure-queue'
    identity: identity.id
    metadata: { accountName: nameOf('dataAccount', token), queueName: name, queueLength: '1' }
  }
})

module app 'container.bicep' = {
  params: {
    location: location
    tags: tags
    token: token
    app: 'cpu'
    service: 'cpu-container'
    scalesByTriggers: false
    backendAppId: backendAppId
    audience: audience
    image: image
    profile: 'cpu'
    resources: { cpu: 4, memory: '16Gi' }
    settings: {
      BLITZ_ROLE: 'cpu'
      BLITZ_GPU_BACKEND_URL: gpuUrl
      BLITZ_WARM_MODELS: warmModels
      BLITZ_DEFAULT_MODEL: defaultModel
      // Of the replica's 16 GiB; the rest is for the host and for Python.
      BLITZ_CACHE_MEMORY_BYTES: '10000000000'
      BLITZ_BATCH_MEMORY_BYTES: '3600000000'
    }
    scale: {
      minReplicas: minReplicas
      maxReplicas: maxReplicas
      cooldownPeriod: 300
      pollingInterval: 15
      rules: concat(
        [
          { name: 'http', http: { metadata: { concurrentRequests: '10' } } }
          { name: 'cpu', custom: { type: 'cpu', metadata: { type: 'Utilization', value: '70' } } }
        ],
        queueRules
      )
    }
  }
}

output url string = app.outputs.url
