// API Management in front of the router: keys, a rate limit for each, and Entra towards the router.
import { identityNameOf } from 'shared.bicep'

param location string
param tags object
param token string
param audience string
@minLength(3)
param publisherEmail string
param routerUrl string
param rateLimitPerMinute int

resource identity 'Microsoft.ManagedIdentity/userAssignedIdentities@2023-01-31' existing = {
  name: identityNameOf('gateway', token)
}

resource gateway 'Microsoft.ApiManagement/service@2024-05-01' = {
  name: 'apim-${token}'
  location: location
  tags: tags
  sku: { name: 'BasicV2', capacity: 1 }
  identity: {
    type: 'UserAssigned'
    userAssignedIdentities: { '${identity.id}': {} }
  }
  properties: { publisherEmail: publisherEmail, publisherName: 'BlitzEmbedding' }

  resource api 'apis' = {
    name: 'embeddings'
    properties: {
      displayName: 'Embeddings and reranking'
      path: ''
      protocols: ['https']
      serviceUrl: routerUrl
      subscriptionRequired: true
      // Where Azure OpenAI's clients put their key; others can be told a header.
      subscriptionKeyParameterNames: { header: 'api-key', query: 'code' }
    }

    // Whatever the router has: its own OpenAPI document describes it.
    resource operations 'operations' = [
      for method in ['GET', 'POST', 'DELETE']: {
        name: toLower(method)
        properties: { displayName: method, method: method, urlTemplate: '/*' }
      }
    ]

    resource policy 'policies' = {
      name: 'policy'
      properties: {
        format: 'rawxml'
        value: replace(
          replace(
            replace(loadTextContent('apim-policy.xml'), '{audience}', audience),
            '{clientId}',
            identity.properties.clientId
          ),
          '{rateLimitPerMinute}',
          string(rateLimitPerMinute)
        )
      }
    }
  }
}

output url string = gateway.properties.gatewayUrl
