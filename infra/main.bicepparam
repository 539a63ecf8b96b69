// What `azd up` deploys. Every value comes from azd's environment: `azd env set NAME VALUE`; see docs/deploy.md.
using 'main.bicep'

param environmentName = readEnvironmentVariable('AZURE_ENV_NAME', 'blitz')
param location = readEnvironmentVariable('AZURE_LOCATION', 'swedencentral')
param deployerPrincipalId = readEnvironmentVariable('AZURE_PRINCIPAL_ID', '')
param deployerPrincipalType = readEnvironmentVariable('AZURE_PRINCIPAL_TYPE', 'User')
param backendAppId = readEnvironmentVariable('BACKEND_APP_ID', '')
param apiKeyHashes = readEnvironmentVariable('API_KEY_HASHES', '')
param gpuEnabled = bool(readEnvironmentVariable('GPU_ENABLED', 'true'))
param gpuProfile = readEnvironmentVariable('GPU_PROFILE', 'Consumption-GPU-NC8as-T4')
param gpuImage = readEnvironmentVariable(
  'SERVICE_GPU_IMAGE_NAME',
  'mcr.microsoft.com/azure-functions/python:4-python3.11'
)
param cpuHost = readEnvironmentVariable('CPU_HOST', 'flex')
param cpuImage = readEnvironmentVariable(
  'SERVICE_CPU_CONTAINER_IMAGE_NAME',
  'mcr.microsoft.com/azure-functions/python:4-python3.11'
)
param gpuModelsInImage = bool(readEnvironmentVariable('GPU_MODELS_IN_IMAGE', 'false'))
param gpuMaxReplicas = int(readEnvironmentVariable('GPU_MAX_REPLICAS', '10'))
param gpuCooldownSeconds = int(readEnvironmentVariable('GPU_COOLDOWN_SECONDS', '300'))
param gpuHttpConcurrency = int(readEnvironmentVariable('GPU_HTTP_CONCURRENCY', '10'))
param gpuAheadSeconds = int(readEnvironmentVariable('GPU_AHEAD_SECONDS', '0'))
param alwaysReadyRouter = int(readEnvironmentVariable('ALWAYS_READY_ROUTER', '0'))
param alwaysReadyCpu = int(readEnvironmentVariable('ALWAYS_READY_CPU', '0'))
param maxInstancesRouter = int(readEnvironmentVariable('MAX_INSTANCES_ROUTER', '40'))
param maxInstancesCpu = int(readEnvironmentVariable('MAX_INSTANCES_CPU', '40'))
param routerHttpConcurrency = int(readEnvironmentVariable('ROUTER_HTTP_CONCURRENCY', '32'))
param cpuHttpConcurrency = int(readEnvironmentVariable('CPU_HTTP_CONCURRENCY', '8'))
param networkIsolated = bool(readEnvironmentVariable('NETWORK_ISOLATED', 'false'))
param allowedIpRanges = filter(split(readEnvironmentVariable('ALLOWED_IP_RANGES', ''), ','), range => !empty(range))
param apiManagementEnabled = bool(readEnvironmentVariable('API_MANAGEMENT_ENABLED', 'false'))
param apiManagementEmail = readEnvironmentVariable('API_MANAGEMENT_EMAIL', '')
param rateLimitPerMinute = int(readEnvironmentVariable('RATE_LIMIT_PER_MINUTE', '600'))
param tokenLimitPerMinute = int(readEnvironmentVariable('TOKEN_LIMIT_PER_MINUTE', '1000000'))
param gatewayGpuTexts = int(readEnvironmentVariable('GATEWAY_GPU_TEXTS', '10'))
param warmModels = readEnvironmentVariable('WARM_MODELS', '')
param defaultModel = readEnvironmentVariable('DEFAULT_MODEL', '')
param budgetAmount = int(readEnvironmentVariable('BUDGET_AMOUNT', '0'))
param budgetStart = readEnvironmentVariable('BUDGET_START', '')
param sampleModel = readEnvironmentVariable('SAMPLE_MODEL', 'all-MiniLM-L6-v2')
