"""`llmbuild bench` as a user runs it, on the demo model in a real Triton."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.find import find_triton
from deploy.gateway.process import Door, Gateway
from deploy.running import find_running
from toolchain.errors import ToolchainError
from toolchain.pipeline.build import build_recipe
from toolchain.pipeline.serve import gateway_settings, serve_artifact
from toolchain.pipeline.store import Store
from toolchain.recipe import load_recipe

pytestmark = [pytest.mark.triton, pytest.mark.slow]
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    pytest.importorskip("openvino_genai")
    try:
        find_triton()
    except ToolchainError as error:
        pytest.skip(str(error))
    directory = tmp_path_factory.mktemp("bench")
    file = directory / "bench.yaml"
    file.write_text(
        f"schema: 1\nname: bench\nmodel: {{source: {ROOT / 'models/demo'}}}\nquantization: {{method: none}}\n"
        "engine: {max_seq_len: 512, max_batch_size: 4}\n"
    )
    with Store.open(directory / "store") as store:
        artifact = build_recipe(load_recipe(file), out=directory, store=store).artifact
    with serve_artifact(artifact, announce=True):
        yield artifact


@pytest.fixture(scope="module")
def gateway(artifact: Path) -> Iterator[str]:
    running = find_running(artifact)
    assert running is not None
    settings = gateway_settings(artifact, running.grpc)
    with Door("127.0.0.1", 0, api_keys=settings.keys_file, tls_cert=None, tls_key=None) as door:
        with Gateway.start(door, settings) as started:
            yield started.url


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "toolchain.cli.main", "bench", *map(str, arguments)]


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*arguments), capture_output=True, text=True, timeout=120, cwd=ROOT)


def test_concurrencies_a_result_and_a_page(artifact: Path, tmp_path: Path) -> None:
    out, html = tmp_path / "result.json", tmp_path / "page.html"
    done = run(
        artifact, "--concurrency", "1,4", "--requests", 8, "--input-tokens", 32, "--output-tokens",
        "uniform:8:16", "--goodput", "ttft=30s", "--slo", "errors=0", "--out", out, "--html", html,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "concurrency 4: 8 requests done" in done.stderr
    result = json.loads(out.read_text())
    (target,) = result["targets"]
    assert target["model"] == "ensemble"
    for level, concurrency in zip(target["levels"], (1, 4), strict=True):
        figures = level["figures"]
        assert figures["answered"] == 8
        assert figures["good_share"] == 1
        assert figures["are_tokens_counted_by_server"]
        assert figures["output_tokens"] == figures["output_tokens_asked"]
        assert 30 <= figures["input_length"]["min"] <= figures["input_length"]["max"] <= 34
        assert 0 < figures["ttft_s"]["p50"] < figures["e2e_s"]["p50"]
        _check_overlap(level["records"], concurrency)
    assert html.read_text().count("<svg") == 6
    _look_at(html, tmp_path)


def _check_overlap(records: list[dict[str, object]], most: int) -> None:
    """As many requests were under way as were asked for, and never more."""
    at = [(record["sent_s"], 1) for record in records]
    at += [(record["responses_s"][-1], -1) for record in records]  # type: ignore[index]
    under_way = found = 0
    for _, change in sorted(at):
        under_way += change
        found = max(found, under_way)
    assert found == most


def _look_at(page: Path, directory: Path) -> None:
    """Let a browser draw the page, where there is one: it must have figures and no errors."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        return
    picture = directory / "page.png"
    subprocess.run(
        [browser, "--headless", "--no-sandbox", "--disable-gpu", "--window-size=1200,1600",
         f"--user-data-dir={directory / 'profile'}", f"--screenshot={picture}", page.as_uri()],
        capture_output=True, timeout=60, check=True,
    )  # fmt: skip
    assert picture.stat().st_size > 50_000  # an empty page of this size has a fifth of it


def test_an_objective_that_is_not_met_is_exit_code_4(artifact: Path) -> None:
    done = run(artifact, "--rate", 20, "--requests", 6, "--output-tokens", 4, "--slo", "ttft_p95=1us")
    assert done.returncode == 4
    assert "NOT MET" in done.stdout
    assert "1 of 1 objectives are not met" in done.stderr


def test_compares_triton_with_the_gateway_in_one_table(artifact: Path, gateway: str, tmp_path: Path) -> None:
    out = tmp_path / "result.json"
    done = run(artifact, "--compare", gateway, "--requests", 3, "--output-tokens", 8, "--out", out)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("x)") >= 6
    triton, openai = (target["levels"][0]["figures"] for target in json.loads(out.read_text())["targets"])
    assert triton["answered"] == openai["answered"] == 3
    assert openai["are_tokens_counted_by_server"]
    assert openai["input_tokens"] == triton["input_tokens"]


def test_ctrl_c_leaves_partial_results(artifact: Path) -> None:
    process = subprocess.Popen(
        command(artifact, "--duration", 60, "--output-tokens", 16, "--json"),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    time.sleep(8)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130, err
    result = json.loads(out)
    assert result["is_partial"]
    assert result["stopped"] == "interrupted"
    assert result["targets"][0]["levels"][0]["figures"]["answered"] > 0
    assert "Traceback" not in err


def test_what_cannot_be_measured_is_said_at_once() -> None:
    for arguments, words in (
        (("127.0.0.1:9",), "there is nothing to make prompts of"),
        (("127.0.0.1:9", "--text", ROOT / "README.md"), "no server answers"),
        (
            ("127.0.0.1:9", "--rate", "1", "--concurrency", "2", "--text", ROOT / "README.md"),
            "give one of them",
        ),
        (("nowhere", "--trace", "/nowhere.jsonl"), "cannot read the trace"),
    ):
        done = run(*arguments)
        assert done.returncode in (2, 6)
        assert words in done.stderr
        assert "Traceback" not in done.stderr
