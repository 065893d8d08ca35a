#!/usr/bin/env bash
# Serves llama-vllm (vllm) by mpirun on 2 node(s); HOSTFILE names the hosts. Written by llmbuild.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
repository="${REPOSITORY:-/artifacts/llama-vllm/repository}"
export REPOSITORY="$repository"  # the same path on every host, as this directory is
hosts=()
if [ -n "${HOSTFILE:-}" ]; then hosts=(--hostfile "$HOSTFILE"); fi
cd "$repository"  # where workers that a server spawns start, too
exec mpirun --allow-run-as-root -n 2 --map-by ppr:1:node -x REPOSITORY -x HEAD_ADDRESS ${hosts[@]+"${hosts[@]}"} bash "$here/serve.sh"
