// Mail to the resource group's owners, and to who carries the pager, when its month gets expensive. It warns; it
// stops nothing.
import { nameOf } from 'shared.bicep'

param token string
param amount int
@minLength(10)
param startDate string
@description('Whether there is anybody who carries the pager.')
param somebodyIsTold bool

resource receivers 'Microsoft.Insights/actionGroups@2023-01-01' existing = if (somebodyIsTold) {
  name: nameOf('pager', token)
}

var groups = somebodyIsTold ? [receivers.id] : []

resource budget 'Microsoft.Consumption/budgets@2023-11-01' = {
  name: 'monthly'
  properties: {
    category: 'Cost'
    amount: amount
    timeGrain: 'Monthly'
    timePeriod: { startDate: startDate }
    notifications: {
      half: {
        enabled: true
        operator: 'GreaterThan'
        threshold: 50
        thresholdType: 'Actual'
        contactEmails: []
        contactRoles: ['Owner']
        contactGroups: groups
      }
      most: {
        enabled: true
        operator: 'GreaterThan'
        threshold: 90
        thresholdType: 'Actual'
        contactEmails: []
        contactRoles: ['Owner']
        contactGroups: groups
      }
      forecast: {
        enabled: true
        operator: 'GreaterThan'
        threshold: 100
        thresholdType: 'Forecasted'
        contactEmails: []
        contactRoles: ['Owner']
        contactGroups: groups
      }
    }
  }
}
