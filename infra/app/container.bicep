// An app in a container of the Functions host, for the router alone: what the GPU app has in common with the CPU app
// where that is a container too.
import { identityNameOf, nameOf, sharedSettings } from '../shared.bicep'

param location string
param tags object
param token string
@description('Of the app\'s identity.')
@allowed(['cpu', 'gpu'])
param app string
@description('Name of the azd service.')
param service string
@description('Whether the platform derives the scale rules from the triggers, and refuses others.')
param scalesByTriggers bool
param backendAppId string
param audience string
param image string
@description('Name of one of the environment\'s workload profiles.')
param profile string
param resources { cpu: int, memory: string }
@description('Settings of this app beyond those that all share.')
param settings object
@description('Replicas, rules and waiting times; see the resource\'s template.scale.')
param scale object

resource identity 'Microsoft.ManagedIdentity/userAssignedIdentities@2023-01-31' existing = {
  name: identityNameOf(app, token)
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

resource managedEnvironment 'Microsoft.App/managedEnvironments@2026-03-02-preview' existing = {
  name: nameOf('environment', token)
}

var shared = sharedSettings(app, token, identity.properties.clientId, applicationInsights.properties.ConnectionString)
var allSettings = union(
  shared,
  {
    // Files, because the Functions host keeps its keys in blobs only on its own platform.
    AzureWebJobsSecretStorageType: 'Files'
    // Where the ingress leads; the stand-in image would listen on 80, and its revision never be ready.
    ASPNETCORE_URLS: 'http://+:8080'
  },
  settings
)

resource containerApp 'Microsoft.App/containerApps@2026-03-02-preview' = {
  name: 'ca-${app}-${token}'
  location: location
  tags: union(tags, { 'azd-service-name': service })
  kind: scalesByTriggers ? 'functionapp' : null
  identity: {
    type: 'UserAssigned'
    userAssignedIdentities: { '${identity.id}': {} }
  }
  properties: {
    environmentId: managedEnvironment.id
    workloadProfileName: profile
    configuration: {
      activeRevisionsMode: 'Single'
      registries: [{ server: registry.properties.loginServer, identity: identity.id }]
      // In an isolated environment "external" reaches as far as the virtual network.
      ingress: { external: true, targetPort: 8080, transport: 'auto', allowInsecure: false }
    }
    template: {
      containers: [
        {
          name: app
          image: image
          resources: resources
          env: map(items(allSettings), each => { name: each.key, value: each.value })
        }
      ]
      scale: scale
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

output id string = containerApp.id
output identityId string = identity.id
output url string = 'https://${containerApp.properties.configuration.ingress.fqdn}'
