#!/bin/sh
# After a deployment: a sample model in the store, so that the service answers. SAMPLE_MODEL is a name in
# model_build/models.toml; "none" publishes nothing. What is published already is not published again.
set -eu
cd "$(dirname "$0")/../.."

model=${SAMPLE_MODEL:-all-MiniLM-L6-v2}
[ "$model" != none ] || exit 0
targets=cpu-int8
[ "${GPU_ENABLED:-true}" != true ] || targets="cpu-int8 gpu-fp16"

for target in $targets; do
    # A model with a recipe is assembled without torch, to the same bytes as a build.
    builder=model_build environment=.venv/build
    if [ -f "model_build/recipes/$model.$target.json" ]; then
        builder=model_build.assemble environment=.venv/serve
    fi
    # -B: an interrupted installation leaves a stamp too, and checking a complete one takes seconds.
    make -B "$environment"

    tries=1
    # A new role takes minutes to be known everywhere: exit code 4 is a store that refused or did not answer.
    until .venv/bin/python -m "$builder" "$model" --target "$target" --push "$MODEL_STORE_URL"; do
        code=$?
        if [ "$code" -ne 4 ] || [ "$tries" -ge 10 ]; then
            exit "$code"
        fi
        tries=$((tries + 1))
        sleep "${HOOK_PAUSE_S:-30}"
    done
done
