"""Stands in for `trtllm-build` in tests: it takes exactly the flags of the table, and builds nothing.

It writes what has the shape of engines (names, config.json) from the checkpoint's config.json, logs as
trtllm-build 0.20 does, and fails in the way that STAND_IN names.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from functools import cache
from pathlib import Path

import yaml

import toolchain.data

VERSION = os.environ.get("STAND_IN_VERSION", "1.2.1")
MODE = os.environ.get("STAND_IN", "")


@cache
def parser() -> argparse.ArgumentParser:
    table = yaml.safe_load((Path(toolchain.data.__file__).parent / "build_flags.yaml").read_text())
    found = argparse.ArgumentParser(allow_abbrev=False)
    for name, row in table.items():
        first = row.get("first")
        if first is not None and [*map(int, VERSION.split("."))] < [*map(int, first.split("."))]:
            continue
        option, default = f"--{name}", row.get("default")
        if row["kind"] == "flag":
            found.add_argument(option, action="store_true")
        elif row["kind"] == "switch":
            found.add_argument(option, choices=["enable", "disable"], default=default)
        elif row["kind"] == "choice":
            found.add_argument(option, choices=row["choices"], default=default)
        elif row["kind"] in ("paths", "words"):
            found.add_argument(option, nargs="+", default=[])
        else:
            found.add_argument(option, type=int if row["kind"] == "number" else str, default=default)
    return found


def log(text: str, level: str = "I", who: str = "TRT-LLM") -> None:
    print(f"[11/25/2026-01:02:03] [{who}] [{level}] {text}", flush=True)


def main() -> None:
    args = vars(parser().parse_args())
    print(f"[TensorRT-LLM] TensorRT LLM version: {VERSION}", flush=True)
    log("Implicitly setting LLaMAConfig.producer = {}", "W")
    checkpoint, out_dir = Path(args["checkpoint_dir"]), Path(args["output_dir"])
    config = json.loads((checkpoint / "config.json").read_text())
    out_dir.mkdir(exist_ok=True)
    for path in filter(None, [args["input_timing_cache"], *args["lora_dir"]]):
        assert Path(path).exists(), path
    if MODE == "hang":
        # A worker that ignores SIGTERM, as one in a CUDA call does.
        code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
        worker = subprocess.Popen([sys.executable, "-c", code])
        Path("worker.pid").write_text(str(worker.pid))
        print("waiting", flush=True)
        time.sleep(600)
    if MODE == "fail":
        log(
            "Requested amount of GPU memory could not be allocated: out of memory",
            "E",
            "TRT",
        )
        sys.exit("AssertionError: Engine building failed, please check error log.")
    world_size = config["mapping"]["world_size"]
    for rank in range(world_size):
        assert (checkpoint / f"rank{rank}.safetensors").is_file()
        log("Total time of constructing network from module object 2.3651156425476074 seconds")
        log("Engine generation completed in 5.37531 seconds.", who="TRT")
        log("Build phase peak memory: 6978.95 MB, children: 12049.21 MB")
        if MODE == "killed" and rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        if MODE == "partial" and rank == world_size - 1:
            continue
        log(f"Serializing engine to {out_dir}/rank{rank}.engine...")
        (out_dir / f"rank{rank}.engine").write_bytes(b"" if MODE == "empty" else b"shaped like an engine")
        log("Engine serialized. Total time: 00:00:00")
    plugins = {
        name: args[name] == "enable" if args[name] in ("enable", "disable") else args[name]
        for name in ("tokens_per_block", "use_paged_context_fmha", "context_fmha", "remove_input_padding")
    }
    limits = (
        "max_batch_size", "max_seq_len", "max_num_tokens", "max_beam_width", "opt_num_tokens",
        "max_draft_len", "max_prompt_embedding_table_size", "gather_context_logits",
    )  # fmt: skip
    build = {name: args[name] for name in limits} | {"plugin_config": plugins}
    build["kv_cache_type"] = args["kv_cache_type"].upper()
    if MODE == "smaller":
        build["max_batch_size"] = 1
    written = {"version": VERSION, "pretrained_config": config, "build_config": build}
    (out_dir / "config.json").write_text(json.dumps(written))
    Path(args["output_timing_cache"]).write_bytes(b"timings")
    log("Timing cache serialized to model.cache")
    log("Total time of building all engines: 00:00:11")


if __name__ == "__main__":
    main()
