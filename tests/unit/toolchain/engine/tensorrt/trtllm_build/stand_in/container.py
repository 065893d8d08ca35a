"""Stands in for docker and podman in tests: `run` checks its options and runs the command here."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

VALUED = {
    "--name", "--gpus", "--user", "--device", "--security-opt", "--ipc", "--ulimit", "--env", "--mount",
    "--workdir",
}  # fmt: skip

engine, verb, *rest = Path(sys.argv[0]).name, *sys.argv[1:]
with Path(os.environ["STAND_IN_CALLS"]).open("a") as calls:
    print(json.dumps([engine, verb, *rest]), file=calls)
if verb == "version":
    if os.environ.get("STAND_IN") == "no daemon":
        sys.exit("Cannot connect to the Docker daemon at unix:///var/run/docker.sock.")
    print("29.1.0")
elif verb == "run":
    workdir = None
    while rest and rest[0].startswith("--"):
        option = rest.pop(0)
        if option in VALUED:
            value = rest.pop(0)
            if option == "--mount":
                parts = dict(part.partition("=")[::2] for part in value.split(","))
                assert parts["src"] == parts["dst"], value
                assert Path(parts["src"]).is_dir(), value
            elif option == "--workdir":
                workdir = value
        else:
            assert option in ("--rm", "--init"), option
    image, *command = rest
    assert workdir is not None
    os.chdir(workdir)
    os.execvp(command[0], command)
