// Composes the service: a resource group, what the apps share, and the three apps. Declares nothing itself.
import { isContainer, nameOf, storageUrlOf, testSecondsOf, zonesOf } from 'shared.bicep'

targetScope = 'subscription'

@description('Name of the azd environment; every resource carries it as a tag.')
@minLength(1)
@maxLength(32)
param environmentName string

@description('Region. With the GPU on, one that has the GPU profile: Sweden Central, West US 3 and others.')
@minLength(1)
param location string

@description('Object id of who deploys and publishes models; empty: nobody gets a role.')
param deployerPrincipalId string = ''

@allowed(['User', 'Group', 'ServicePrincipal'])
param deployerPrincipalType string = 'User'

@description('Client id of the Entra application that stands for the backends; the preprovision hook makes it.')
param backendAppId string

@description('Comma-separated sha256 (hex) of the keys callers may use. Not needed with API Management, which has keys of its own.')
param apiKeyHashes string = ''

@description('Whether there is a GPU backend. Without it everything runs on the CPU.')
param gpuEnabled bool = true

@description('Serverless GPU to run on.')
@allowed(['Consumption-GPU-NC8as-T4', 'Consumption-GPU-NC24-A100'])
param gpuProfile string = 'Consumption-GPU-NC8as-T4'

@description('The GPU app\'s image. Before the first deployment it is a stand-in; azd then keeps the name of its own.')
param gpuImage string = 'mcr.microsoft.com/azure-functions/python:4-python3.11'

@description('Whether the image holds the models (see infra/gpu/Dockerfile); otherwise they come from the store.')
param gpuModelsInImage bool = false

@description('Where the CPU app runs: Functions on Flex Consumption, or a container of 4 vCPU and 16 GiB.')
@allowed(['flex', 'container'])
param cpuHost string = 'flex'

@description('Whether the CPU app\'s image holds OpenVINO, a second engine; only where it is a container. See docs/models.md.')
param cpuOpenvino bool = false

@description('The CPU app\'s image, where it is a container; as gpuImage.')
param cpuImage string = 'mcr.microsoft.com/azure-functions/python:4-python3.11'

@minValue(1)
param gpuMaxReplicas int = 10

@description('Seconds without a request after which the GPU app is scaled to zero.')
@minValue(30)
param gpuCooldownSeconds int = 300

@description('HTTP requests a GPU replica takes at a time: infra/hooks/scale sets the rule. 0: the platform\'s own rules.')
@minValue(0)
param gpuHttpConcurrency int = 10

@description('GPU seconds that may be paid to spare one request the cold start, by waking the GPU before it is wanted; 0: never.')
@minValue(0)
param gpuAheadSeconds int = 0

@description('Instances of each app that never go away; 0: everything scales to zero.')
@minValue(0)
param alwaysReadyRouter int = 0

@minValue(0)
param alwaysReadyCpu int = 0

@description('Instances of the router at most, for HTTP and for its timer each. Some have met a platform that takes no less than 40.')
@minValue(1)
@maxValue(1000)
param maxInstancesRouter int = 40

@description('As above, for the CPU app: for HTTP, and for each of its queues.')
@minValue(1)
@maxValue(1000)
param maxInstancesCpu int = 40

@description('HTTP requests that one instance takes at a time. The platform\'s default for Python is 1.')
@minValue(1)
@maxValue(1000)
param routerHttpConcurrency int = 32

@description('As above, for the CPU app: enough for its batches to fill, few enough to scale out before requests queue.')
@minValue(1)
@maxValue(1000)
param cpuHttpConcurrency int = 8

@description('Virtual network, private endpoints for storage and CPU app, and a GPU environment without public address.')
param networkIsolated bool = false

@description('With networkIsolated: addresses (CIDR) that reach the storage accounts from outside, to publish models.')
param allowedIpRanges string[] = []

@description('API Management in front of the router: keys, a rate limit for each caller, and a backend to try first.')
param apiManagementEnabled bool = false

@description('Address that API Management sends its notices to; needed with apiManagementEnabled.')
param apiManagementEmail string = ''

@description('With apiManagementEnabled: requests a minute for each key.')
@minValue(1)
param rateLimitPerMinute int = 600

@description('With apiManagementEnabled: tokens a minute for each key, counted once a request is answered.')
@minValue(1)
param tokenLimitPerMinute int = 1000000

@description('With apiManagementEnabled: texts from which the gateway names the GPU first; 0: the router decides.')
@minValue(0)
param gatewayGpuTexts int = 10

@description('Comma-separated models that the backends load at startup; empty: none.')
param warmModels string = ''

@description('The model of requests that name none; empty: the only one there is.')
param defaultModel string = ''

@description('Monthly budget of the resource group in the subscription\'s currency; its owners get mail. 0: no budget.')
@minValue(0)
param budgetAmount int = 0

@description('First day of the month in which the budget began, as yyyy-MM-dd; needed with budgetAmount.')
param budgetStart string = ''

@description('Addresses that get a mail when something is wrong. With no address and no webhook no alert is deployed.')
param alertEmails string[] = []

@description('Address (https) that gets alerts in Azure\'s common schema: an on-call service, a chat. Empty: none.')
param alertWebhook string = ''

@description('With a receiver: seconds within which 95 % of the answers should be there.')
@minValue(1)
param alertP95Seconds int = 10

@description('With a receiver: seconds between two questions for /health from each of five places: 300, 600, 900; 0: nobody asks.')
param availabilityTestSeconds int = 900

@description('Whether there is an Azure Managed Grafana with the dashboards.')
param grafanaEnabled bool = false

@description('Spread apps and storage over the region\'s zones. To be chosen before the first deployment.')
param zoneRedundant bool = false

@description('Days in which a blob, a version or a container that was deleted or overwritten can be brought back.')
@minValue(1)
@maxValue(365)
param softDeleteDays int = 7

@description('Keep every version of a blob for softDeleteDays.')
param blobVersioning bool = false

@description('Days after which an image that newer ones replaced is deleted; 0: never.')
@minValue(0)
param registryKeepDays int = 30

@description('What infra/hooks/publish publishes after a deployment, a name of model_build/models.toml; none: nothing.')
param sampleModel string = 'all-MiniLM-L6-v2'

var cpuIsContainer = isContainer(cpuHost, cpuOpenvino)
var hasContainers = gpuEnabled || cpuIsContainer
// What the blog has; Flex scales further, and by itself.
var cpuMaxReplicas = 10
var tags = { 'azd-env-name': environmentName }
var token = toLower(uniqueString(subscription().id, environmentName, location))
var somebodyIsTold = !empty(alertEmails) || !empty(alertWebhook)
var zones = zonesOf(zoneRedundant, hasContainers, networkIsolated, apiManagementEnabled)
var testSeconds = testSecondsOf(availabilityTestSeconds)
var routerHasKeys = apiManagementEnabled || !empty(apiKeyHashes)
// Wrong parameters stop the deployment before it makes anything: an open router would cost somebody else's money.
var audience = empty(backendAppId)
  ? fail('set BACKEND_APP_ID; infra/hooks/prepare makes it')
  : routerHasKeys
      ? 'api://${backendAppId}'
      : fail('set API_KEY_HASHES; python -m functions.keys makes a key and its hash')

resource group 'Microsoft.Resources/resourceGroups@2024-03-01' = {
  name: 'rg-${environmentName}'
  location: location
  tags: tags
}

// One identity an app, none of which can do what another one does.
module identities 'identities.bicep' = {
  scope: group
  params: {
    location: location
    tags: tags
    token: token
    gpuEnabled: gpuEnabled
    apiManagementEnabled: apiManagementEnabled
  }
}

// An account for each app's host, and one with models, the keys document, bulk files and queues.
module storage 'storage.bicep' = {
  scope: group
  params: {
    location: location
    tags: tags
    token: token
    gpuEnabled: gpuEnabled
    networkIsolated: networkIsolated
    allowedIpRanges: allowedIpRanges
    zoneRedundant: zones
    softDeleteDays: softDeleteDays
    blobVersioning: blobVersioning
  }
}

// What tells of new blobs, with an identity that needs a role.
module topic 'topic.bicep' = {
  scope: group
  params: { location: location, tags: tags, token: token }
  dependsOn: [storage]
}

// Application Insights, its logs and its workbook.
module monitoring 'monitoring.bicep' = {
  scope: group
  params: { location: location, tags: tags, token: token }
}

// Where the containers' images lie.
module registry 'registry.bicep' = if (hasContainers) {
  scope: group
  params: { location: location, tags: tags, token: token, keepDays: registryKeepDays }
}

// Azure Managed Grafana, with an identity that needs a role.
module grafana 'grafana.bicep' = if (grafanaEnabled) {
  scope: group
  params: { location: location, tags: tags, token: token, zoneRedundant: zones }
}

// Who may do what, in one place. Apps come after it, because they need it when they start.
module roles 'roles.bicep' = {
  scope: group
  params: {
    token: token
    gpuEnabled: gpuEnabled
    grafanaEnabled: grafanaEnabled
    cpuIsContainer: cpuIsContainer
    deployerPrincipalId: deployerPrincipalId
    deployerPrincipalType: deployerPrincipalType
  }
  dependsOn: [identities, storage, topic, monitoring, registry, grafana]
}

// Virtual network, and private endpoints for storage.
module network 'network.bicep' = if (networkIsolated) {
  scope: group
  params: { location: location, tags: tags, token: token, gpuEnabled: gpuEnabled }
  dependsOn: [storage]
}

// Where containers run.
module containers 'environment.bicep' = if (hasContainers) {
  scope: group
  params: {
    location: location
    tags: tags
    token: token
    workspaceId: monitoring.outputs.workspaceId
    gpuProfile: gpuEnabled ? gpuProfile : null
    cpuMachines: cpuIsContainer ? cpuMaxReplicas : 0
    zoneRedundant: zones
    networkIsolated: networkIsolated
  }
  dependsOn: [network]
}

// The GPU backend.
module gpu 'app/gpu.bicep' = if (gpuEnabled) {
  scope: group
  params: {
    location: location
    tags: tags
    token: token
    backendAppId: backendAppId
    audience: audience
    image: gpuImage
    profile: gpuProfile
    modelsInImage: gpuModelsInImage
    warmModels: warmModels
    maxReplicas: gpuMaxReplicas
    cooldownSeconds: gpuCooldownSeconds
  }
  dependsOn: [roles, containers]
}

// The CPU backend, in one of two ways.
module cpu 'app/cpu.bicep' = if (!cpuIsContainer) {
  scope: group
  params: {
    location: location
    tags: tags
    token: token
    backendAppId: backendAppId
    audience: audience
    gpuUrl: gpu.?outputs.url ?? ''
    warmModels: warmModels
    defaultModel: defaultModel
    alwaysReady: alwaysReadyCpu
    maxInstances: maxInstancesCpu
    httpConcurrency: cpuHttpConcurrency
    zoneRedundant: zones
    networkIsolated: networkIsolated
  }
  dependsOn: [roles, network]
}

module cpuContainer 'app/cpu-container.bicep' = if (cpuIsContainer) {
  scope: group
  params: {
    location: location
    tags: tags
    token: token
    backendAppId: backendAppId
    audience: audience
    gpuUrl: gpu.?outputs.url ?? ''
    image: cpuImage
    warmModels: warmModels
    defaultModel: defaultModel
    minReplicas: alwaysReadyCpu
    maxReplicas: cpuMaxReplicas
  }
  dependsOn: [roles, containers]
}

// The router, in front of both.
module router 'app/router.bicep' = {
  scope: group
  params: {
    location: location
    tags: tags
    token: token
    backendAppId: backendAppId
    audience: audience
    cpuUrl: cpu.?outputs.url ?? cpuContainer!.outputs.url
    gpuUrl: gpu.?outputs.url ?? ''
    gpuCooldownSeconds: gpuCooldownSeconds
    gpuAheadSeconds: gpuAheadSeconds
    apiKeyHashes: apiKeyHashes
    apiManagementEnabled: apiManagementEnabled
    defaultModel: defaultModel
    alwaysReady: alwaysReadyRouter
    maxInstances: maxInstancesRouter
    httpConcurrency: routerHttpConcurrency
    zoneRedundant: zones
    networkIsolated: networkIsolated
  }
  dependsOn: [roles, network]
}

// A new blob of bulk-in becomes a message.
module eventGrid 'eventgrid.bicep' = {
  scope: group
  params: { token: token }
  dependsOn: [roles]
}

// Keys, a rate limit and backends for keys in front of the router.
module apiManagement 'apim.bicep' = if (apiManagementEnabled) {
  scope: group
  params: {
    location: location
    tags: tags
    token: token
    audience: audience
    publisherEmail: apiManagementEmail
    routerUrl: router.outputs.url
    rateLimitPerMinute: rateLimitPerMinute
    tokenLimitPerMinute: tokenLimitPerMinute
    gpuTexts: gatewayGpuTexts
    gpuEnabled: gpuEnabled
  }
}

// What Azure's own services log.
module diagnostics 'diagnostics.bicep' = {
  scope: group
  params: {
    token: token
    workspaceId: monitoring.outputs.workspaceId
    hasContainers: hasContainers
    apiManagementEnabled: apiManagementEnabled
  }
  dependsOn: [storage, topic, registry, apiManagement]
}

// Who is told when something is wrong, and of what.
module alerts 'alerts.bicep' = if (somebodyIsTold) {
  scope: group
  params: {
    location: location
    tags: tags
    token: token
    workspaceId: monitoring.outputs.workspaceId
    emails: alertEmails
    webhook: alertWebhook
    p95Seconds: alertP95Seconds
    gpuEnabled: gpuEnabled
    apiManagementEnabled: apiManagementEnabled
  }
  dependsOn: [topic]
}

// Asks from outside. Behind API Management only whether the gateway is there, since the test has no key for it.
module availability 'availability.bicep' = if (somebodyIsTold && testSeconds > 0) {
  scope: group
  params: {
    location: location
    tags: tags
    token: token
    url: apiManagement.?outputs.url ?? router.outputs.url
    expectedStatus: apiManagementEnabled ? 401 : 200
    everySeconds: testSeconds
  }
  dependsOn: [alerts]
}

// A mail when it gets expensive.
module budget 'budget.bicep' = if (budgetAmount > 0) {
  scope: group
  params: { token: token, amount: budgetAmount, startDate: budgetStart, somebodyIsTold: somebodyIsTold }
  dependsOn: [alerts]
}

// azd keeps these in its environment, where the hooks read them.
output AZURE_RESOURCE_GROUP string = group.name
output AZURE_CONTAINER_REGISTRY_ENDPOINT string = registry.?outputs.server ?? ''
output SERVICE_URL string = apiManagement.?outputs.url ?? router.outputs.url
output MODEL_STORE_URL string = '${storageUrlOf(nameOf('dataAccount', token), 'blob')}/models'
output KEYS_URL string = '${storageUrlOf(nameOf('dataAccount', token), 'blob')}/keys/keys.json'
output GPU_APP_ID string = gpu.?outputs.id ?? ''
output GPU_IDENTITY_ID string = gpu.?outputs.identityId ?? ''
output GRAFANA_NAME string = grafana.?outputs.name ?? ''
output GRAFANA_URL string = grafana.?outputs.url ?? ''
output APPLICATION_INSIGHTS_ID string = monitoring.outputs.applicationInsightsId
output DATA_ACCOUNT_NAME string = nameOf('dataAccount', token)

// What was asked for, as azd's variables: an empty azd environment learns it from here (infra/hooks/prepare.py). Not
// who deploys, which is the next one's own. ARM gives names in capitals back in another case, hence this one.
output deployedParameters object = {
  BACKEND_APP_ID: backendAppId
  API_KEY_HASHES: apiKeyHashes
  GPU_ENABLED: toLower(string(gpuEnabled))
  GPU_PROFILE: gpuProfile
  CPU_HOST: cpuHost
  CPU_OPENVINO: toLower(string(cpuOpenvino))
  GPU_MODELS_IN_IMAGE: toLower(string(gpuModelsInImage))
  GPU_MAX_REPLICAS: string(gpuMaxReplicas)
  GPU_COOLDOWN_SECONDS: string(gpuCooldownSeconds)
  GPU_HTTP_CONCURRENCY: string(gpuHttpConcurrency)
  GPU_AHEAD_SECONDS: string(gpuAheadSeconds)
  ALWAYS_READY_ROUTER: string(alwaysReadyRouter)
  ALWAYS_READY_CPU: string(alwaysReadyCpu)
  MAX_INSTANCES_ROUTER: string(maxInstancesRouter)
  MAX_INSTANCES_CPU: string(maxInstancesCpu)
  ROUTER_HTTP_CONCURRENCY: string(routerHttpConcurrency)
  CPU_HTTP_CONCURRENCY: string(cpuHttpConcurrency)
  NETWORK_ISOLATED: toLower(string(networkIsolated))
  ALLOWED_IP_RANGES: join(allowedIpRanges, ',')
  API_MANAGEMENT_ENABLED: toLower(string(apiManagementEnabled))
  API_MANAGEMENT_EMAIL: apiManagementEmail
  RATE_LIMIT_PER_MINUTE: string(rateLimitPerMinute)
  TOKEN_LIMIT_PER_MINUTE: string(tokenLimitPerMinute)
  GATEWAY_GPU_TEXTS: string(gatewayGpuTexts)
  WARM_MODELS: warmModels
  DEFAULT_MODEL: defaultModel
  BUDGET_AMOUNT: string(budgetAmount)
  BUDGET_START: budgetStart
  ALERT_EMAILS: join(alertEmails, ',')
  ALERT_WEBHOOK: alertWebhook
  ALERT_P95_SECONDS: string(alertP95Seconds)
  AVAILABILITY_TEST_SECONDS: string(availabilityTestSeconds)
  GRAFANA_ENABLED: toLower(string(grafanaEnabled))
  ZONE_REDUNDANT: toLower(string(zoneRedundant))
  SOFT_DELETE_DAYS: string(softDeleteDays)
  BLOB_VERSIONING: toLower(string(blobVersioning))
  REGISTRY_KEEP_DAYS: string(registryKeepDays)
  SAMPLE_MODEL: sampleModel
}
