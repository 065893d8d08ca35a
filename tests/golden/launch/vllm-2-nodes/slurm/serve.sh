#!/usr/bin/env bash
# One server process of llama-vllm (vllm). Written by llmbuild.
set -euo pipefail
repository="${REPOSITORY:-/repository}"
cd "$repository"  # paths in it are relative
rank="${LWS_WORKER_INDEX:-${OMPI_COMM_WORLD_RANK:-${SLURM_PROCID:-0}}}"
head="${HEAD_ADDRESS:-${LWS_LEADER_ADDRESS:?HEAD_ADDRESS is to be that of the first node}}"
if [ "$rank" != 0 ]; then
  exec ray start --address="$head:6379" --num-gpus=8 --block
fi
ray start --head --port=6379 --num-gpus=8
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
