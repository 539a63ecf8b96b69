// API Management has the keys, and the router takes calls from nobody else.
using '../main.bicep'

param environmentName = 'review'
param location = 'swedencentral'
param deployerPrincipalId = '00000000-0000-0000-0000-00000000de91'
param backendAppId = '00000000-0000-0000-0000-0000000bac0d'
param warmModels = 'all-MiniLM-L6-v2'
param apiManagementEnabled = true
param apiManagementEmail = 'owner@example.org'
param alertEmails = ['oncall@example.org']
