// Where the containers' images lie. No admin user: azd pushes and the app pulls with their identities.
import { nameOf } from 'shared.bicep'

param location string
param tags object
param token string
@description('Days after which an image that newer ones replaced is deleted; 0: never.')
@minValue(0)
param keepDays int

resource registry 'Microsoft.ContainerRegistry/registries@2023-07-01' = {
  name: nameOf('registry', token)
  location: location
  tags: tags
  sku: { name: 'Basic' }
  properties: { adminUserEnabled: false }
}

// A registry of this tier keeps whatever was pushed. The five newest of what is old enough stay, so that the one that
// the app starts from is never among what goes, and neither are those to go back to.
var purge = '''
version: v1.1.0
steps:
  - cmd: acr purge --filter '.*:.*' --ago {days}d --keep 5 --untagged
    disableWorkingDirectoryOverride: true
    timeout: 3600
'''

resource task 'Microsoft.ContainerRegistry/registries/tasks@2019-04-01' = if (keepDays > 0) {
  parent: registry
  name: 'purge'
  location: location
  tags: tags
  properties: {
    status: 'Enabled'
    platform: { os: 'Linux', architecture: 'amd64' }
    agentConfiguration: { cpu: 2 }
    timeout: 3600
    step: { type: 'EncodedTask', encodedTaskContent: base64(replace(purge, '{days}', string(keepDays))) }
    trigger: { timerTriggers: [{ name: 'weekly', schedule: '0 3 * * 0', status: 'Enabled' }] }
  }
}

output server string = registry.properties.loginServer
