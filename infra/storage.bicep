// Accounts without keys: one for each app's Functions host and its package, which no other app may read or write,
// and one for models, the keys document, bulk files and queues, where each app may do only what it has to.
import { hostAccountOf, nameOf } from 'shared.bicep'

param location string
param tags object
param token string
param gpuEnabled bool
param networkIsolated bool
param allowedIpRanges string[]
param zoneRedundant bool
@description('Days in which a blob, a version or a container that was deleted or overwritten can be brought back.')
@minValue(1)
@maxValue(365)
param softDeleteDays int
param blobVersioning bool

var queues = ['bulk-events', 'bulk-split', 'bulk-cpu', 'bulk-gpu', 'bulk-finish']

var sku = zoneRedundant ? 'Standard_ZRS' : 'Standard_LRS'

var common = {
  minimumTlsVersion: 'TLS1_2'
  supportsHttpsTrafficOnly: true
  allowSharedKeyAccess: false
  allowBlobPublicAccess: false
  defaultToOAuthAuthentication: true
  publicNetworkAccess: networkIsolated && empty(allowedIpRanges) ? 'Disabled' : 'Enabled'
  networkAcls: {
    // Event Grid is one of them, and writes to a queue.
    bypass: 'AzureServices'
    defaultAction: networkIsolated ? 'Deny' : 'Allow'
    // An address alone is written without its /32 here.
    ipRules: map(networkIsolated ? allowedIpRanges : [], range => { value: replace(range, '/32', ''), action: 'Allow' })
  }
}

module hosts 'host-account.bicep' = [
  for app in gpuEnabled ? ['router', 'cpu', 'gpu'] : ['router', 'cpu']: {
    params: {
      location: location
      tags: tags
      name: hostAccountOf(app, token)
      settings: common
      sku: sku
      // The GPU app is an image and has no package.
      package: app == 'gpu' ? null : 'deploy-${app}'
    }
  }
]

resource dataAccount 'Microsoft.Storage/storageAccounts@2023-05-01' = {
  name: nameOf('dataAccount', token)
  location: location
  tags: tags
  kind: 'StorageV2'
  sku: { name: sku }
  properties: common

  resource blobs 'blobServices' = {
    name: 'default'
    properties: {
      deleteRetentionPolicy: { enabled: true, days: softDeleteDays }
      containerDeleteRetentionPolicy: { enabled: true, days: softDeleteDays }
      isVersioningEnabled: blobVersioning
    }

    resource containers 'containers' = [
      for name in ['models', 'keys', 'bulk-in', 'bulk-out', 'dead-letters']: { name: name }
    ]
  }

  resource queueService 'queueServices' = {
    name: 'default'

    // After eight tries the host moves a message to NAME-poison.
    resource names 'queues' = [for name in concat(queues, map(queues, name => '${name}-poison')): { name: name }]
  }
}

// Bulk jobs overwrite their state again and again, so old versions would outgrow what they are versions of.
resource lifecycle 'Microsoft.Storage/storageAccounts/managementPolicies@2023-05-01' = {
  parent: dataAccount
  name: 'default'
  properties: {
    policy: {
      rules: concat(
        [
          {
            name: 'dead-letters'
            enabled: true
            type: 'Lifecycle'
            definition: {
              filters: { blobTypes: ['blockBlob'], prefixMatch: ['dead-letters/'] }
              actions: { baseBlob: { delete: { daysAfterModificationGreaterThan: 30 } } }
            }
          }
        ],
        blobVersioning
          ? [
              {
                name: 'versions'
                enabled: true
                type: 'Lifecycle'
                definition: {
                  filters: { blobTypes: ['blockBlob'] }
                  actions: { version: { delete: { daysAfterCreationGreaterThan: softDeleteDays } } }
                }
              }
            ]
          : []
      )
    }
  }
}
