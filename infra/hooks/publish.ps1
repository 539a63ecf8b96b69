# After a deployment: a sample model in the store, so that the service answers. SAMPLE_MODEL is a name in
# model_build/models.toml; "none" publishes nothing. What is published already is not published again.
$ErrorActionPreference = 'Stop'
Set-Location (Join-Path $PSScriptRoot '../..')

$model = if ($env:SAMPLE_MODEL) { $env:SAMPLE_MODEL } else { 'all-MiniLM-L6-v2' }
if ($model -eq 'none') { exit 0 }
$targets = @('cpu-int8')
if (-not $env:GPU_ENABLED -or $env:GPU_ENABLED -eq 'true') { $targets += 'gpu-fp16' }
$pause = if ($env:HOOK_PAUSE_S) { $env:HOOK_PAUSE_S } else { 30 }

$python = if ($IsWindows) { '.venv/Scripts/python.exe' } else { '.venv/bin/python' }
if (-not (Test-Path $python)) { python -m venv .venv }

foreach ($target in $targets) {
    # A model with a recipe is assembled without torch, to the same bytes as a build.
    $builder = 'model_build'
    $files = 'requirements.txt', 'model_build/requirements-sample.txt', 'model_build/requirements.txt', `
        'infra/gpu/requirements-torch.txt'
    if (Test-Path "model_build/recipes/$model.$target.json") {
        $builder = 'model_build.assemble'
        $files = $files[0..1]
    }
    $requirements = $files | ForEach-Object { '--requirement', $_ }
    # Every time: an interrupted installation cannot be trusted, and checking a complete one takes seconds.
    & $python -m pip install --quiet --no-deps --require-hashes $requirements
    if ($LASTEXITCODE -ne 0) { throw "what $builder needs cannot be installed" }

    for ($try = 1; ; $try++) {
        & $python -m $builder $model --target $target --push $env:MODEL_STORE_URL
        if ($LASTEXITCODE -eq 0) { break }
        # A new role takes minutes to be known everywhere: exit code 4 is a store that refused or did not answer.
        if ($LASTEXITCODE -ne 4 -or $try -ge 10) { exit $LASTEXITCODE }
        Start-Sleep -Seconds $pause
    }
}
