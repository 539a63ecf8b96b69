// The GPU backend: a container of the Functions host on a serverless GPU, for the router alone.
param location string
param tags object
param token string
param backendAppId string
param audience string
param image string
@allowed(['Consumption-GPU-NC8as-T4', 'Consumption-GPU-NC24-A100'])
param profile string
param modelsInImage bool
param warmModels string
param maxReplicas int
param cooldownSeconds int

// A replica takes the whole GPU, so it may as well take all that comes with it.
var sizes = {
  'Consumption-GPU-NC8as-T4': { cpu: 8, memory: '56Gi', modelBytes: '8000000000' }
  'Consumption-GPU-NC24-A100': { cpu: 24, memory: '220Gi', modelBytes: '50000000000' }
}

module app 'container.bicep' = {
  params: {
    location: location
    tags: tags
    token: token
    app: 'gpu'
    service: 'gpu'
    scalesByTriggers: true
    backendAppId: backendAppId
    audience: audience
    image: image
    profile: 'gpu'
    resources: { cpu: sizes[profile].cpu, memory: sizes[profile].memory }
    settings: union(modelsInImage ? { BLITZ_MODEL_STORE: 'file:///models' } : {}, {
      // With host.json's 1, ten waiting chunks would have ten GPUs start, each for less than a second of work.
      AzureFunctionsJobHost__extensions__queues__batchSize: '8'
      BLITZ_ROLE: 'gpu'
      BLITZ_WARM_MODELS: warmModels
      BLITZ_CACHE_MODELS: '8'
      // GPU memory for models: about half, the rest is for activations.
      BLITZ_CACHE_MEMORY_BYTES: sizes[profile].modelBytes
      // Of the replica's 8 GiB of temporary storage.
      BLITZ_CACHE_DISK_BYTES: '6000000000'
    })
    // The platform derives the rules from the triggers: a replica for each batchSize waiting messages of
    // bulk-gpu, and 10 requests at a time for HTTP. infra/hooks/scale can set others.
    scale: { minReplicas: 0, maxReplicas: maxReplicas, cooldownPeriod: cooldownSeconds, pollingInterval: 15 }
  }
}

output id string = app.outputs.id
output identityId string = app.outputs.identityId
output url string = app.outputs.url
