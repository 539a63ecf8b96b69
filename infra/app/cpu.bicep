// The CPU backend: INT8 models, for the router alone.
import { nameOf } from '../shared.bicep'

param location string
param tags object
param token string
param backendAppId string
param audience string
@description('Empty: there is no GPU app, and no bulk job goes to it.')
param gpuUrl string
param warmModels string
param defaultModel string
param alwaysReady int
param maxInstances int
param httpConcurrency int
param zoneRedundant bool
param networkIsolated bool

module app 'flex.bicep' = {
  params: {
    location: location
    tags: tags
    token: token
    service: 'cpu'
    instanceMemoryMB: 4096
    alwaysReady: alwaysReady
    maxInstances: maxInstances
    httpConcurrency: httpConcurrency
    zoneRedundant: zoneRedundant
    networkIsolated: networkIsolated
    isPublic: !networkIsolated
    caller: 'router'
    backendAppId: backendAppId
    audience: audience
    settings: {
      BLITZ_ROLE: 'cpu'
      BLITZ_GPU_BACKEND_URL: gpuUrl
      BLITZ_WARM_MODELS: warmModels
      BLITZ_DEFAULT_MODEL: defaultModel
      // Of the instance's 4096 MB; the rest is for the host and for Python.
      BLITZ_CACHE_MEMORY_BYTES: '2500000000'
      BLITZ_BATCH_MEMORY_BYTES: '900000000'
    }
  }
}

resource network 'Microsoft.Network/virtualNetworks@2024-05-01' existing = if (networkIsolated) {
  name: nameOf('network', token)

  resource endpoints 'subnets' existing = { name: 'endpoints' }
}

resource zone 'Microsoft.Network/privateDnsZones@2020-06-01' existing = if (networkIsolated) {
  name: 'privatelink.azurewebsites.net'
}

module endpoint '../endpoint.bicep' = if (networkIsolated) {
  params: {
    location: location
    tags: tags
    name: 'pe-cpu-${token}'
    targetId: app.outputs.id
    kind: 'sites'
    subnetId: network::endpoints.id
    zoneId: zone.id
  }
}

output url string = app.outputs.url
