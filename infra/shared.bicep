// Names and settings that several files share. Declares no resource. That names follow from the token alone
// lets every file refer to what another one makes, and lets `bicep snapshot` tell them before a deployment.

@export()
func nameOf(
  thing 'dataAccount' | 'applicationInsights' | 'registry' | 'network' | 'topic' | 'environment',
  token string
) string =>
  {
    dataAccount: 'stdata${token}'
    applicationInsights: 'appi-${token}'
    registry: 'cr${token}'
    network: 'vnet-${token}'
    topic: 'evgt-${token}'
    environment: 'cae-${token}'
  }[thing]

@export()
@description('Name of the identity of an app, or of API Management (gateway).')
func identityNameOf(who 'router' | 'cpu' | 'gpu' | 'gateway', token string) string => 'id-${who}-${token}'

@export()
@description('Name of the storage account of an app\'s own host. Of the 24 characters that Azure allows the token takes 13.')
func hostAccountOf(app 'router' | 'cpu' | 'gpu', token string) string => 'st${app}${token}'

@export()
@description('URL of one service of a storage account, without a slash at its end.')
func storageUrlOf(account string, service 'blob' | 'queue' | 'table') string =>
  'https://${account}.${service}.${environment().suffixes.storage}'

@export()
@description('What every app must know: who it is, its host\'s account, models, bulk files, telemetry. No key among it.')
func sharedSettings(
  app 'router' | 'cpu' | 'gpu',
  token string,
  clientId string,
  applicationInsightsConnectionString string
) object => {
  // glibc keeps what was freed in as many arenas as eight a core. Read when a process starts: not by one that Flex
  // Consumption had started before it knew the app.
  MALLOC_ARENA_MAX: '2'
  // DefaultAzureCredential picks the identity by this name.
  AZURE_CLIENT_ID: clientId
  AzureWebJobsStorage__credential: 'managedidentity'
  AzureWebJobsStorage__clientId: clientId
  AzureWebJobsStorage__blobServiceUri: storageUrlOf(hostAccountOf(app, token), 'blob')
  AzureWebJobsStorage__tableServiceUri: storageUrlOf(hostAccountOf(app, token), 'table')
  // The connection that queue triggers name.
  BulkStorage__credential: 'managedidentity'
  BulkStorage__clientId: clientId
  BulkStorage__queueServiceUri: storageUrlOf(nameOf('dataAccount', token), 'queue')
  APPLICATIONINSIGHTS_CONNECTION_STRING: applicationInsightsConnectionString
  APPLICATIONINSIGHTS_AUTHENTICATION_STRING: 'ClientId=${clientId};Authorization=AAD'
  BLITZ_MODEL_STORE: '${storageUrlOf(nameOf('dataAccount', token), 'blob')}/models'
  BLITZ_STORAGE: storageUrlOf(nameOf('dataAccount', token), 'blob')
}
