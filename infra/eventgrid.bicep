// New blobs of bulk-in become messages of bulk-events, which the CPU app reads. Delivered with an identity:
// no webhook, no key, and nothing is lost while the app is being deployed. After its role, see topic.bicep.
import { nameOf } from 'shared.bicep'

param token string

resource dataAccount 'Microsoft.Storage/storageAccounts@2023-05-01' existing = {
  name: nameOf('dataAccount', token)
}

resource topic 'Microsoft.EventGrid/systemTopics@2025-02-15' existing = {
  name: nameOf('topic', token)

  resource subscription 'eventSubscriptions' = {
    name: 'bulk-in'
    properties: {
      deliveryWithResourceIdentity: {
        identity: { type: 'SystemAssigned' }
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
      // What a day of tries did not deliver; infra/alerts.bicep tells of it.
      deadLetterWithResourceIdentity: {
        identity: { type: 'SystemAssigned' }
        deadLetterDestination: {
          endpointType: 'StorageBlob'
          properties: { resourceId: dataAccount.id, blobContainerName: 'dead-letters' }
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
