"""Starting, watching and stopping a real Triton with a model that needs no mathematics (`flow/echo`)."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from deploy.client import Chunk, Client, Summary
from deploy.doctor import diagnose
from deploy.find import find_triton
from deploy.server import TritonServer
from toolchain.errors import LaunchError, LlmbuildError, ToolchainError, UsageError

pytestmark = pytest.mark.triton
ECHO = Path(__file__).parent / "echo"
OURS = "llmbuild_{}_"


@pytest.fixture(autouse=True, scope="module")
def _triton() -> None:
    try:
        find_triton()
    except ToolchainError as error:
        pytest.skip(str(error))


@pytest.fixture
def start() -> Iterator[Callable[..., TritonServer]]:
    """`TritonServer.start`, with what is still up at the end killed."""
    servers: list[TritonServer] = []

    def started(repository: Path = ECHO, **options: object) -> TritonServer:
        servers.append(TritonServer.start(repository, **options))  # type: ignore[arg-type]
        return servers[-1]

    yield started
    for server in servers:
        server.kill()


@pytest.fixture
def broken(tmp_path: Path) -> Callable[[str], Path]:
    """A repository with the echo model, to which `edit` happened."""

    def make(edit: str) -> Path:
        repository = tmp_path / "repository"
        shutil.copytree(ECHO, repository, ignore=shutil.ignore_patterns("__pycache__"))
        model, config = repository / "ensemble/1/model.py", repository / "ensemble/config.pbtxt"
        if edit == "no model.py":
            model.unlink()
        elif edit == "bad config":
            config.write_text(config.read_text() + "nonsense: 3\n")
        elif edit == "bad syntax":
            model.write_text("def (:\n")
        else:
            source = model.read_text().replace(
                "    def execute", f"    def initialize(self, args):\n        {edit}\n\n    def execute"
            )
            model.write_text(source)
        return repository

    return make


def _regions() -> set[str]:
    return {path.name for path in Path("/dev/shm").glob(OURS.format(os.getpid()) + "*")}


def _processes_of(server: TritonServer) -> set[int]:
    """The server and the processes of its models."""
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if os.getpgid(int(process.name)) == server.pid:
                found.add(int(process.name))
        except ProcessLookupError:
            continue
    return found


def _all_gone(pids: set[int]) -> bool:
    for _ in range(400):
        alive = {pid for pid in pids if Path(f"/proc/{pid}/stat").exists() and not _is_zombie(pid)}
        if not alive:
            return True
        time.sleep(0.05)
    return False


def _is_zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def _get(url: str) -> str:
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=30) as answer:
        return str(answer.read().decode())


def test_starts_on_loopback_and_stops_without_a_trace(tmp_path: Path) -> None:
    lines: list[str] = []
    with TritonServer.start(ECHO, log_file=tmp_path / "log", on_log=lines.append) as server:
        assert server.is_alive
        assert {address.split(":")[-2].strip("/") for address in vars(server.endpoints).values()} == {
            "127.0.0.1"
        }
        assert _get(f"{server.endpoints.http}/v2/models/ensemble/ready") == ""
        assert "nv_inference_request_success" in _get(server.endpoints.metrics)
        listening = {socket.inet_ntoa(address) for address in _listening_addresses(server)}
        assert listening == {"127.0.0.1"}
        processes = _processes_of(server)
        assert len(processes) == 2
        assert _regions()
        assert not server.wait(0.1)
    assert not server.is_alive
    assert server.wait()
    assert _all_gone(processes)
    assert not _regions()
    server.stop()
    assert any("Started GRPCInferenceService" in line for line in lines)
    assert (tmp_path / "log").read_text().splitlines() == lines


def _listening_addresses(server: TritonServer) -> Iterator[bytes]:
    descriptors = Path(f"/proc/{server.pid}/fd").iterdir()
    inodes = {os.readlink(fd).removeprefix("socket:[").removesuffix("]") for fd in descriptors}  # noqa: PTH115
    assert Path(f"/proc/{server.pid}/net/tcp").exists()
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[3] == "0A" and fields[9] in inodes:
            yield bytes.fromhex(fields[1].split(":")[0])[::-1]


def test_two_servers_stand_side_by_side(start: Callable[..., TritonServer]) -> None:
    one, other = start(), start()
    assert not set(vars(one.endpoints).values()) & set(vars(other.endpoints).values())
    one.kill()
    with Client(other.endpoints.grpc) as client:
        assert client.complete("x", max_tokens=2) == "xx"


def test_a_taken_port_is_told_before_anything_starts(start: Callable[..., TritonServer]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        with pytest.raises(
            LaunchError, match=rf"the metrics port {port} is taken\n  why: pid {os.getpid()} "
        ):
            start(metrics_port=port)
    assert start(metrics_port=port).endpoints.metrics == f"http://127.0.0.1:{port}/metrics"


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        ("raise ValueError('no tokenizer')", r"ensemble: ValueError: no tokenizer \(.*/1/model\.py"),
        ("import nothing_like_it", r"No module named 'nothing_like_it'.*\n  fix: install the missing"),
        ("import os; os._exit(1)", r"ensemble: Stub process .* is not healthy.*its process died"),
        ("no model.py", r"Python model file not found in '.*/ensemble/1/model\.py'"),
        ("bad config", r"ensemble: failed to read text proto .*has no field named \"nonsense\""),
        ("bad syntax", r"ensemble: SyntaxError: invalid syntax"),
    ],
)  # fmt: skip
def test_a_model_that_does_not_load_ends_with_the_reason(
    start: Callable[..., TritonServer], broken: Callable[[str], Path], edit: str, reason: str
) -> None:
    with pytest.raises(LaunchError, match=f"Triton .*\n  why: .*{reason}"):
        start(broken(edit), timeout_s=60)
    assert not _regions()


def test_a_model_that_never_comes_up_runs_out_of_time(
    start: Callable[..., TritonServer], broken: Callable[[str], Path]
) -> None:
    with pytest.raises(LaunchError, match=r"Triton did not load 'ensemble' within 1\.5 s\n(.*\n)*.*loading"):
        start(broken("import time; time.sleep(1000)"), timeout_s=1.5)
    assert not _regions()


def test_waits_for_the_models_that_are_named(start: Callable[..., TritonServer]) -> None:
    with pytest.raises(LaunchError, match="Triton did not load 'nobody'"):
        start(models=["ensemble", "nobody"])


def test_a_directory_without_models_is_no_repository(tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match=r"this is no Triton model repository\n.*no directory .* config\.pbtxt"
    ):
        TritonServer.start(tmp_path)


def test_an_argument_that_triton_refuses_ends_with_its_words(start: Callable[..., TritonServer]) -> None:
    with pytest.raises(
        LaunchError,
        match=r"Triton could not be started \(exit status 1\)\n  why: unrecognized option.*no-such-option",
    ):
        start(extra_args=["--no-such-option=1"])


def test_a_log_file_that_cannot_be_written_is_an_error(
    start: Callable[..., TritonServer], tmp_path: Path
) -> None:
    with pytest.raises(LaunchError, match=r"cannot write the log file\n  why: No such file or directory"):
        start(log_file=tmp_path / "none" / "log")


def test_stopping_lets_requests_in_flight_finish(start: Callable[..., TritonServer]) -> None:
    server = start(exit_timeout_s=30)
    with Client(server.endpoints.grpc) as client:
        parts = client.generate("slow", max_tokens=40)
        assert next(parts) == Chunk("slow")
        stopping = threading.Thread(target=server.stop)
        stopping.start()
        *_, summary = parts
        stopping.join()
    assert isinstance(summary, Summary)
    assert summary.tokens == 40


def test_a_request_beyond_the_exit_timeout_ends_with_an_error(start: Callable[..., TritonServer]) -> None:
    server = start(exit_timeout_s=1)
    with Client(server.endpoints.grpc) as client:
        parts = client.generate("slow", max_tokens=100_000)
        assert next(parts) == Chunk("slow")
        stopping = threading.Thread(target=server.stop)
        stopping.start()
        with pytest.raises(LlmbuildError):
            list(parts)
        stopping.join()
    assert not server.is_alive
    assert not _regions()


def test_a_client_that_keeps_its_stream_open_does_not_hold_up_the_stop(
    start: Callable[..., TritonServer],
) -> None:
    from tritonclient import grpc

    server = start(exit_timeout_s=1)
    client = grpc.InferenceServerClient(server.endpoints.grpc)
    client.start_stream(lambda result, error: None)
    server.stop()
    assert not server.is_alive
    client.stop_stream(cancel_requests=True)


def test_an_end_of_its_own_is_told_with_the_status(start: Callable[..., TritonServer]) -> None:
    server = start()
    processes = _processes_of(server)
    os.kill(server.pid, signal.SIGKILL)
    with pytest.raises(LaunchError, match=r"Triton ended by itself \(killed by signal 9\)"):
        server.wait(30)
    assert _all_gone(processes)
    assert not _regions()


def test_a_model_process_that_dies_ends_the_server_and_its_requests(
    start: Callable[..., TritonServer],
) -> None:
    server = start()
    with Client(server.endpoints.grpc) as client:
        parts = client.generate("slow", max_tokens=100_000)
        assert next(parts) == Chunk("slow")
        with pytest.raises(LlmbuildError, match="not healthy"):
            client.complete("die", max_tokens=1)
        with pytest.raises(LaunchError, match="the process of a model died"):
            server.wait(30)
        with pytest.raises(LaunchError, match="the server went away"):
            list(parts)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_no_server_outlives_its_starter(number: signal.Signals) -> None:
    code = f"""
import sys, threading
from deploy.server import TritonServer
servers = []
# Started by a thread that ends: the server must belong to the process, not to the thread.
thread = threading.Thread(target=lambda: servers.append(TritonServer.start({str(ECHO)!r}, exit_timeout_s=1)))
thread.start()
thread.join()
with servers[0] as server:
    print(server.pid, flush=True)
    server.wait()
"""
    starter = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert starter.stdout is not None
    pid = int(starter.stdout.readline())
    time.sleep(1.2)  # longer than the guard looks for a starter that is gone
    group = {int(p.name) for p in Path("/proc").glob("[0-9]*") if _group_of(int(p.name)) == pid}
    assert len(group) == 2
    starter.send_signal(number)
    starter.communicate(timeout=60)
    assert _all_gone(group)
    for _ in range(200):
        if not list(Path("/dev/shm").glob(OURS.format(starter.pid) + "*")):
            break
        time.sleep(0.05)
    else:
        raise AssertionError("shared memory was left behind")


def _group_of(pid: int) -> int | None:
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return None


def test_doctor_finds_what_serving_needs() -> None:
    facts = {fact.what: fact for fact in diagnose()}
    assert list(facts) == ["Triton", "shared memory", "Triton's Python backend"]
    assert facts["Triton"].ok
    assert facts["Triton's Python backend"].ok


def test_doctor_tells_how_to_get_what_is_missing(tmp_path: Path) -> None:
    triton, memory = diagnose(tmp_path / "none")
    assert not triton.ok
    assert "there is no such file" in triton.found
    assert "pip install 'llmbuild[triton]'" in triton.fix
    assert memory.what == "shared memory"
