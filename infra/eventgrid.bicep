// Where the bulk account's blob events appear. The subscription is made after the router is deployed.
import { nameOf } from 'shared.bicep'

param location string
param tags object
param token string

resource dataAccount 'Microsoft.Storage/storageAccounts@2023-05-01' existing = {
  name: nameOf('dataAccount', token)
}

resource topic 'Microsoft.EventGrid/systemTopics@2025-02-15' = {
  name: 'evgt-${token}'
  location: location
  tags: tags
  properties: { source: dataAccount.id, topicType: 'Microsoft.Storage.StorageAccounts' }
}

output topicName string = topic.name
