"""The command line as a user types it: real argv, real files, exit codes."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from toolchain import errors
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
    assert {words[0] for words in VERBS} >= wanted | {"store", "doctor", "schema"}


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
    assert "--until quantize" in result.stderr
    assert not (tmp_path / "artifacts").exists()
    assert not (tmp_path / "store").exists()


def test_unknown_stage_names_the_stages():
    result = llmbuild("build", "demo-int4", "--until", "quantise")
    assert result.exit_code == 2
    assert "source, quantize, engine, repository" in result.stderr


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
