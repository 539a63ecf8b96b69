// One user-assigned identity for each that acts: it exists before its app, so that its roles do too.
import { identityNameOf } from 'shared.bicep'

param location string
param tags object
param token string
param gpuEnabled bool
param apiManagementEnabled bool

var owners = concat(['router', 'cpu'], gpuEnabled ? ['gpu'] : [], apiManagementEnabled ? ['gateway'] : [])

resource identities 'Microsoft.ManagedIdentity/userAssignedIdentities@2023-01-31' = [
  for owner in owners: {
    name: identityNameOf(owner, token)
    location: location
    tags: tags
  }
]
