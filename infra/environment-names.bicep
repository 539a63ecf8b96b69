// Names of an isolated Container Apps environment, for the virtual network alone.
param tags object
param networkId string
@description('Known only once the environment is there, hence a file of its own.')
param domain string
param address string

resource zone 'Microsoft.Network/privateDnsZones@2020-06-01' = {
  name: domain
  location: 'global'
  tags: tags

  resource link 'virtualNetworkLinks' = {
    name: 'network'
    location: 'global'
    properties: { registrationEnabled: false, virtualNetwork: { id: networkId } }
  }

  resource every 'A' = {
    name: '*'
    properties: { ttl: 300, aRecords: [{ ipv4Address: address }] }
  }
}
