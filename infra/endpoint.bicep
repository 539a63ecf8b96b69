// One private endpoint, and its name in a private DNS zone.
param location string
param tags object
param name string
@description('Resource that the endpoint leads to.')
param targetId string
@description('Which of its services: blob, queue, table or sites.')
param kind string
param subnetId string
param zoneId string

resource endpoint 'Microsoft.Network/privateEndpoints@2024-05-01' = {
  name: name
  location: location
  tags: tags
  properties: {
    subnet: { id: subnetId }
    privateLinkServiceConnections: [
      { name: kind, properties: { privateLinkServiceId: targetId, groupIds: [kind] } }
    ]
  }

  resource zones 'privateDnsZoneGroups' = {
    name: 'default'
    properties: { privateDnsZoneConfigs: [{ name: kind, properties: { privateDnsZoneId: zoneId } }] }
  }
}
