// Who is told, and of what: an action group, and rules over what the apps and the storage account send.
// The rules are data, dashboards/azure-alerts.json, so that Kusto's parser reads their queries in the tests.
import { nameOf } from 'shared.bicep'

param location string
param tags object
param token string
param workspaceId string
param emails string[]
@description('Empty: none.')
param webhook string
@minValue(1)
param p95Seconds int
param gpuEnabled bool
param apiManagementEnabled bool

resource applicationInsights 'Microsoft.Insights/components@2020-02-02' existing = {
  name: nameOf('applicationInsights', token)
}

resource topic 'Microsoft.EventGrid/systemTopics@2025-02-15' existing = {
  name: nameOf('topic', token)
}

resource receivers 'Microsoft.Insights/actionGroups@2023-01-01' = {
  name: nameOf('pager', token)
  location: 'global'
  tags: tags
  properties: {
    enabled: true
    // Begins each text message; Azure allows 12 characters.
    groupShortName: 'blitz'
    emailReceivers: [
      for (address, index) in emails: {
        name: 'mail-${index}'
        emailAddress: address
        useCommonAlertSchema: true
      }
    ]
    webhookReceivers: empty(webhook) ? [] : [{ name: 'webhook', serviceUri: webhook, useCommonAlertSchema: true }]
  }
}

// A rule for what cannot be there would be billed for nothing.
var rules = filter(
  loadJsonContent('dashboards/azure-alerts.json'),
  rule => (gpuEnabled || !startsWith(rule.name, 'gpu-')) && (apiManagementEnabled || !startsWith(rule.name, 'gateway-'))
)

resource queries 'Microsoft.Insights/scheduledQueryRules@2023-12-01' = [
  for rule in rules: {
    name: 'blitz-${rule.name}'
    location: location
    tags: tags
    kind: 'LogAlert'
    properties: {
      displayName: 'BlitzEmbedding: ${rule.name}'
      description: rule.summary
      severity: rule.severity
      enabled: true
      evaluationFrequency: rule.every
      windowSize: rule.window
      scopes: [rule.asks == 'workspace' ? workspaceId : applicationInsights.id]
      // Tables that nothing has written to yet are not known.
      skipQueryValidation: true
      autoMitigate: true
      criteria: {
        allOf: [
          {
            query: replace(rule.query, '{p95Seconds}', string(p95Seconds))
            // A query tells of faults only: each row is one.
            timeAggregation: 'Count'
            operator: 'GreaterThan'
            threshold: 0
            failingPeriods: { numberOfEvaluationPeriods: 1, minFailingPeriodsToAlert: 1 }
          }
        ]
      }
      actions: { actionGroups: [receivers.id] }
    }
  }
]

// From the platform's metrics, which no daily cap ends.
resource deadLetters 'Microsoft.Insights/metricAlerts@2018-03-01' = {
  name: 'blitz-dead-letters'
  location: 'global'
  tags: tags
  properties: {
    description: 'Event Grid gave up telling of new blobs in bulk-in. The timer finds them later; docs/restore.md.'
    severity: 2
    enabled: true
    scopes: [topic.id]
    evaluationFrequency: 'PT15M'
    windowSize: 'PT1H'
    criteria: {
      'odata.type': 'Microsoft.Azure.Monitor.SingleResourceMultipleMetricCriteria'
      allOf: [
        {
          name: 'dead-letters'
          criterionType: 'StaticThresholdCriterion'
          metricName: 'DeadLetteredCount'
          timeAggregation: 'Total'
          operator: 'GreaterThan'
          threshold: 0
        }
      ]
    }
    actions: [{ actionGroupId: receivers.id }]
  }
}
