// Names and settings that several files share. Declares no resource. That names follow from the token alone
// lets every file refer to what another one makes, and lets `bicep snapshot` tell them before a deployment.

@export()
func nameOf(thing 'hostAccount' | 'dataAccount' | 'applicationInsights' | 'registry' | 'network', token string) string =>
  {
    hostAccount: 'sthost${token}'
    dataAccount: 'stdata${token}'
    applicationInsights: 'appi-${token}'
    registry: 'cr${token}'
    network: 'vnet-${token}'
  }[thing]

@export()
@description('Name of the identity of an app, of API Management (gateway) or of Event Grid (events).')
func identityNameOf(who 'router' | 'cpu' | 'gpu' | 'gateway' | 'events', token string) string => 'id-${who}-${token}'

@export()
@description('URL of one service of a storage account, without a slash at its end.')
func storageUrlOf(account 'hostAccount' | 'dataAccount', service 'blob' | 'queue' | 'table', token string) string =>
  'https://${nameOf(account, token)}.${service}.${environment().suffixes.storage}'

@export()
@description('What every app must know: who it is, its host\'s account, models, bulk files, telemetry. No key among it.')
func sharedSettings(token string, clientId string, applicationInsightsConnectionString string) object => {
  // DefaultAzureCredential picks the identity by this name.
  AZURE_CLIENT_ID: clientId
  AzureWebJobsStorage__credential: 'managedidentity'
  AzureWebJobsStorage__clientId: clientId
  AzureWebJobsStorage__blobServiceUri: storageUrlOf('hostAccount', 'blob', token)
  AzureWebJobsStorage__tableServiceUri: storageUrlOf('hostAccount', 'table', token)
  // The connection that queue triggers name.
  BulkStorage__credential: 'managedidentity'
  BulkStorage__clientId: clientId
  BulkStorage__queueServiceUri: storageUrlOf('dataAccount', 'queue', token)
  APPLICATIONINSIGHTS_CONNECTION_STRING: applicationInsightsConnectionString
  APPLICATIONINSIGHTS_AUTHENTICATION_STRING: 'ClientId=${clientId};Authorization=AAD'
  BLITZ_MODEL_STORE: '${storageUrlOf('dataAccount', 'blob', token)}/models'
  BLITZ_STORAGE: storageUrlOf('dataAccount', 'blob', token)
}
