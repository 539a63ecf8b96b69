// Asks the service from outside whether it is there, and tells the action group if it is not.
import { nameOf } from 'shared.bicep'

param location string
param tags object
param token string
param url string
@description('What the address answers to a caller without a key.')
param expectedStatus int
@description('Seconds between two questions of one place: 300, 600 or 900.')
param everySeconds int

// Five, because Azure advises it: one place whose network fails is no outage.
var places = ['emea-nl-ams-azr', 'emea-gb-db3-azr', 'us-va-ash-azr', 'us-ca-sjc-azr', 'apac-sg-sin-azr']

resource applicationInsights 'Microsoft.Insights/components@2020-02-02' existing = {
  name: nameOf('applicationInsights', token)
}

resource receivers 'Microsoft.Insights/actionGroups@2023-01-01' existing = {
  name: nameOf('pager', token)
}

resource test 'Microsoft.Insights/webtests@2022-06-15' = {
  name: 'health-${token}'
  location: location
  // The portal shows the test with the component that this names.
  tags: union(tags, { 'hidden-link:${applicationInsights.id}': 'Resource' })
  kind: 'standard'
  properties: {
    Name: 'health-${token}'
    SyntheticMonitorId: 'health-${token}'
    Enabled: true
    Kind: 'standard'
    Frequency: everySeconds
    // The longest there is: a router that was scaled to zero has to start.
    Timeout: 120
    RetryEnabled: true
    Locations: [for place in places: { Id: place }]
    Request: { RequestUrl: '${url}/health', HttpVerb: 'GET', ParseDependentRequests: false }
    ValidationRules: {
      ExpectedHttpStatusCode: expectedStatus
      SSLCheck: true
      SSLCertRemainingLifetimeCheck: 14
    }
  }
}

resource alert 'Microsoft.Insights/metricAlerts@2018-03-01' = {
  name: 'blitz-availability'
  location: 'global'
  tags: tags
  properties: {
    description: 'The service does not answer two places of the world, or its certificate ends within 14 days.'
    severity: 1
    enabled: true
    scopes: [test.id, applicationInsights.id]
    evaluationFrequency: 'PT5M'
    // Each place asks at least once in it.
    windowSize: 'PT30M'
    criteria: {
      'odata.type': 'Microsoft.Azure.Monitor.WebtestLocationAvailabilityCriteria'
      webTestId: test.id
      componentId: applicationInsights.id
      failedLocationCount: 2
    }
    actions: [{ actionGroupId: receivers.id }]
  }
}
