#!/bin/sh
# After provisioning: the dashboards, into Azure Managed Grafana if there is one.
set -eu
exec python3 "$(dirname "$0")/grafana.py"
