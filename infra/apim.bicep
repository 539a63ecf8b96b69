// API Management in front of the router: keys, limits for each, the backend to try first, and Entra towards the
// router.
import { identityNameOf } from 'shared.bicep'

param location string
param tags object
param token string
param audience string
@minLength(3)
param publisherEmail string
param routerUrl string
param rateLimitPerMinute int
param tokenLimitPerMinute int
@description('Texts from which a request goes to the GPU first; 0: the router decides.')
param gpuTexts int
param gpuEnabled bool

resource identity 'Microsoft.ManagedIdentity/userAssignedIdentities@2023-01-31' existing = {
  name: identityNameOf('gateway', token)
}

var policyText = reduce(
  items({
    audience: audience
    rateLimitPerMinute: string(rateLimitPerMinute)
    tokenLimitPerMinute: string(tokenLimitPerMinute)
    gpuTexts: string(gpuEnabled ? gpuTexts : 0)
  }),
  loadTextContent('apim-policy.xml'),
  (text, each) => replace(text, '{${each.key}}', each.value)
)

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
        format: 'xml'
        value: replace(policyText, '{clientId}', identity.properties.clientId)
      }
    }
  }
}

// A key of one of these goes to its backend first; keys of the API itself go where the router's policy says.
var backends = gpuEnabled ? ['cpu', 'gpu'] : ['cpu']

resource products 'Microsoft.ApiManagement/service/products@2024-05-01' = [
  for backend in backends: {
    parent: gateway
    name: backend
    properties: {
      displayName: 'Embeddings, ${toUpper(backend)} first'
      subscriptionRequired: true
      approvalRequired: true
      state: 'published'
    }
  }
]

resource productApis 'Microsoft.ApiManagement/service/products/apis@2024-05-01' = [
  for (backend, index) in backends: {
    parent: products[index]
    name: gateway::api.name
  }
]

resource productPolicies 'Microsoft.ApiManagement/service/products/policies@2024-05-01' = [
  for (backend, index) in backends: {
    parent: products[index]
    name: 'policy'
    properties: {
      format: 'xml'
      value: replace(loadTextContent('apim-product-policy.xml'), '{backend}', backend)
    }
  }
]

output url string = gateway.properties.gatewayUrl
