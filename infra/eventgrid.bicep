// New blobs of bulk-in become messages of bulk-events, which the CPU app reads. Delivered with an identity:
// no webhook, no key, and nothing is lost while the app is being deployed.
import { identityNameOf, nameOf } from 'shared.bicep'

param location string
param tags object
param token string

resource dataAccount 'Microsoft.Storage/storageAccounts@2023-05-01' existing = {
  name: nameOf('dataAccount', token)
}

resource identity 'Microsoft.ManagedIdentity/userAssignedIdentities@2023-01-31' existing = {
  name: identityNameOf('events', token)
}

resource topic 'Microsoft.EventGrid/systemTopics@2025-02-15' = {
  name: 'evgt-${token}'
  location: location
  tags: tags
  identity: {
    type: 'UserAssigned'
    userAssignedIdentities: { '${identity.id}': {} }
  }
  properties: { source: dataAccount.id, topicType: 'Microsoft.Storage.StorageAccounts' }

  resource subscription 'eventSubscriptions' = {
    name: 'bulk-in'
    properties: {
      deliveryWithResourceIdentity: {
        identity: { type: 'UserAssigned', userAssignedIdentity: identity.id }
        destination: {
          endpointType: 'StorageQueue'
          properties: {
            resourceId: dataAccount.id
            queueName: 'bulk-events'
            // Never expires, like every other message of bulk embedding.
            queueMessageTimeToLiveInSeconds: -1
          }
        }
      }
      filter: {
        includedEventTypes: ['Microsoft.Storage.BlobCreated']
        subjectBeginsWith: '/blobServices/default/containers/bulk-in/blobs/'
        // The calls that complete a blob.
        advancedFilters: [
          {
            operatorType: 'StringIn'
            key: 'data.api'
            values: ['CopyBlob', 'PutBlob', 'PutBlockList', 'FlushWithClose']
          }
        ]
      }
      retryPolicy: { maxDeliveryAttempts: 30, eventTimeToLiveInMinutes: 1440 }
    }
  }
}
