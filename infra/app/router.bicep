// The router: the only app that callers reach.
import { nameOf, storageUrlOf } from '../shared.bicep'

param location string
param tags object
param token string
param backendAppId string
param audience string
param cpuUrl string
@description('Empty: there is no GPU app.')
param gpuUrl string
param gpuCooldownSeconds int
param gpuAheadSeconds int
@description('Not used behind API Management, which has keys of its own and hands the router a token instead.')
param apiKeyHashes string
param apiManagementEnabled bool
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
    service: 'router'
    instanceMemoryMB: 2048
    alwaysReady: alwaysReady
    maxInstances: maxInstances
    httpConcurrency: httpConcurrency
    zoneRedundant: zoneRedundant
    networkIsolated: networkIsolated
    isPublic: true
    caller: apiManagementEnabled ? 'gateway' : null
    backendAppId: backendAppId
    audience: audience
    settings: {
      // The host's own limit is 100 MiB; a file of /v1/files may have 200 MB, and its form a little more.
      FUNCTIONS_REQUEST_BODY_SIZE_LIMIT: '210000000'
      BLITZ_ROLE: 'router'
      // By the expected time: a cold GPU takes minutes, in which a CPU answers most requests.
      BLITZ_ROUTING: 'adaptive'
      BLITZ_CPU_BACKEND_URL: cpuUrl
      BLITZ_GPU_BACKEND_URL: gpuUrl
      BLITZ_GPU_IDLE_S: string(gpuCooldownSeconds)
      BLITZ_GPU_AHEAD_S: string(gpuAheadSeconds)
      BLITZ_BACKEND_AUDIENCE: audience
      BLITZ_API_KEY_HASHES: apiManagementEnabled ? '' : apiKeyHashes
      // Need not be there: python -m functions.keys add writes it.
      BLITZ_API_KEYS: apiManagementEnabled ? '' : '${storageUrlOf(nameOf('dataAccount', token), 'blob')}/keys/keys.json'
      BLITZ_DEFAULT_MODEL: defaultModel
      // Callers outside do not reach an isolated account.
      BLITZ_LINK_DOWNLOADS: networkIsolated ? 'false' : 'true'
    }
  }
}

output url string = app.outputs.url
