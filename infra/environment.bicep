// Where containers run: an environment of Container Apps, with a profile for each machine that is asked for.
import { nameOf } from 'shared.bicep'

param location string
param tags object
param token string
param workspaceId string
@description('The GPU\'s profile; null: no container runs on one.')
param gpuProfile ('Consumption-GPU-NC8as-T4' | 'Consumption-GPU-NC24-A100')?
@description('Machines of 4 vCPU and 16 GiB at most, as many as the CPU app may have replicas; 0: no such profile.')
param cpuMachines int
@description('Only with a network: Container Apps spreads no other environment over zones.')
param zoneRedundant bool
@description('Whether the environment is in the virtual network and has no public address.')
param networkIsolated bool

resource network 'Microsoft.Network/virtualNetworks@2024-05-01' existing = if (networkIsolated) {
  name: nameOf('network', token)

  resource subnet 'subnets' existing = { name: 'gpu' }
}

resource managedEnvironment 'Microsoft.App/managedEnvironments@2026-03-02-preview' = {
  name: nameOf('environment', token)
  location: location
  tags: tags
  properties: {
    // A Log Analytics destination would need the workspace's key.
    appLogsConfiguration: { destination: 'azure-monitor' }
    zoneRedundant: zoneRedundant
    vnetConfiguration: networkIsolated ? { internal: true, infrastructureSubnetId: network::subnet.id } : null
    workloadProfiles: concat(
      [{ name: 'Consumption', workloadProfileType: 'Consumption' }],
      gpuProfile == null ? [] : [{ name: 'gpu', workloadProfileType: gpuProfile }],
      // The consumption profile ends at 8 GiB.
      cpuMachines == 0
        ? []
        : [{ name: 'cpu', workloadProfileType: 'D4', minimumCount: 0, maximumCount: cpuMachines }]
    )
  }
}

resource logs 'Microsoft.Insights/diagnosticSettings@2021-05-01-preview' = {
  name: 'logs'
  scope: managedEnvironment
  properties: {
    workspaceId: workspaceId
    logs: [
      { category: 'ContainerAppConsoleLogs', enabled: true }
      { category: 'ContainerAppSystemLogs', enabled: true }
    ]
  }
}

module names 'environment-names.bicep' = if (networkIsolated) {
  params: {
    tags: tags
    networkId: network.id
    domain: managedEnvironment.properties.defaultDomain
    address: managedEnvironment.properties.staticIp
  }
}
