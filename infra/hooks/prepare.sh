#!/bin/sh
# Before provisioning: what Bicep cannot make, and what Azure knows that this azd environment does not.
set -eu
exec python3 "$(dirname "$0")/prepare.py"
