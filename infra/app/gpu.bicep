// The GPU backend: a container of the Functions host on a serverless GPU, for the router alone.
import { identityNameOf, nameOf, sharedSettings } from '../shared.bicep'

param location string
param tags object
param token string
param backendAppId string
param audience string
param workspaceId string
param image string
@allowed(['Consumption-GPU-NC8as-T4', 'Consumption-GPU-NC24-A100'])
param profile string
param modelsInImage bool
param warmModels string
param maxReplicas int
param cooldownSeconds int
@description('Only with a network: Container Apps spreads no other environment over zones.')
param zoneRedundant bool
@description('Whether the environment is in the virtual network and has no public address.')
param networkIsolated bool

resource identity 'Microsoft.ManagedIdentity/userAssignedIdentities@2023-01-31' existing = {
  name: identityNameOf('gpu', token)
}

resource routerIdentity 'Microsoft.ManagedIdentity/userAssignedIdentities@2023-01-31' existing = {
  name: identityNameOf('router', token)
}

resource applicationInsights 'Microsoft.Insights/components@2020-02-02' existing = {
  name: nameOf('applicationInsights', token)
}

resource registry 'Microsoft.ContainerRegistry/registries@2023-07-01' existing = {
  name: nameOf('registry', token)
}

resource network 'Microsoft.Network/virtualNetworks@2024-05-01' existing = if (networkIsolated) {
  name: nameOf('network', token)

  resource subnet 'subnets' existing = { name: 'gpu' }
}

// A replica takes the whole GPU, so it may as well take all that comes with it.
var sizes = {
  'Consumption-GPU-NC8as-T4': { cpu: 8, memory: '56Gi', modelBytes: '8000000000' }
  'Consumption-GPU-NC24-A100': { cpu: 24, memory: '220Gi', modelBytes: '50000000000' }
}

var shared = sharedSettings('gpu', token, identity.properties.clientId, applicationInsights.properties.ConnectionString)
var settings = union(shared, modelsInImage ? { BLITZ_MODEL_STORE: 'file:///models' } : {}, {
  // Files, because the Functions host keeps its keys in blobs only on its own platform.
  AzureWebJobsSecretStorageType: 'Files'
  // With host.json's value of 1, ten waiting chunks would start ten GPUs, each for less than a second of work.
  AzureFunctionsJobHost__extensions__queues__batchSize: '8'
  // The port of the ingress. Otherwise the stand-in image would listen on 80, and its revision would never be ready.
  ASPNETCORE_URLS: 'http://+:8080'
  BLITZ_ROLE: 'gpu'
  BLITZ_WARM_MODELS: warmModels
  BLITZ_CACHE_MODELS: '8'
  // GPU memory for models: about half, the rest is for activations.
  BLITZ_CACHE_MEMORY_BYTES: sizes[profile].modelBytes
  // Of the replica's 8 GiB of temporary storage.
  BLITZ_CACHE_DISK_BYTES: '6000000000'
})

resource managedEnvironment 'Microsoft.App/managedEnvironments@2026-03-02-preview' = {
  name: 'cae-${token}'
  location: location
  tags: tags
  properties: {
    // A Log Analytics destination would need the workspace's key.
    appLogsConfiguration: { destination: 'azure-monitor' }
    zoneRedundant: zoneRedundant
    vnetConfiguration: networkIsolated ? { internal: true, infrastructureSubnetId: network::subnet.id } : null
    workloadProfiles: [
      { name: 'Consumption', workloadProfileType: 'Consumption' }
      { name: 'gpu', workloadProfileType: profile }
    ]
  }
}

resource logs 'Microsoft.Insights/diagnosticSettings@2021-05-01-preview' = {
  name: 'logs'
  scope: managedEnvironment
  properties: {
    workspaceId: workspaceId
    logs: [
      { category: 'ContainerAppConsoleLogs', enabled: true }
      { category: 'ContainerAppSystemLogs', enabled: true }
    ]
  }
}

resource app 'Microsoft.App/containerApps@2026-03-02-preview' = {
  name: 'ca-gpu-${token}'
  location: location
  tags: union(tags, { 'azd-service-name': 'gpu' })
  kind: 'functionapp'
  identity: {
    type: 'UserAssigned'
    userAssignedIdentities: { '${identity.id}': {} }
  }
  properties: {
    environmentId: managedEnvironment.id
    workloadProfileName: 'gpu'
    configuration: {
      activeRevisionsMode: 'Single'
      registries: [{ server: registry.properties.loginServer, identity: identity.id }]
      // In an isolated environment "external" reaches as far as the virtual network.
      ingress: { external: true, targetPort: 8080, transport: 'auto', allowInsecure: false }
    }
    template: {
      containers: [
        {
          name: 'gpu'
          image: image
          resources: { cpu: sizes[profile].cpu, memory: sizes[profile].memory }
          env: map(items(settings), each => { name: each.key, value: each.value })
        }
      ]
      // The platform derives the rules from the triggers: a replica for each batchSize waiting messages of
      // bulk-gpu, and 10 requests at a time for HTTP. infra/hooks/scale can set others.
      scale: { minReplicas: 0, maxReplicas: maxReplicas, cooldownPeriod: cooldownSeconds, pollingInterval: 15 }
    }
  }

  resource auth 'authConfigs' = {
    name: 'current'
    properties: {
      platform: { enabled: true }
      globalValidation: { unauthenticatedClientAction: 'Return401' }
      httpSettings: { requireHttps: true }
      identityProviders: {
        azureActiveDirectory: {
          enabled: true
          registration: {
            clientId: backendAppId
            openIdIssuer: '${environment().authentication.loginEndpoint}${tenant().tenantId}/v2.0'
          }
          validation: {
            allowedAudiences: [audience, backendAppId]
            defaultAuthorizationPolicy: { allowedApplications: [routerIdentity.properties.clientId] }
          }
        }
      }
    }
  }
}

module names '../environment-names.bicep' = if (networkIsolated) {
  params: {
    tags: tags
    networkId: network.id
    domain: managedEnvironment.properties.defaultDomain
    address: managedEnvironment.properties.staticIp
  }
}

output id string = app.id
output identityId string = identity.id
output url string = 'https://${app.properties.configuration.ingress.fqdn}'
