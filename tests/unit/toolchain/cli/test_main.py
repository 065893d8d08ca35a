"""The command line as a user types it: real argv, real files, exit codes."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from deploy.running import announced
from toolchain import errors
from toolchain.cli.common import table
from toolchain.cli.main import app

CONFIGS = Path(__file__).parents[4] / "configs"


def llmbuild(*argv, env=None):
    return CliRunner().invoke(app, [str(arg) for arg in argv], env=env)


def commands(group=None, prefix=()):
    """Every verb as (words, command)."""
    group = group or typer.main.get_command(app)
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, (*prefix, name))
        else:
            yield (*prefix, name), command


VERBS = dict(commands())


@pytest.fixture
def broken(tmp_path):
    path = tmp_path / "broken.yaml"
    path.write_text("schema: 1\nname: x\nmodel: {source: ./m}\nquantization: {methd: awq}\n")
    return path


def test_the_verbs_are_all_there():
    wanted = {"init", "ls", "show", "validate", "plan", "build", "inspect", "serve", "generate"}
    assert {words[0] for words in VERBS} >= wanted | {"eval", "export", "store", "doctor", "schema"}


@pytest.mark.parametrize("words", VERBS, ids=" ".join)
def test_every_verb_has_json_and_an_example(words):
    command = VERBS[words]
    assert any("--json" in parameter.opts for parameter in command.params)
    assert re.search(r"Example: llmbuild " + " ".join(words), command.help)


def test_start_up_imports_nothing_heavy():
    code = (
        "import sys, toolchain.cli.main; "
        "print([m for m in ('torch', 'transformers', 'openvino', 'numpy', 'pydantic', 'rich', 'yaml') "
        "if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.UsageError, 2), (errors.ModelError, 2), (errors.PlanError, 3), (errors.GateError, 4),
        (errors.ToolchainError, 5), (errors.QuantizeError, 6), (errors.BuildError, 6),
        (errors.PackageError, 6), (errors.LaunchError, 6), (errors.RequestError, 6), (errors.StoreError, 7),
    ],
)  # fmt: skip
def test_exit_codes(error, code):
    assert error("x").exit_code == code
    assert errors.RecipeError([]).exit_code == 2
    assert errors.EXIT_INTERRUPTED == 130


def test_a_broken_recipe_exits_with_2_and_its_place(broken):
    result = llmbuild("validate", broken)
    assert result.exit_code == 2
    assert f"{broken}:4:16" in result.stderr
    assert "method" in result.stderr
    assert result.stdout == ""


def test_several_recipes_are_checked_at_once(broken):
    result = llmbuild("validate", "demo-int4", broken, "llama8b-fp8")
    assert result.exit_code == 2
    assert result.stdout == "demo-int4: valid\nllama8b-fp8: valid\n"
    assert f"{broken}:4:16" in result.stderr


def test_json_errors_go_to_stdout(broken):
    result = llmbuild("validate", broken, "--json")
    assert result.exit_code == 2
    problem = json.loads(result.stdout)["error"]["problems"][0]
    assert problem["where"] == f"{broken}:4:16"


def test_plan_of_some_gpus_as_json_and_picture(tmp_path):
    picture = tmp_path / "memory.svg"
    options = ("--gpu", "h200x4", "--set", "parallelism.tensor=auto", "--svg", picture, "--json")
    result = llmbuild("plan", "llama70b-int4", *options)
    assert result.exit_code == 0
    plan = json.loads(result.stdout)
    assert plan["parallelism"] == {"tensor": 1, "pipeline": 1, "ranks": 1}
    assert plan["choices"][0]["reason"].startswith("fits one GPU: not sharded")
    assert plan["kv_cache"]["sequences_fit"]["8192"] > 64
    assert picture.read_text().startswith("<svg ")
    assert llmbuild("plan", "llama70b-int4", "--gpu", "h20x4").exit_code == 2


def test_a_plan_that_cannot_work_is_one_json_object_too():
    result = llmbuild("plan", "llama70b-int4", "--set", "parallelism.tensor=3", "--json")
    assert result.exit_code == 3
    assert "64 attention heads cannot be split 3 ways" in json.loads(result.stdout)["problems"][0]["what"]
    assert "plan error: parallelism.tensor: 64 attention heads" in result.stderr


def test_bars_on_a_terminal_without_unicode():
    argv = [sys.executable, "-m", "toolchain.cli.main", "plan", "llama70b-int4"]
    env = os.environ | {"PYTHONIOENCODING": "ascii"}
    result = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=60, env=env)
    assert "|####" in result.stdout


def test_plan_needs_no_torch_and_little_time(tmp_path):
    code = (
        "import sys, time; from toolchain.cli.main import app\n"
        "try: app()\n"
        "except SystemExit as end:\n"
        "    heavy = {'torch', 'transformers', 'openvino'} & set(sys.modules)\n"
        "    print(end.code, sorted(heavy), time.process_time(), file=sys.stderr)"
    )
    argv = ["plan", "llama70b-int4", "--gpu", "h100x8", "--set", "parallelism.tensor=auto"]
    argv += ["--set", "quantization.method=auto"]
    result = subprocess.run(
        [sys.executable, "-c", code, *argv], capture_output=True, text=True, check=True, timeout=60
    )
    exit_code, heavy, seconds = result.stderr.strip().splitlines()[-1].rsplit(maxsplit=2)
    assert (exit_code, heavy) == ("0", "[]")
    # Of processor time, about one on an idle machine. The clock's depends on who else computes.
    assert float(seconds) < 4


def test_plan_that_cannot_work_exits_with_3():
    result = llmbuild("plan", CONFIGS / "llama70b-int4.yaml", "--set", "parallelism.tensor=3")
    assert result.exit_code == 3
    assert "64 attention heads cannot be split 3 ways" in result.stderr


def test_gpu_recipe_without_its_tools_exits_with_5_before_any_work(tmp_path):
    result = llmbuild(
        "build",
        "llama70b-int4",
        "--out",
        tmp_path / "artifacts",
        env={"LLMBUILD_STORE": str(tmp_path / "store")},
    )
    assert result.exit_code == 5
    assert "--until convert" in result.stderr
    assert not (tmp_path / "artifacts").exists()
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--target", "nomad"], "use local, mpirun, slurm, kubernetes"),
        (["--http-port", "8001"], "two of the ports are the same"),
        ([], "there is no such directory here"),
    ],
)
def test_launch_refuses_what_it_cannot_do(tmp_path, options, message):
    result = llmbuild("launch", tmp_path / "nothing", *options)
    assert result.exit_code == 2
    assert message in result.stderr


def test_serve_wants_the_gateway_for_its_options(tmp_path):
    run = llmbuild("serve", tmp_path, "--api-keys", tmp_path / "keys", "--rate-limit", 5)
    assert run.exit_code == 2
    assert "--api-keys and --rate-limit: of the gateway, which was not asked for" in run.stderr
    assert "fix: add --openai" in run.stderr


def test_unknown_stage_names_the_stages():
    result = llmbuild("build", "demo-int4", "--until", "quantise")
    assert result.exit_code == 2
    assert "source, quantize, gate, convert, engine, repository" in result.stderr


@pytest.mark.parametrize("verb", ["inspect", "serve", "generate"])
def test_missing_artifact(verb, tmp_path):
    arguments = [verb, tmp_path, *(["hello"] if verb == "generate" else [])]
    result = llmbuild(*arguments)
    assert result.exit_code == 2
    assert "artifact" in result.stderr


def test_shipped_recipe_by_name():
    assert llmbuild("validate", "demo-int4").exit_code == 0
    result = llmbuild("show", "demo-int4", "--set", "engine.max_batch_size=3", "--json")
    assert json.loads(result.stdout)["engine"]["max_batch_size"] == 3


def test_ls_lists_the_demo_first():
    names = [recipe["name"] for recipe in json.loads(llmbuild("ls", "--json").stdout)]
    assert names[0] == "demo-int4"
    assert set(names) == {path.stem for path in CONFIGS.glob("*.yaml")}


@pytest.mark.parametrize("like", sorted(path.stem for path in CONFIGS.glob("*.yaml")))
def test_init_writes_a_recipe_that_holds_where_it_is(like, tmp_path):
    path = tmp_path / "deep" / "mine.yaml"
    path.parent.mkdir()
    assert llmbuild("init", path, "--like", like).exit_code == 0
    shown = json.loads(llmbuild("show", path, "--json").stdout)
    original = json.loads(llmbuild("show", like, "--json").stdout)
    assert shown["name"] == "mine"
    assert shown["engine"] == original["engine"]
    source = shown["model"]["source"]
    assert Path(source).is_dir() if source.startswith(".") or source.startswith("/") else source
    assert llmbuild("plan", path).exit_code == 0
    again = llmbuild("init", path)
    assert again.exit_code == 2
    assert "exists" in again.stderr


def test_init_with_a_model_of_ones_own(tmp_path):
    assert (
        llmbuild("init", tmp_path / "r.yaml", "--like", "llama8b-fp8", "--model", "org/name").exit_code == 0
    )
    assert "source: org/name " in (tmp_path / "r.yaml").read_text()


def test_explain_and_schema():
    assert "awq" in llmbuild("explain", "quantization.method").stdout
    assert llmbuild("explain", "engine.max_batch").exit_code == 2
    assert json.loads(llmbuild("schema").stdout)["properties"]["quantization"]
    assert llmbuild("schema", "--check", CONFIGS / "recipe.schema.json").exit_code == 0


def test_compat_is_the_table_by_which_recipes_are_judged():
    assert "fp8 " in llmbuild("compat").stdout
    rows = json.loads(llmbuild("compat", "--gpu", "a100-80g", "--flavour", "pytorch", "--json").stdout)
    assert "awq" in [row["method"] for row in rows]
    assert "fp8" not in [row["method"] for row in rows]
    assert llmbuild("compat", "--gpu", "a1000").exit_code == 2


def test_compat_lists_the_releases():
    assert "26.07 26.06 26.05 26.04" in llmbuild("compat", "--releases").stdout
    rows = json.loads(llmbuild("compat", "--releases", "--flavour", "tensorrt", "--json").stdout)
    assert rows[0]["version"] == "0.17.0"
    assert rows[-1]["version"] == "1.3.0rc15"
    assert llmbuild("compat", "--releases", "--flavour", "vllm").exit_code == 2


def test_compat_says_whether_engines_load(tmp_path):
    mapping = {"world_size": 2, "tp_size": 2, "pp_size": 1}
    config = {"version": "1.2.1", "pretrained_config": {"mapping": mapping}, "build_config": {}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    engine = ("compat", "--engine", tmp_path)
    assert "2 (2 tensor x 1 pipeline)" in llmbuild(*engine, "--container", "26.07").stdout
    assert json.loads(llmbuild(*engine, "--json").stdout)["tensorrt_llm"] == "1.2.1"
    refused = llmbuild(*engine, "--version", "1.1.0", "--ranks", "1")
    assert refused.exit_code == 5
    assert "serve with nvcr.io/nvidia/tritonserver:26.07" in refused.stderr
    assert "start 2 ranks" in refused.stderr
    assert llmbuild("compat", "--ranks", "2").exit_code == 2


def test_doctor_looks_at_everything(tmp_path):
    findings = json.loads(llmbuild("doctor", "--json", env={"LLMBUILD_STORE": str(tmp_path)}).stdout)
    by_name = {finding["what"]: finding for finding in findings}
    assert by_name["Triton"]["ok"]
    assert all(finding["ok"] or finding["fix"] for finding in findings)


def test_store_on_a_fresh_machine(tmp_path):
    env = {"LLMBUILD_STORE": str(tmp_path / "store")}
    assert json.loads(llmbuild("store", "list", "--json", env=env).stdout) == []
    assert json.loads(llmbuild("store", "size", "--json", env=env).stdout)["total"] == 0
    assert "freed 0 B" in llmbuild("store", "gc", env=env).stdout
    assert "every stored byte" in llmbuild("store", "verify", env=env).stdout


def test_version_and_completion():
    assert re.fullmatch(r"\d+\.\d+\.\d+\n", llmbuild("--version").stdout)
    script = subprocess.run(
        [sys.executable, "-c", "from toolchain.cli.main import main; main()", "--show-completion"],
        env={"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1", "PATH": "/usr/bin"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "Traceback" not in script.stderr


def process(*argv, **options):
    """The console script in a process of its own: real bytes in argv, a real standard output."""
    command = [sys.executable, "-c", "from toolchain.cli.main import main; main()", *argv]
    return subprocess.run(command, check=False, stderr=subprocess.PIPE, **options)


def test_main_turns_telemetry_of_libraries_off(monkeypatch):
    code = (
        "import os, sys, toolchain.cli.main as m; sys.argv = ['llmbuild', '--version']\n"
        "try: m.main()\nexcept SystemExit: pass\n"
        "print(os.environ['HF_HUB_DISABLE_TELEMETRY'], os.environ['DO_NOT_TRACK'])"
    )
    monkeypatch.delenv("HF_HUB_DISABLE_TELEMETRY", raising=False)
    monkeypatch.setenv("DO_NOT_TRACK", "0")  # a user's setting wins
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.splitlines()[-1] == "1 0"


def test_a_full_disk_under_the_output_is_an_error():
    with Path("/dev/full").open("w") as full:
        result = process("show", "demo-int4", stdout=full)
    assert result.returncode == 6
    assert result.stderr == b"error: input or output failed: No space left on device\n"


@pytest.mark.parametrize(
    "argv",
    [
        ["generate", b"\xff:1", "hi"], ["generate", "127.0.0.1:1", b"\xff"], ["validate", b"\xff"],
        ["init", "s.yaml", "--model", b"\xff"],
    ],
)  # fmt: skip
def test_arguments_that_are_not_utf8(argv, tmp_path):
    result = process(*argv, cwd=tmp_path, stdout=subprocess.DEVNULL)
    assert result.returncode == 2
    assert rb"\udcff" in result.stderr
    assert b"Traceback" not in result.stderr
    assert not list(tmp_path.iterdir())


def test_a_path_that_is_not_utf8_is_printed_escaped(tmp_path):
    result = process("init", b"\xff.yaml", "--json", cwd=tmp_path, stdout=subprocess.PIPE)
    assert json.loads(result.stdout) == {"written": "\udcff.yaml"}
    assert (tmp_path / "\udcff.yaml").is_file()


@pytest.mark.parametrize("argv", [["validate"], ["plan"], ["inspect"], ["generate", "--", "x"]])
def test_an_argument_longer_than_any_path(argv):
    result = llmbuild(argv[0], "a" * 5000, *argv[1:])
    assert (result.exit_code, type(result.exception)) == (2, SystemExit)
    assert "File name too long" in result.stderr
    assert len(result.stderr) < 500


@pytest.mark.parametrize("verb", ["inspect", "serve", "generate"])
def test_an_empty_path_is_not_the_working_directory(verb):
    result = llmbuild(verb, "", *(["hello"] if verb == "generate" else []))
    assert result.exit_code == 2
    assert "empty" in result.stderr


def test_a_shipped_recipe_beside_a_directory_of_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo-int4").mkdir()
    assert llmbuild("validate", "demo-int4").exit_code == 0


def test_what_is_no_recipe_is_told_with_the_nearest_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dir.yaml").mkdir()
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "recipe.yaml").touch()
    result = llmbuild("validate", "demo-in4", "dir.yaml", "made", "demo-bf16")
    assert (result.exit_code, result.stdout) == (2, "demo-bf16: valid\n")
    assert "did you mean demo-int4?" in result.stderr
    assert "dir.yaml: this is a directory" in result.stderr
    assert "name its recipe: made/recipe.yaml" in result.stderr


def test_a_title_does_not_wrap(capsys):
    table(["a"], [["[b]"]], title="a title that is wider than its table (pid 6128)")
    assert capsys.readouterr().out == "a title that is wider than its table (pid 6128)\na\n[b]\n"


@pytest.mark.parametrize(
    "options",
    [
        ["serve", "x", "--timeout", "nan"], ["serve", "x", "--timeout", "-1"],
        ["serve", "x", "--drain", "-5"], ["serve", "x", "--http-port", "70000"],
        ["serve", "x", "--grpc-port", "-1"], ["serve", "x", "--http-port", "9000", "--grpc-port", "9000"],
        ["store", "gc", "--older-than", "nan"], ["store", "gc", "--older-than", "-5"],
        ["store", "gc", "--older-than", "inf"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_numbers_out_of_range(options, tmp_path):
    result = llmbuild(*options, env={"LLMBUILD_STORE": str(tmp_path / "store")})
    assert result.exit_code == 2
    assert not (tmp_path / "store").exists()


def test_schema_with_files_that_cannot_be_used(tmp_path):
    binary = tmp_path / "binary"
    binary.write_bytes(b"\xff\x00")
    assert "is not the current schema" in llmbuild("schema", "--check", binary).stderr
    missing = llmbuild("schema", "--check", tmp_path / "none")
    assert missing.exit_code == 2
    assert "cannot read the schema: No such file" in missing.stderr
    unwritable = llmbuild("schema", "--write", tmp_path)
    assert unwritable.exit_code == 2
    assert "LLMBUILD_STORE" not in unwritable.stderr


@pytest.fixture
def model(tmp_path):
    """The demo model in a directory of its own, its weights linked."""
    source = CONFIGS.parent / "models" / "demo"
    directory = tmp_path / "model"
    directory.mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (directory / name).write_bytes((source / name).read_bytes())
    (directory / "model.safetensors").symlink_to(source / "model.safetensors")
    return directory


def build(tmp_path, *options, out=None):
    env = {"LLMBUILD_STORE": str(tmp_path / "store")}
    return llmbuild("build", "demo-int4", "--out", out or tmp_path / "artifacts", *options, env=env)


@pytest.mark.parametrize("bad", ["none", "/dev/null", ".", "\x00"])
def test_calibration_data_is_looked_for_before_any_work(bad, tmp_path):
    result = build(tmp_path, "--set", f"quantization.calibration.dataset=file:{bad}")
    assert result.exit_code == 2
    assert "fix:" in result.stderr
    assert not (tmp_path / "store").exists()


def test_out_that_cannot_be_written_is_found_before_any_work(tmp_path):
    file = tmp_path / "file"
    file.touch()
    for out in (file, file / "below", "/sys/llmbuild"):
        result = build(tmp_path, out=out)
        assert result.exit_code == 2
        assert str(out) in result.stderr
        assert not (tmp_path / "store").exists()


def test_a_working_directory_that_is_gone(tmp_path, monkeypatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert build(tmp_path, out="artifacts").exit_code == 2
    assert not (tmp_path / "store").exists()


def _break(file):
    file.write_text("{")


def _outgrow(file):
    tokenizer = json.loads(file.read_text())
    tokenizer["added_tokens"].append({**tokenizer["added_tokens"][0], "content": "<new>", "id": 10**6})
    file.write_text(json.dumps(tokenizer))


def _leave_sentencepiece(file):
    file.rename(file.with_suffix(".model"))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (Path.unlink, "the model has no tokenizer.json\n"),
        (_leave_sentencepiece, "save_pretrained"),
        (_break, "the tokenizer cannot be loaded"),
        (_outgrow, "the tokenizer has token"),
    ],
)
def test_a_tokenizer_that_cannot_serve_is_found_first(spoil, said, model, tmp_path):
    spoil(model / "tokenizer.json")
    result = build(tmp_path, "--set", f"model.source={model}", "--set", "quantization.method=none")
    assert result.exit_code == 2
    assert said in result.stderr
    assert str(model) in result.stderr
    assert "fix:" in result.stderr
    assert "finite" not in result.stderr  # no weight was read


HELDOUT = CONFIGS.parent / "models" / "demo" / "heldout.txt"


def gated(tmp_path, *options, **gates):
    """Build up to the gate, unquantized: a few small windows, and thresholds for them."""
    given = {"windows": 2, "window": 64, "max_increase": "null"} | gates
    sets = [f"gates.perplexity.{name}={value}" for name, value in given.items()] + [
        "quantization.method=none"
    ]
    until = ["--until", "gate"] if "--until" not in options else []
    return build(tmp_path, *until, *options, *(word for text in sets for word in ("--set", text)))


def test_a_gate_stops_the_build_until_its_threshold_allows_what_was_measured(tmp_path):
    artifact = tmp_path / "artifacts" / "demo-int4"
    failed = gated(tmp_path, "--until", "repository", max=2)
    assert failed.exit_code == 4
    assert "gates.perplexity.max: the perplexity is" in failed.stderr
    assert len(re.findall(r"layer +\d+ +0.00% by itself", failed.stderr)) == 5
    assert "engine:" not in failed.stderr
    assert not artifact.exists()

    passed = gated(tmp_path, max=1000)
    assert passed.exit_code == 0
    assert "gate: cached" in passed.stderr  # judged anew, not measured anew
    gates = json.loads(llmbuild("inspect", artifact, "--json").stdout)["gates"]
    assert gates["perplexity"]["passed"] is True
    assert gates["perplexity"]["increase"] == 0
    assert json.loads((artifact / "gate" / "gate.json").read_text())["texts"]["perplexity"]["windows"] == 2

    again = gated(tmp_path, max=2)
    assert again.exit_code == 4
    assert "gate: cached" in again.stderr
    assert "gate: running" in gated(tmp_path, max=1000, stride=32).stderr


def test_a_failed_gate_says_so_in_json(tmp_path):
    result = gated(tmp_path, "--json", max=2)
    error = json.loads(result.stdout)["error"]
    assert (error["kind"], error["exit_code"], error["where"]) == ("gate", 4, "gates.perplexity.max")


@pytest.mark.parametrize("bad", ["none", "/dev/null", "."])
def test_held_out_text_is_looked_for_before_any_work(bad, tmp_path):
    result = gated(tmp_path, dataset=f"file:{bad}")
    assert result.exit_code == 2
    assert "gates.perplexity.dataset" in result.stderr
    assert not (tmp_path / "store").exists()


def test_held_out_text_of_the_hub_is_looked_for_before_any_work(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    result = gated(tmp_path, dataset="hf:owner/name", max=9)
    assert result.exit_code == 5
    assert "the data set owner/name is not here, and the Hub cannot be reached" in result.stderr
    assert not (tmp_path / "store").exists()
    assert gated(tmp_path, "--until", "source", dataset="hf:owner/name", max=9).exit_code == 0


@pytest.mark.parametrize("option", ["--until", "--force"])
def test_without_gates_there_is_no_stage_gate(option, tmp_path):
    result = build(tmp_path, option, "gate", "--set", "gates.perplexity=null")
    assert result.exit_code == 2
    assert "the recipe has no gate" in result.stderr


def test_a_checkpoint_answers_where_no_engine_can(tmp_path):
    smoke = "gates.smoke={prompts: 2, max_tokens: 2}"
    result = build(
        tmp_path,
        *("--until", "gate", "--set", smoke, "--set", "gates.perplexity=null"),
        *("--set", "engine.flavour=vllm", "--set", "quantization.method=none"),
    )
    assert result.exit_code == 0, result.stderr
    artifact = tmp_path / "artifacts" / "demo-int4"
    gates = json.loads(llmbuild("inspect", artifact, "--json").stdout)["gates"]
    assert gates["smoke"] == {"passed": True, "prompts": 2, "max_gap": 0.5, "gap": 0, "same": 1}
    assert "The capital of France is" in (artifact / "report.html").read_text()


def test_eval_of_a_checkpoint_and_of_an_artifact(model, tmp_path):
    options = ["--dataset", f"file:{HELDOUT}", "--window", "64", "--windows", "2"]
    shown = llmbuild("eval", model, "--source", model, *options)
    assert shown.exit_code == 0
    assert "126 tokens predicted, windows of 64, stride 64" in shown.stdout
    figures = json.loads(llmbuild("eval", model, "--source", model, *options, "--json").stdout)
    assert f"{figures['source_perplexity']:.4f}" in shown.stdout
    assert (figures["kl"], figures["top1"]) == (0, 1)

    assert gated(tmp_path, max=1000).exit_code == 0
    artifact = tmp_path / "artifacts" / "demo-int4"
    again = json.loads(llmbuild("eval", artifact, *options, "--json").stdout)
    assert again == figures | {"path": str(artifact)}

    together = llmbuild("eval", model, artifact, *options)
    assert [line.split()[0] for line in together.stdout.splitlines()[2:]] == [
        "source",
        "source",
        str(model),
        str(artifact),
    ]
    both = json.loads(llmbuild("eval", model, artifact, *options, "--json").stdout)
    assert [one["path"] for one in both] == [str(model), str(artifact)]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "does not say which model it was made from"),
        (["--source", "./none"], "./none does not exist"),
        (["--dataset", "heldout.txt"], "a local file, file:PATH"),
        (["--dataset", "file:none.txt"], "there is no such held-out text file"),
        (["--window", "2000"], "the model's context of 1024"),
        (["--window", "8", "--stride", "9"], "a stride of 9 tokens"),
    ],
)
def test_eval_of_what_cannot_be_measured(options, said, model):
    source = [] if not options or "--source" in options else ["--source", str(model)]
    dataset = [] if "--dataset" in options else ["--dataset", f"file:{HELDOUT}"]
    result = llmbuild("eval", model, *source, *dataset, *options)
    assert result.exit_code == 2
    assert said in result.stderr
    assert "fix:" in result.stderr


def test_a_model_that_is_a_file(tmp_path):
    result = build(tmp_path, "--set", f"model.source={__file__}")
    assert result.exit_code == 2
    assert "is not a directory" in result.stderr


def test_an_announced_server_that_does_not_answer_is_passed_over(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    artifact = tmp_path / "artifact"
    artifact.mkdir()
    (artifact / "manifest.json").write_text("{}")
    with announced(artifact, "127.0.0.1:1", "http://127.0.0.1:1"):
        result = llmbuild("generate", artifact, "hello")
    assert f"starting Triton for {artifact}" in result.stderr  # which fails: the manifest is empty
    assert "no server answers" not in result.stderr


def test_export_and_inspect_say_how_a_checkpoint_is_quantized(tmp_path):
    data = CONFIGS.parent / "tests" / "data" / "quantized"
    result = llmbuild(
        "export", data / "gptqmodel/gptq", "--format", "awq", "--out", tmp_path / "out", "--json"
    )
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["quantization"]["format"] == "awq"
    shown = llmbuild("inspect", tmp_path / "out").stdout
    assert shown.startswith("LlamaForCausalLM, W4A16_AWQ in the form awq, ")
    assert re.search(r"^ *7 +W4A16_AWQ +4 +32 +no +consecutive$", shown, re.MULTILINE)
    result = llmbuild(
        "export", data / "gptqmodel/gptq_desc_act", "--format", "modelopt", "--out", tmp_path / "b"
    )
    assert result.exit_code == errors.QuantizeError.exit_code
    assert "ModelOpt's form has no g_idx" in result.stderr
    assert not (tmp_path / "b").exists()
