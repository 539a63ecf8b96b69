// Where the containers' images lie. No admin user: azd pushes and the app pulls with their identities.
import { nameOf } from 'shared.bicep'

param location string
param tags object
param token string

resource registry 'Microsoft.ContainerRegistry/registries@2023-07-01' = {
  name: nameOf('registry', token)
  location: location
  tags: tags
  sku: { name: 'Basic' }
  properties: { adminUserEnabled: false }
}

output server string = registry.properties.loginServer
