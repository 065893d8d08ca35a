#!/usr/bin/env bash
# One server process of llama-tensorrt (tensorrt). Written by llmbuild.
set -euo pipefail
repository="${REPOSITORY:-/repository}"
cd "$repository"  # paths in it are relative
rank=0
arguments=(
  --model-repository="$repository"
  --http-port=8000
  --grpc-port=8001
  --metrics-port=8002
  --exit-timeout-secs=30
  --disable-auto-complete-config
  "--backend-config=python,shm-region-prefix-name=rank${rank}_"
)
exec tritonserver "${arguments[@]}"
