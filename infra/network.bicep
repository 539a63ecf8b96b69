// The isolated variant: a virtual network with a subnet an app, and private endpoints for storage.
import { hostAccountOf, nameOf } from 'shared.bicep'

param location string
param tags object
param token string
param gpuEnabled bool

var apps = gpuEnabled ? ['router', 'cpu', 'gpu'] : ['router', 'cpu']
// The hosts use no queue of their own accounts: nobody has a right to one, and no setting names any.
var services = concat(
  [
    { account: nameOf('dataAccount', token), kind: 'blob' }
    { account: nameOf('dataAccount', token), kind: 'queue' }
  ],
  map(apps, app => { account: hostAccountOf(app, token), kind: 'blob' }),
  map(apps, app => { account: hostAccountOf(app, token), kind: 'table' })
)
var kinds = ['blob', 'queue', 'table']

// Flex Consumption and Container Apps environments are both run by Microsoft.App.
var delegated = [{ name: 'apps', properties: { serviceName: 'Microsoft.App/environments' } }]

resource network 'Microsoft.Network/virtualNetworks@2024-05-01' = {
  name: nameOf('network', token)
  location: location
  tags: tags
  properties: {
    addressSpace: { addressPrefixes: ['10.10.0.0/16'] }
    subnets: [
      { name: 'router', properties: { addressPrefix: '10.10.0.0/24', delegations: delegated } }
      { name: 'cpu', properties: { addressPrefix: '10.10.1.0/24', delegations: delegated } }
      { name: 'gpu', properties: { addressPrefix: '10.10.2.0/24', delegations: delegated } }
      { name: 'endpoints', properties: { addressPrefix: '10.10.3.0/24' } }
    ]
  }

  resource endpoints 'subnets' existing = { name: 'endpoints' }
}

resource accounts 'Microsoft.Storage/storageAccounts@2023-05-01' existing = [
  for service in services: {
    name: service.account
  }
]

resource zones 'Microsoft.Network/privateDnsZones@2020-06-01' = [
  for kind in kinds: {
    name: 'privatelink.${kind}.${environment().suffixes.storage}'
    location: 'global'
    tags: tags
  }
]

resource links 'Microsoft.Network/privateDnsZones/virtualNetworkLinks@2020-06-01' = [
  for (kind, index) in kinds: {
    parent: zones[index]
    name: 'network'
    location: 'global'
    properties: { registrationEnabled: false, virtualNetwork: { id: network.id } }
  }
]

resource sitesZone 'Microsoft.Network/privateDnsZones@2020-06-01' = {
  name: 'privatelink.azurewebsites.net'
  location: 'global'
  tags: tags

  resource link 'virtualNetworkLinks' = {
    name: 'network'
    location: 'global'
    properties: { registrationEnabled: false, virtualNetwork: { id: network.id } }
  }
}

module endpoints 'endpoint.bicep' = [
  for (service, index) in services: {
    params: {
      location: location
      tags: tags
      name: 'pe-${service.account}-${service.kind}'
      targetId: accounts[index].id
      kind: service.kind
      subnetId: network::endpoints.id
      zoneId: zones[indexOf(kinds, service.kind)].id
    }
  }
]
