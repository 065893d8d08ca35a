#!/usr/bin/env bash
# Serves llama-tensorrt (tensorrt) in NVIDIA's container; CONTAINER=podman runs podman instead of docker. Written by llmbuild.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
repository="${REPOSITORY:-/artifacts/llama-tensorrt/repository}"
exec "${CONTAINER:-docker}" run \
  --rm \
  --name=llama-tensorrt \
  --gpus=4 \
  --shm-size=16g \
  --ulimit=memlock=-1 \
  --ulimit=stack=67108864 \
  --stop-timeout=40 \
  --workdir=/repository \
  --publish=127.0.0.1:8000:8000 \
  --publish=127.0.0.1:8001:8001 \
  --publish=127.0.0.1:8002:8002 \
  --volume=/engines/draft:/engines/draft:ro \
  --volume="$repository":/repository:ro \
  --volume="$here":/launch:ro \
  nvcr.io/nvidia/tritonserver:26.07-trtllm-python-py3 \
  mpirun \
  --allow-run-as-root \
  -n \
  1 \
  bash \
  /launch/serve.sh
