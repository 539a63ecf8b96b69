// Events of the data account. It has an identity of its own: Event Grid can deliver through a storage
// firewall with no other.
import { nameOf } from 'shared.bicep'

param location string
param tags object
param token string

resource dataAccount 'Microsoft.Storage/storageAccounts@2023-05-01' existing = {
  name: nameOf('dataAccount', token)
}

resource topic 'Microsoft.EventGrid/systemTopics@2025-02-15' = {
  name: nameOf('topic', token)
  location: location
  tags: tags
  identity: { type: 'SystemAssigned' }
  properties: { source: dataAccount.id, topicType: 'Microsoft.Storage.StorageAccounts' }
}
