// Blobs that arrive in bulk-in call the router. Deployed by a hook after the router's code, which brings
// the function and the key. The key goes from one Azure service to another and is shown to nobody.
param topicName string
param appName string
@description('The blob-triggered function of functions/bulk_triggers.py.')
param functionName string = 'bulk_split'

resource app 'Microsoft.Web/sites@2024-04-01' existing = {
  name: appName
}

resource topic 'Microsoft.EventGrid/systemTopics@2025-02-15' existing = {
  name: topicName
}

var key = listKeys('${app.id}/host/default', app.apiVersion).systemKeys.blobs_extension

resource subscription 'Microsoft.EventGrid/systemTopics/eventSubscriptions@2025-02-15' = {
  parent: topic
  name: 'bulk-in'
  properties: {
    destination: {
      endpointType: 'WebHook'
      properties: {
        endpointUrl: 'https://${app.properties.defaultHostName}/runtime/webhooks/blobs?functionName=Host.Functions.${functionName}&code=${key}'
      }
    }
    filter: {
      includedEventTypes: ['Microsoft.Storage.BlobCreated']
      subjectBeginsWith: '/blobServices/default/containers/bulk-in/blobs/'
      // Only calls that complete a blob: a block blob also reports its beginning on hierarchical accounts.
      advancedFilters: [
        { operatorType: 'StringIn', key: 'data.api', values: ['CopyBlob', 'PutBlob', 'PutBlockList', 'FlushWithClose'] }
      ]
    }
    retryPolicy: { maxDeliveryAttempts: 30, eventTimeToLiveInMinutes: 1440 }
  }
}
