// The CPU app as a container of 4 vCPU and 16 GiB, without a GPU.
using '../main.bicep'

param environmentName = 'review'
param location = 'swedencentral'
param deployerPrincipalId = '00000000-0000-0000-0000-00000000de91'
param backendAppId = '00000000-0000-0000-0000-0000000bac0d'
param apiKeyHashes = 'e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855'
param warmModels = 'all-MiniLM-L6-v2'
param gpuEnabled = false
param cpuHost = 'container'
