"""The real build of the demo model: what it makes, and what becomes of it on bad days.

Builds run as `llmbuild build` in processes of their own, with one thread, so that their bytes can be compared
with those of one undisturbed build (`finished`). Stores are copied from it where a test is about what comes
after the stages that take time.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from deploy.client import Client
from deploy.find import find_triton
from deploy.server import TritonServer
from toolchain import build_recipe, load_recipe, serve_artifact
from toolchain.errors import ToolchainError
from toolchain.model.checkpoint import Checkpoint
from toolchain.pipeline.artifact import Artifact
from toolchain.pipeline.files import sha256_file
from toolchain.pipeline.store import Store

for package in ("torch", "openvino", "openvino_genai"):
    pytest.importorskip(package)

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "models" / "demo"
RECIPE = ROOT / "configs" / "demo-int4.yaml"
NAME = "demo-int4"
LLMBUILD = Path(sysconfig.get_path("scripts")) / "llmbuild"
STAGES = ("source", "quantize", "engine", "repository")
# Little calibration, and so no gate: it has tests of its own.
SMALL = (
    "quantization.calibration.samples=4",
    "quantization.calibration.seq_len=64",
    "gates.perplexity=null",
)
PATIENCE_S = 120.0


@dataclass
class Run:
    """How a process of `llmbuild` ended."""

    code: int
    stdout: str
    stderr: str

    @property
    def stages(self) -> dict[str, dict[str, Any]]:
        """What `build --json` said of each stage."""
        assert self.code == 0, self.stderr
        return {stage["name"]: stage for stage in json.loads(self.stdout)["stages"]}

    @property
    def digests(self) -> dict[str, str]:
        return {name: stage["digest"] for name, stage in self.stages.items()}

    @property
    def fresh(self) -> list[str]:
        """The stages that this build ran."""
        return [name for name, stage in self.stages.items() if stage["outcome"] == "run"]

    @property
    def events(self) -> list[dict[str, Any]]:
        """The lines of progress."""
        return [json.loads(line) for line in self.stderr.splitlines() if line.startswith("{")]

    @property
    def notes(self) -> list[str]:
        return [event["text"] for event in self.events if event["event"] == "note"]

    def failed(self, code: int) -> str:
        """What it said when it ended with `code`, in so many words and without a traceback."""
        assert self.code == code, self.stderr
        assert "Traceback" not in self.stderr
        return self.stderr


@dataclass(frozen=True)
class Place:
    """A store and a directory for artifacts."""

    path: Path

    @property
    def store(self) -> Path:
        return self.path / "store"

    @property
    def out(self) -> Path:
        return self.path / "artifacts"

    @property
    def artifact(self) -> Path:
        return self.out / NAME

    def build_command(self, *arguments: str, set_: tuple[str, ...] = ()) -> list[str]:
        """The arguments of `llmbuild` for a small build of the demo recipe."""
        overrides = [argument for each in (*SMALL, *set_) for argument in ("--set", each)]
        return ["build", str(RECIPE), "--json", "--out", str(self.out), *overrides, *arguments]

    def start(self, *command: str) -> subprocess.Popen[str]:
        env = os.environ | {"LLMBUILD_STORE": str(self.store), "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(
            command, cwd=self.path, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )

    def run(self, *command: str) -> Run:
        return end(self.start(*command))

    def llmbuild(self, *arguments: str) -> Run:
        return self.run(str(LLMBUILD), *arguments)

    def build(self, *arguments: str, set_: tuple[str, ...] = ()) -> Run:
        return self.llmbuild(*self.build_command(*arguments, set_=set_))

    def assert_sound(self) -> None:
        """Whatever is visible of the store and the artifact is complete."""
        with Store.open(self.store) as store:
            assert store.verify() == []
        if self.artifact.exists():
            Artifact.open(self.artifact).verify()

    def assert_clean(self) -> None:
        """Nothing temporary is left."""
        for name in ("tmp", "work", "locks"):
            assert list((self.store / name).iterdir()) == []
        assert [path.name for path in self.out.iterdir()] == [NAME]


def end(process: subprocess.Popen[str]) -> Run:
    """Wait for a process and take what it said."""
    try:
        stdout, stderr = process.communicate(timeout=PATIENCE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        stdout, stderr = process.communicate()
        raise AssertionError(f"the build hangs: {stdout}{stderr}") from None
    return Run(process.returncode, stdout, stderr)


@dataclass(frozen=True)
class Finished:
    """The undisturbed build that others are compared with."""

    place: Place
    run: Run
    up_to_quantize: Place


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """The demo recipe, built in two steps so that a store which ends before the engine can be kept."""
    place = Place(tmp_path_factory.mktemp("finished"))
    until_quantize = place.build("--until", "quantize")
    assert until_quantize.fresh == ["source", "quantize"]
    half = Place(tmp_path_factory.mktemp("half"))
    shutil.copytree(place.store, half.store, symlinks=True)
    run = place.build()
    assert run.fresh == ["engine", "repository"]
    place.assert_clean()
    return Finished(place, run, half)


@pytest.fixture
def empty(tmp_path: Path) -> Place:
    return Place(tmp_path)


@pytest.fixture
def half(tmp_path: Path, finished: Finished) -> Place:
    """A store with `source` and `quantize`, and no artifact."""
    shutil.copytree(finished.up_to_quantize.store, tmp_path / "store", symlinks=True)
    return Place(tmp_path)


@pytest.fixture
def whole(tmp_path: Path, finished: Finished) -> Place:
    """A store with every stage, and no artifact."""
    shutil.copytree(finished.place.store, tmp_path / "store", symlinks=True)
    return Place(tmp_path)


@pytest.fixture
def triton() -> None:
    try:
        find_triton()
    except ToolchainError as error:
        pytest.skip(str(error))


# What a build makes


def test_the_manifest_tells_what_is_there(finished: Finished) -> None:
    artifact = finished.place.artifact
    manifest = json.loads((artifact / "manifest.json").read_text())
    on_disk = {
        path.relative_to(artifact).as_posix(): {"sha256": sha256_file(path), "size": path.stat().st_size}
        for directory in (artifact, *(artifact / stage for stage in STAGES))
        for path in directory.rglob("*")
        if path.is_file()
    }
    del on_disk["manifest.json"]
    assert manifest["files"] == on_disk
    assert manifest["name"] == NAME
    assert manifest["recipe_sha256"] == on_disk["recipe.yaml"]["sha256"]
    stages = {stage["stage"]: stage for stage in manifest["stages"]}
    assert tuple(stages) == STAGES
    assert {name: stage["object"] for name, stage in stages.items()} == finished.run.digests
    assert {name: stage["outcome"] for name, stage in stages.items()} == {
        "source": "cached", "quantize": "cached", "engine": "run", "repository": "run",
    }  # fmt: skip
    assert stages["repository"]["facts"]["precision"] == "fast"
    assert stages["engine"]["facts"]["quantized_linears"] == 8 * 7
    assert set(stages["quantize"]["tools"]) == {"torch", "tokenizers"}
    assert set(stages["engine"]["tools"]) == {"openvino", "openvino-genai", "openvino-tokenizers"}
    for stage in stages.values():
        assert "absent" not in stage["tools"].values()
        assert stage["seconds"] > 0
        assert stage["peak_memory"] > 0


@pytest.mark.slow
def test_only_what_a_change_touches_is_built_again(whole: Place, finished: Finished) -> None:
    assert whole.build().fresh == []
    manifest = whole.artifact / "manifest.json"
    before = manifest.stat()
    again = whole.build()
    assert (again.fresh, again.digests) == ([], finished.run.digests)
    after = manifest.stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)

    changed = whole.build(set_=("engine.max_batch_size=8",))
    assert changed.fresh == ["repository"]
    assert changed.digests["repository"] != again.digests["repository"]
    assert "max_batch_size: 8" in (whole.artifact / "recipe.yaml").read_text()

    forced = whole.build("--force", "engine")
    assert (forced.fresh, forced.digests) == (["engine"], finished.run.digests)
    assert Artifact.open(whole.artifact).manifest.says_the_same(
        Artifact.open(finished.place.artifact).manifest
    )
    whole.assert_clean()


def test_a_build_until_quantize_is_an_artifact_and_the_way_to_a_whole_one(
    half: Place, finished: Finished, triton: None
) -> None:
    until = half.build("--until", "quantize")
    assert list(until.stages) == ["source", "quantize"]
    assert json.loads(until.stdout)["complete"] is False
    assert {path.name for path in half.artifact.iterdir()} == {
        "manifest.json", "recipe.yaml", "report.html", "source", "quantize",
    }  # fmt: skip

    inspected = json.loads(half.llmbuild("inspect", str(half.artifact), "--verify", "--json").stdout)
    assert [stage["stage"] for stage in inspected["stages"]] == ["source", "quantize"]
    assert inspected["checkpoint"]["quantization"]["quant_algo"] == "W4A16_AWQ"

    served = half.llmbuild("serve", str(half.artifact), "--http-port=0", "--grpc-port=0", "--metrics-port=0")
    said = served.failed(2)
    assert "the artifact has no output of stage repository" in said
    assert "why: it holds source, quantize" in said
    fix = f"llmbuild build {half.artifact / 'recipe.yaml'}"
    assert f"fix: {fix}" in said

    mended = half.llmbuild(*fix.split()[1:], "--out", str(half.out), "--json")
    assert (mended.fresh, mended.digests) == (["engine", "repository"], finished.run.digests)


# Kills


def kill_when(process: subprocess.Popen[str], sight: Callable[[], bool]) -> None:
    """Kill a process, as `kill -9` does, as soon as something is seen."""
    deadline = time.monotonic() + PATIENCE_S
    while process.poll() is None and not sight():
        assert time.monotonic() < deadline, "the build hangs"
        time.sleep(0.002)
    process.kill()
    assert end(process).code == -signal.SIGKILL


@pytest.mark.slow
def test_quantize_goes_on_where_it_was_killed(empty: Place, finished: Finished) -> None:
    def layers() -> int:
        return len(list(empty.store.glob("work/*/layer-*.safetensors")))

    for seen in (1, 5):
        kill_when(empty.start(str(LLMBUILD), *empty.build_command()), lambda seen=seen: layers() >= seen)
        empty.assert_sound()
        assert not empty.artifact.exists()
    kept = layers()

    last = empty.build()

    assert any(note.startswith("quantize: resuming") for note in last.notes)
    begun = next(event for event in last.events if event.get("label") == "quantize")
    assert (begun["event"], begun["done"], begun["total"]) == ("start", kept, 8)
    assert last.fresh == ["quantize", "engine", "repository"]
    assert last.digests == finished.run.digests
    empty.assert_sound()
    empty.assert_clean()


KILLER = """
import fnmatch, os, signal, sys
event, pattern = sys.argv[1:3]
sys.argv[:3] = ["llmbuild"]

def kill(name, arguments):
    if name == event and any(fnmatch.fnmatchcase(str(each), pattern) for each in arguments):
        os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(kill)
from toolchain.cli.main import main
main()
"""
"""Runs `llmbuild` until just before what Python calls `event` happens to a path like `pattern`."""

INSTANTS = [
    ("os.mkdir", "*/tmp/*/object/data"),  # the engine's output begins
    ("open", "*/openvino_model.bin"),
    ("open", "*/object/data/generation_config.json"),
    ("os.rename", "*/records/*.json"),  # the engine is made, nobody knows
    ("os.rename", "*/objects/*"),  # it is recorded, but not there
    ("os.link", "*/1/engine/openvino_model.bin"),  # the repository is being filled
    ("open", "*/tensorrt_llm/config.pbtxt"),
    ("os.symlink", "*/roots/*"),  # every stage is done, the store hears of the artifact
    ("open", "*/.demo-int4.*/manifest.json"),
    ("os.symlink", "*/.demo-int4.*/engine"),
    ("os.rename", "*/artifacts/demo-int4"),  # published by the next step
    ("os.remove", "*/.demo-int4.lock"),  # published, and still locked
]


@pytest.mark.slow
def test_a_build_that_is_killed_again_and_again_comes_out_the_same(half: Place, finished: Finished) -> None:
    def killed_at(event: str, pattern: str, **options: Any) -> None:
        command = half.build_command(**options)
        assert half.run(sys.executable, "-c", KILLER, event, pattern, *command).code == -signal.SIGKILL, (
            f"the build got past {event} {pattern}"
        )
        half.assert_sound()

    for event, pattern in INSTANTS:
        killed_at(event, pattern)
        assert half.artifact.exists() == (event == "os.remove")
    last = half.build()
    assert (last.fresh, last.digests) == ([], finished.run.digests)
    half.assert_clean()

    # One that replaces an artifact: the old one stays until the new one takes its place, in one step.
    for event, pattern, wanted, shown in [
        ("shutil.rmtree", "*/.demo-int4.*", 8, 8),  # the old one is on its way out
        ("ctypes.dlsym", "renameat2", 4, 8),  # the new one is complete beside it
    ]:
        killed_at(event, pattern, set_=(f"engine.max_batch_size={wanted}",))
        assert f"max_batch_size: {shown}\n" in (half.artifact / "recipe.yaml").read_text()
    assert half.build(set_=("engine.max_batch_size=4",)).fresh == []
    half.assert_clean()


@pytest.mark.slow
def test_two_builds_at_once_share_the_work(empty: Place, finished: Finished) -> None:
    builds = [empty.start(str(LLMBUILD), *empty.build_command()) for _ in range(2)]
    one, other = [end(process) for process in builds]
    assert one.digests == other.digests == finished.run.digests
    assert sorted(one.fresh + other.fresh) == sorted(STAGES)
    assert any("waiting for process" in note for note in one.notes + other.notes)
    empty.assert_sound()
    empty.assert_clean()


# Disks


@pytest.fixture
def disk(tmp_path: Path) -> Callable[..., list[Run]]:
    """Runs steps of a shell in one mount namespace; `mount_it SIZE` and `remount_it OPTIONS` are the store's
    small disk. Returns how each step ended."""
    probe = ["unshare", "--user", "--map-root-user", "--mount", "mount", "-t", "tmpfs", "none", str(tmp_path)]
    if shutil.which("unshare") is None or subprocess.run(probe, capture_output=True, check=False).returncode:
        pytest.skip("tmpfs cannot be mounted here, not even in a user namespace")

    def run(place: Place, *steps: str) -> list[Run]:
        place.store.mkdir(exist_ok=True)
        script = f"""
            mount_it() {{ mount -t tmpfs -o "size=$1" none '{place.store}'; }}
            remount_it() {{ mount -o "remount,$1" '{place.store}'; }}
        """
        for number, step in enumerate(steps):
            script += f"\n{{ {step}; }} > {number}.out 2> {number}.err; echo $? > {number}.code"
        assert place.run(*probe[:4], "bash", "-c", script).code == 0
        return [
            Run(
                int((place.path / f"{number}.code").read_text()),
                (place.path / f"{number}.out").read_text(),
                (place.path / f"{number}.err").read_text(),
            )
            for number in range(len(steps))
        ]

    return run


def shell_build(place: Place, *set_: str) -> str:
    return " ".join(f"'{word}'" for word in (str(LLMBUILD), *place.build_command(set_=set_)))


def assert_full(run: Run) -> None:
    said = run.failed(7)
    assert "No space left on device" in said
    assert "fix: free space, run `llmbuild store gc`, or point LLMBUILD_STORE at a larger disk" in said
    assert json.loads(run.stdout)["error"]["exit_code"] == 7


@pytest.mark.slow
def test_a_disk_that_fills_up_while_quantizing(empty: Place, finished: Finished, disk: Any) -> None:
    _, full, _, again = disk(
        empty, "mount_it 3m", shell_build(empty), "remount_it size=100m", shell_build(empty)
    )
    assert_full(full)
    assert any(note.startswith("quantize: resuming") for note in again.notes)
    assert again.digests == finished.run.digests


@pytest.mark.slow
def test_a_disk_that_fills_up_while_the_engine_is_written(half: Place, finished: Finished, disk: Any) -> None:
    half.store.rename(half.path / "kept")
    _, _, full, _, again = disk(
        half, "mount_it 12m", f"cp -a kept/. '{half.store}'", shell_build(half), "remount_it size=100m",
        shell_build(half),
    )  # fmt: skip
    assert_full(full)
    assert again.fresh == ["engine", "repository"]
    assert again.digests == finished.run.digests


@pytest.mark.slow
def test_a_full_disk_is_named(half: Place, disk: Any) -> None:
    half.store.rename(half.path / "kept")
    *_, full = disk(half, "mount_it 12m", f"cp -a kept/. '{half.store}'", shell_build(half))
    assert str(half.store) in full.failed(7)


@pytest.mark.slow
def test_a_read_only_store_gives_what_it_has(whole: Place, finished: Finished, disk: Any) -> None:
    whole.store.rename(whole.path / "kept")
    *_, cached, new = disk(
        whole, "mount_it 100m", f"cp -a kept/. '{whole.store}'", "remount_it ro", shell_build(whole),
        shell_build(whole, "engine.max_batch_size=8"),
    )  # fmt: skip
    assert (cached.fresh, cached.digests) == ([], finished.run.digests)
    said = new.failed(7)
    assert "Read-only file system" in said
    assert str(whole.store) in said
    assert "fix: point LLMBUILD_STORE at a writable directory" in said


# Broken sources


def _poison(model: Path) -> None:
    location = Checkpoint.open(model).location("model.layers.3.mlp.up_proj.weight")
    with (model / "model.safetensors").open("r+b") as file:
        file.seek(location.offset + 100)
        file.write(b"\xc0\x7f")  # a NaN in bfloat16


def _truncate(model: Path) -> None:
    os.truncate(model / "model.safetensors", 10_000_000)


def _drop_tensor(model: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(model / "model.safetensors")
    del tensors["model.layers.5.self_attn.k_proj.weight"]
    save_file(tensors, model / "model.safetensors")


def _name_missing_shard(model: Path) -> None:
    names = Checkpoint.open(model).names
    (model / "model.safetensors").rename(model / "model-00001-of-00002.safetensors")
    index = {"weight_map": dict.fromkeys(names, "model-00002-of-00002.safetensors")}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))


def _rename_architecture(model: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"architectures": ["MambaForCausalLM"]}))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (_poison, ["NaN", "model.layers.3.mlp.up_proj.weight"]),
        (_truncate, ["model.safetensors", "10000000"]),
        (_drop_tensor, ["model.layers.5.self_attn.k_proj.weight"]),
        (_name_missing_shard, ["model-00002-of-00002.safetensors"]),
        (_rename_architecture, ["MambaForCausalLM", "config.json"]),
    ],
    ids=lambda value: value.__name__.strip("_") if callable(value) else "",
)
def test_a_broken_model_is_refused_before_any_work(
    empty: Place, damage: Callable[[Path], None], told: list[str]
) -> None:
    model = empty.path / "model"
    shutil.copytree(DEMO, model)
    damage(model)

    said = empty.build(set_=(f"model.source={model}",)).failed(2)

    assert [each for each in told if each not in said] == []
    assert "fix: " in said
    assert not empty.artifact.exists()
    if empty.store.exists():
        assert list((empty.store / "objects").iterdir()) == []


# Serving what was built

PROMPTS = ("def read_lines(path):\n", "import os\nimport sys\n\n", "class Queue:\n    def __init__(self")


@pytest.mark.slow
@pytest.mark.triton
@pytest.mark.usefixtures("triton")
def test_a_copy_needs_no_store(whole: Place) -> None:
    whole.build()
    copy = whole.path / "elsewhere" / "model"
    shutil.copytree(whole.artifact, copy)  # follows links, as cp -rL does
    shutil.rmtree(whole.store)
    shutil.rmtree(whole.out)

    inspected = whole.llmbuild("inspect", str(copy), "--verify")
    assert inspected.code == 0, inspected.stderr
    assert "every file is what was published" in inspected.stdout
    with TritonServer.start(copy / "repository") as server, Client(server.endpoints.grpc) as client:
        assert client.complete(PROMPTS[0], max_tokens=8)
    assert not whole.store.exists()


@dataclass(frozen=True)
class Reference:
    """transformers on the weights that a quantized checkpoint stands for, in float32."""

    model: Any
    tokenizer: Any

    @classmethod
    def of(cls, directory: Path) -> Reference:
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

        from quantize.formats.checkpoint import QuantizedCheckpoint
        from quantize.linear import QuantizedLinear

        config = AutoConfig.from_pretrained(DEMO)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
        stored = QuantizedCheckpoint.open(directory)
        weights: dict[str, torch.Tensor] = {}
        for name in model.state_dict():
            module = name.removesuffix(".weight")
            if name == "lm_head.weight":  # tied to the embedding
                continue
            if isinstance(model.get_submodule(module), torch.nn.Linear):
                linear = stored.linear(module)
                assert isinstance(linear, QuantizedLinear)
                weights[name] = linear.dequantize()
            else:
                weights[name] = stored.read(name).float()
        missing = model.load_state_dict(weights, strict=False)
        assert (missing.missing_keys, missing.unexpected_keys) == (["lm_head.weight"], [])
        model.tie_weights()
        return cls(model, AutoTokenizer.from_pretrained(directory))

    def greedy(self, prompt: str, max_tokens: int) -> tuple[str, float]:
        """The text, and by how much the closest runner-up to a token was behind, in logits."""
        import torch

        ids = self.tokenizer(prompt, return_tensors="pt").input_ids
        with torch.inference_mode():
            answer = self.model.generate(
                ids, max_new_tokens=max_tokens, do_sample=False, pad_token_id=0,
                return_dict_in_generate=True, output_logits=True,
            )  # fmt: skip
        best = torch.cat(answer.logits).topk(2).values
        margin = float((best[:, 0] - best[:, 1]).min())
        return self.tokenizer.decode(answer.sequences[0, ids.shape[1] :], skip_special_tokens=True), margin


@pytest.mark.slow
@pytest.mark.triton
@pytest.mark.usefixtures("triton")
def test_exact_precision_is_served_as_the_weights_say(half: Place) -> None:
    recipe = load_recipe(RECIPE, [*SMALL, "engine.precision=exact"])
    built = build_recipe(recipe, out=half.out, store=Store.open(half.store))
    assert [result.stage.name for result in built.results if result.outcome == "run"] == [
        "engine",
        "repository",
    ]
    artifact = Artifact.open(built.artifact)
    assert artifact.facts("repository")["precision"] == "exact"
    reference = Reference.of(artifact.dir("quantize"))
    expected = {}
    for prompt in PROMPTS:
        expected[prompt], margin = reference.greedy(prompt, 32)
        assert margin > 1e-3, "a tie says nothing about the arithmetic: choose another prompt"

    with serve_artifact(built.artifact) as server, Client(server.endpoints.grpc) as client:

        def ask(prompt: str, stream: bool) -> str:
            return client.complete(prompt, max_tokens=32, stream=stream, timeout_s=PATIENCE_S)

        with ThreadPoolExecutor(6) as pool:
            asked = [
                (prompt, pool.submit(ask, prompt, stream)) for prompt in PROMPTS for stream in (True, False)
            ]
        for prompt, answer in asked:
            assert answer.result() == expected[prompt]
