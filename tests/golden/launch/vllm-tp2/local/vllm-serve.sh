#!/usr/bin/env bash
# Serves llama-vllm (vllm) by vLLM's own server, without Triton. Written by llmbuild.
set -euo pipefail
repository="${REPOSITORY:-/artifacts/llama-vllm/repository}"
cd "$repository"
exec vllm serve m --tensor-parallel-size 2 --host 127.0.0.1 --port 8000
