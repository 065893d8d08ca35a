#!/bin/bash
# Builds the engines into engine/, which is complete when it exists. Written by llmbuild.
set -euo pipefail
cd '/srv/store of llmbuild/work/0123456789abcdef'
rm -rf '/srv/store of llmbuild/work/0123456789abcdef/engine.partial.job'
mkdir '/srv/store of llmbuild/work/0123456789abcdef/engine.partial.job'
export PYTHONUNBUFFERED=1
nvidia-smi --query-gpu=name,compute_cap --format=csv,noheader > '/srv/store of llmbuild/work/0123456789abcdef/engine.partial.job/gpus.csv'
trtllm-build --checkpoint_dir '/srv/store of llmbuild/ranks' --output_dir '/srv/store of llmbuild/work/0123456789abcdef/engine.partial.job' 2>&1 | tee '/srv/store of llmbuild/work/0123456789abcdef/trtllm-build.log'
mv -T '/srv/store of llmbuild/work/0123456789abcdef/engine.partial.job' '/srv/store of llmbuild/work/0123456789abcdef/engine'
