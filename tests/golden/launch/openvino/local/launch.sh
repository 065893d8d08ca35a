#!/usr/bin/env bash
# Serves llama-openvino (openvino) on this machine's CPU. Written by llmbuild.
set -euo pipefail
exec llmbuild serve /artifacts/llama-openvino --host 127.0.0.1 --http-port 8000 --grpc-port 8001 --metrics-port 8002 --drain 30
