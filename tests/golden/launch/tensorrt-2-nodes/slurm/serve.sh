#!/usr/bin/env bash
# One server process of llama-tensorrt (tensorrt). Written by llmbuild.
set -euo pipefail
repository="${REPOSITORY:-/repository}"
cd "$repository"  # paths in it are relative
rank="${OMPI_COMM_WORLD_RANK:-${SLURM_PROCID:-0}}"
arguments=(
  --model-repository="$repository"
  --http-port=8000
  --grpc-port=8001
  --metrics-port=8002
  --exit-timeout-secs=30
  --disable-auto-complete-config
  "--backend-config=python,shm-region-prefix-name=rank${rank}_"
)
if [ "$rank" != 0 ]; then  # ranks but the first load the engine alone, and open no port
  arguments+=(--model-control-mode=explicit --load-model=tensorrt_llm)
fi
exec tritonserver "${arguments[@]}"
