#!/bin/sh
# After a deployment: blobs in bulk-in call the router. The function and its key are there only once the
# deployed code has started, so this waits for them. Making the subscription again changes nothing.
set -eu
cd "$(dirname "$0")/../.."

tries=1
until az deployment group create --subscription "$AZURE_SUBSCRIPTION_ID" --resource-group "$AZURE_RESOURCE_GROUP" \
    --name bulk-subscription --template-file infra/hooks/subscription.bicep \
    --parameters topicName="$EVENT_GRID_TOPIC_NAME" appName="$ROUTER_APP_NAME" --output none; do
    if [ "$tries" -ge 10 ]; then
        echo "the bulk subscription could not be made; azd hooks run postdeploy tries again" >&2
        exit 1
    fi
    tries=$((tries + 1))
    sleep "${HOOK_PAUSE_S:-30}"
done
