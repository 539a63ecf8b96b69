// The storage account of one app: its host's blobs and tables, and the package that azd deploys.
param location string
param tags object
param name string
@description('What all accounts have in common.')
param settings object
@allowed(['Standard_LRS', 'Standard_ZRS'])
param sku string
@description('Container of the package; null: there is none.')
param package string?

resource account 'Microsoft.Storage/storageAccounts@2023-05-01' = {
  name: name
  location: location
  tags: tags
  kind: 'StorageV2'
  sku: { name: sku }
  properties: settings

  resource blobs 'blobServices' = {
    name: 'default'

    resource container 'containers' = if (package != null) { name: package! }
  }
}
