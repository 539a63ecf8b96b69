// A Functions app on a Flex Consumption plan of its own: what router and CPU app have in common.
import { hostAccountOf, identityNameOf, nameOf, sharedSettings, storageUrlOf } from '../shared.bicep'

param location string
param tags object
param token string
@description('Name of the azd service, of the app\'s identity and of its subnet.')
@allowed(['router', 'cpu'])
param service string
@description('Settings of this app beyond those that all share.')
param settings object
@allowed([512, 2048, 4096])
param instanceMemoryMB int
param alwaysReady int
@description('Maximum number of instances for each group of functions that scales by itself: HTTP is one group, each queue another.')
param maxInstances int
param httpConcurrency int
@description('Spread over zones; the platform then keeps two instances of each group of functions ready, and bills them.')
param zoneRedundant bool
@description('Whether outgoing connections go through the virtual network.')
param networkIsolated bool
@description('Whether the internet reaches the app. Its deployment endpoint is always reachable, with an Entra token.')
param isPublic bool
@description('The only identity that may call; null: anybody.')
param caller ('router' | 'gateway')?
param backendAppId string
param audience string

resource identity 'Microsoft.ManagedIdentity/userAssignedIdentities@2023-01-31' existing = {
  name: identityNameOf(service, token)
}

resource callerIdentity 'Microsoft.ManagedIdentity/userAssignedIdentities@2023-01-31' existing = if (caller != null) {
  name: identityNameOf(caller ?? 'router', token)
}

resource applicationInsights 'Microsoft.Insights/components@2020-02-02' existing = {
  name: nameOf('applicationInsights', token)
}

resource network 'Microsoft.Network/virtualNetworks@2024-05-01' existing = if (networkIsolated) {
  name: nameOf('network', token)

  resource subnet 'subnets' existing = { name: service }
}

var allSettings = union(
  sharedSettings(service, token, identity.properties.clientId, applicationInsights.properties.ConnectionString),
  settings
)

resource plan 'Microsoft.Web/serverfarms@2024-04-01' = {
  name: 'plan-${service}-${token}'
  location: location
  tags: tags
  kind: 'functionapp'
  sku: { name: 'FC1', tier: 'FlexConsumption' }
  properties: { reserved: true, zoneRedundant: zoneRedundant }
}

resource app 'Microsoft.Web/sites@2024-04-01' = {
  name: 'func-${service}-${token}'
  location: location
  tags: union(tags, { 'azd-service-name': service })
  kind: 'functionapp,linux'
  identity: {
    type: 'UserAssigned'
    userAssignedIdentities: { '${identity.id}': {} }
  }
  properties: {
    serverFarmId: plan.id
    httpsOnly: true
    publicNetworkAccess: 'Enabled'
    virtualNetworkSubnetId: networkIsolated ? network::subnet.id : null
    functionAppConfig: {
      deployment: {
        storage: {
          type: 'blobContainer'
          value: '${storageUrlOf(hostAccountOf(service, token), 'blob')}/deploy-${service}'
          authentication: { type: 'UserAssignedIdentity', userAssignedIdentityResourceId: identity.id }
        }
      }
      runtime: { name: 'python', version: '3.11' }
      scaleAndConcurrency: {
        instanceMemoryMB: instanceMemoryMB
        maximumInstanceCount: maxInstances
        alwaysReady: alwaysReady > 0 ? [{ name: 'http', instanceCount: alwaysReady }] : []
        triggers: { http: { perInstanceConcurrency: httpConcurrency } }
      }
    }
    siteConfig: {
      minTlsVersion: '1.2'
      ipSecurityRestrictionsDefaultAction: isPublic ? 'Allow' : 'Deny'
      scmIpSecurityRestrictionsDefaultAction: 'Allow'
      scmIpSecurityRestrictionsUseMain: false
      appSettings: map(items(allSettings), each => { name: each.key, value: each.value })
    }
  }

  // Deployment is Entra's too: no publishing password.
  resource scm 'basicPublishingCredentialsPolicies' = {
    name: 'scm'
    properties: { allow: false }
  }

  resource ftp 'basicPublishingCredentialsPolicies' = {
    name: 'ftp'
    properties: { allow: false }
  }

  resource auth 'config' = if (caller != null) {
    name: 'authsettingsV2'
    properties: {
      platform: { enabled: true }
      globalValidation: {
        requireAuthentication: true
        unauthenticatedClientAction: 'Return401'
      }
      httpSettings: { requireHttps: true }
      login: { tokenStore: { enabled: false } }
      identityProviders: {
        azureActiveDirectory: {
          enabled: true
          registration: {
            clientId: backendAppId
            openIdIssuer: '${environment().authentication.loginEndpoint}${tenant().tenantId}/v2.0'
          }
          validation: {
            // Tokens of version 2 carry the bare id, those of version 1 the URI.
            allowedAudiences: [audience, backendAppId]
            defaultAuthorizationPolicy: { allowedApplications: [callerIdentity!.properties.clientId] }
          }
        }
      }
    }
  }
}

output id string = app.id
output url string = 'https://${app.properties.defaultHostName}'
