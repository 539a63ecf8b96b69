// Names and settings that several files share. Declares no resource. Names depend on the token alone, so every file can
// refer to what another one makes, and `bicep snapshot` can list them before a deployment.

@export()
func nameOf(
  thing 'dataAccount' | 'applicationInsights' | 'registry' | 'network' | 'topic' | 'grafana' | 'pager' | 'environment',
  token string
) string =>
  {
    dataAccount: 'stdata${token}'
    applicationInsights: 'appi-${token}'
    registry: 'cr${token}'
    network: 'vnet-${token}'
    topic: 'evgt-${token}'
    grafana: 'amg-${token}'
    pager: 'pager-${token}'
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
  // glibc keeps freed memory in up to eight arenas a core. It reads this when a process starts, so a process that
  // Flex Consumption started before it knew the app does not have it.
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

@export()
@description('Whether to ask for zones. Stops what Azure would refuse only in the middle of a deployment.')
func zonesOf(wanted bool, hasContainers bool, networkIsolated bool, apiManagementEnabled bool) bool =>
  !wanted
    ? false
    : apiManagementEnabled
        ? fail('ZONE_REDUNDANT: API Management of the tier BasicV2 is in one zone; set API_MANAGEMENT_ENABLED=false')
        : hasContainers && !networkIsolated
            ? fail('ZONE_REDUNDANT: containers are so only in a network; set NETWORK_ISOLATED=true, or GPU_ENABLED=false and CPU_HOST=flex')
            : true

@export()
@description('Whether the CPU app is a container. Flex Consumption builds requirements.txt alone, which has no OpenVINO.')
func isContainer(cpuHost string, openvino bool) bool =>
  openvino && cpuHost != 'container'
    ? fail('CPU_OPENVINO: only a container has OpenVINO; set CPU_HOST=container, or CPU_OPENVINO=false')
    : cpuHost == 'container'

@export()
@description('Seconds between two availability tests of one place.')
func testSecondsOf(wanted int) int =>
  contains([0, 300, 600, 900], wanted) ? wanted : fail('set AVAILABILITY_TEST_SECONDS to 0, 300, 600 or 900')
