"""`load_recipe`: composition, overrides, paths, and that nothing but RecipeError ever comes out."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from toolchain.errors import LlmbuildError, RecipeError
from toolchain.recipe import load_recipe
from toolchain.recipe.catalog import configs_dir
from toolchain.recipe.fields import all_paths

Write = Callable[[str, str], Path]

MINIMAL = "schema: 1\nname: minimal\nmodel: {source: org/name}\n"


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write_file(name: str, text: str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
        return path

    return write_file


def test_a_minimal_recipe_gets_defaults(write: Write) -> None:
    recipe = load_recipe(write("r.yaml", MINIMAL))
    assert recipe.name == "minimal"
    assert recipe.quantization.method == "none"
    assert recipe.engine.flavour == "openvino"
    assert recipe.engine.kv_cache.paged
    assert recipe.deploy.batching == "inflight_fused"
    assert recipe.parallelism.world_size == 1
    assert recipe.gates.perplexity is None


def test_a_byte_order_mark_and_windows_line_ends_are_fine(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + MINIMAL.replace("\n", "\r\n").encode())
    assert load_recipe(path).name == "minimal"


def test_anchors_and_aliases_of_plain_values_work(write: Write) -> None:
    text = MINIMAL + "engine: {max_seq_len: &n 512, max_num_tokens: *n}\n"
    assert load_recipe(write("r.yaml", text)).engine.max_num_tokens == 512


def test_the_file_is_not_written(write: Write) -> None:
    path = write("r.yaml", MINIMAL)
    path.chmod(0o444)
    before = path.stat()
    load_recipe(path, ["engine.max_batch_size=2"])
    assert path.read_text("utf-8") == MINIMAL
    assert path.stat().st_mtime_ns == before.st_mtime_ns


# --- paths


def test_relative_paths_belong_to_the_file_that_wrote_them(write: Write, tmp_path: Path) -> None:
    write("base/deep/model.yaml", "schema: 1\nmodel: {source: ../weights}\n")
    path = write(
        "r.yaml",
        "schema: 1\nname: paths\nimports: [base/deep/model.yaml]\n"
        "quantization: {calibration: {dataset: file:calib.txt}}\n"
        "gates: {perplexity: {dataset: file:../held out.txt, max: 9}}\n",
    )
    recipe = load_recipe(path)
    assert recipe.model.directory == tmp_path / "base" / "weights"
    assert recipe.quantization.calibration is not None
    assert recipe.quantization.calibration.file == tmp_path / "calib.txt"
    assert recipe.gates.perplexity is not None
    assert recipe.gates.perplexity.dataset == f"file:{tmp_path.parent / 'held out.txt'}"


def test_relative_paths_of_trtllm_build_belong_to_their_file_too(write: Write, tmp_path: Path) -> None:
    build = "{input_timing_cache: ./model.cache, lora_dir: [../lora, /a/lora], lora_plugin: auto}"
    recipe = load_recipe(write("in/r.yaml", MINIMAL + f"engine: {{flavour: tensorrt, build: {build}}}\n"))
    assert recipe.engine.build.input_timing_cache == str(tmp_path / "in/model.cache")
    assert recipe.engine.build.lora_dir == (str(tmp_path / "lora"), "/a/lora")


def test_relative_paths_of_overrides_belong_to_the_working_directory(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write("elsewhere/r.yaml", MINIMAL)
    monkeypatch.chdir(tmp_path)
    assert load_recipe(path, ["model.source=./m"]).model.directory == tmp_path / "m"


def test_home_is_expanded(write: Write, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    recipe = load_recipe(write("r.yaml", MINIMAL.replace("org/name", "~/models/m")))
    assert recipe.model.directory == tmp_path / "models" / "m"


@pytest.mark.parametrize("source", ["gpt2", "org/name", "meta-llama/Llama-3.1-70B-Instruct"])
def test_hub_ids_stay_as_they_are(write: Write, source: str, tmp_path: Path) -> None:
    (tmp_path / source).mkdir(parents=True)  # a directory of that name changes nothing
    model = load_recipe(write("r.yaml", MINIMAL.replace("org/name", source))).model
    assert model.source == source
    assert model.directory is None


def test_data_sets_of_the_hub_are_not_files(write: Write) -> None:
    text = MINIMAL + "quantization: {method: awq, calibration: {dataset: hf:org/set}}\n"
    calibration = load_recipe(write("r.yaml", text)).quantization.calibration
    assert calibration is not None
    assert calibration.file is None


# --- imports


def test_imports_merge_depth_first_and_the_importing_file_wins(write: Write) -> None:
    write("a.yaml", "schema: 1\nengine: {max_batch_size: 1, max_seq_len: 300, stream_interval: 3}\n")
    write("b.yaml", "schema: 1\nimports: [a.yaml]\nengine: {max_batch_size: 2}\nname: from-b\n")
    write("sub/c.yaml", "schema: 1\nimports: [../a.yaml]\nengine: {max_num_tokens: 512}\nname: from-c\n")
    path = write("r.yaml", "schema: 1\nimports: [b.yaml, sub/c.yaml]\nmodel: {source: o/n}\n"
                 "engine: {max_seq_len: 400}\n")  # fmt: skip
    recipe = load_recipe(path)
    assert recipe.name == "from-c"
    engine = recipe.engine
    # c is later than b and brings a's value again.
    assert (engine.max_batch_size, engine.max_seq_len, engine.max_num_tokens, engine.stream_interval) == (
        1, 400, 512, 3,
    )  # fmt: skip


def test_lists_replace_lists(write: Write) -> None:
    write("a.yaml", MINIMAL + "quantization: {exclude: [lm_head, model.layers.0.*]}\n")
    path = write("r.yaml", "schema: 1\nimports: [a.yaml]\nquantization: {exclude: [model.layers.1.*]}\n")
    assert load_recipe(path).quantization.exclude == ("model.layers.1.*",)


def test_null_takes_an_imported_section_away(write: Write) -> None:
    write("a.yaml", MINIMAL + "gates: {perplexity: {dataset: 'file:x', max: 9}, smoke: {prompts: 2}}\n")
    path = write("r.yaml", "schema: 1\nimports: [a.yaml]\ngates: {perplexity: null}\n")
    gates = load_recipe(path).gates
    assert gates.perplexity is None
    assert gates.smoke is not None


def test_a_cycle_shows_its_chain(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write("a.yaml", "schema: 1\nimports: [sub/b.yaml]\n")
    write("sub/b.yaml", "schema: 1\nimports:\n  - ../a.yaml\n")
    write("r.yaml", MINIMAL + "imports: [a.yaml]\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecipeError, match=r"sub/b.yaml:3:5: .*imports itself") as caught:
        load_recipe("r.yaml")
    assert "a.yaml -> sub/b.yaml -> a.yaml" in str(caught.value)
    assert len(caught.value.problems) == 1


def test_a_problem_in_an_import_names_that_file(write: Write, tmp_path: Path) -> None:
    write("a.yaml", "schema: 1\nengine:\n  max_batch_size: lots\n")
    with pytest.raises(RecipeError, match=r"a\.yaml:3:19: engine\.max_batch_size must be") as caught:
        load_recipe(write("r.yaml", MINIMAL + "imports: [a.yaml]\ndeploy: {streaming: 3}\n"))
    assert len(caught.value.problems) == 2


def test_each_imported_file_states_its_schema(write: Write) -> None:
    write("a.yaml", "engine: {max_batch_size: 1}\n")
    with pytest.raises(RecipeError, match=r"a\.yaml:1:1: `schema` is missing") as caught:
        load_recipe(write("r.yaml", MINIMAL + "imports: [a.yaml]\n"))
    assert len(caught.value.problems) == 1


def test_files_that_multiply_are_stopped(write: Write) -> None:
    write("f0.yaml", "schema: 1\n")
    for n in range(1, 12):
        write(f"f{n}.yaml", f"schema: 1\nimports: [f{n - 1}.yaml, f{n - 1}.yaml]\n")
    with pytest.raises(RecipeError, match="more than 64 files") as caught:
        load_recipe(write("r.yaml", MINIMAL + "imports: [f11.yaml]\n"))
    assert len(caught.value.problems) == 1


@pytest.mark.parametrize("entry", ['"a\\0b"', '"\\ud800.yaml"', "~nobody-of-that-name/x.yaml", "/", "."])
def test_impossible_imports(write: Write, entry: str) -> None:
    with pytest.raises(RecipeError, match="cannot read"):
        load_recipe(write("r.yaml", MINIMAL + f"imports: [{entry}]\n"))


# --- unreadable files


def test_a_missing_recipe_suggests_its_neighbour(write: Write, tmp_path: Path) -> None:
    write("llama70b.yaml", MINIMAL)
    with pytest.raises(RecipeError, match=r"did you mean .*llama70b\.yaml\?") as caught:
        load_recipe(tmp_path / "lama70b.yaml")
    assert len(caught.value.problems) == 1


def test_a_directory_is_no_recipe(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="Is a directory"):
        load_recipe(tmp_path)


def test_another_kind_of_file(tmp_path: Path) -> None:
    path = tmp_path / "weights.yaml"
    path.write_bytes(bytes(2 << 20))
    with pytest.raises(RecipeError, match="too large"):
        load_recipe(path)


def test_text_that_is_not_utf8_is_located(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_bytes(b"schema: 1\nname: caf\xe9\n")
    with pytest.raises(RecipeError, match=r"r\.yaml:2:10: the file is not UTF-8"):
        load_recipe(path)


# --- overrides


def test_overrides_apply_in_order_and_parse_as_yaml(write: Write) -> None:
    recipe = load_recipe(
        write("r.yaml", MINIMAL),
        [
            "engine.max_batch_size=4",
            "engine.max_batch_size=8",
            "deploy.streaming=false",
            "engine.kv_cache={reuse: false, max_tokens: 8192}",
            "quantization.exclude=[lm_head, model.layers.0.*]",
            "engine.version='1.20'",
        ],
    )
    assert recipe.engine.max_batch_size == 8
    assert not recipe.deploy.streaming
    assert (recipe.engine.kv_cache.reuse, recipe.engine.kv_cache.max_tokens) == (False, 8192)
    assert recipe.engine.kv_cache.paged
    assert recipe.quantization.exclude == ("lm_head", "model.layers.0.*")
    assert recipe.engine.version == "1.20"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("engine.max_batch_sise=4", "unknown key 'engine.max_batch_sise'"),
        ("engine.max_batch_size=four", "engine.max_batch_size must be a whole number"),
        ("engine.max_batch_size=", "engine.max_batch_size must be a whole number"),
        ("engine.max_batch_size.x=4", "engine.max_batch_size must be a whole number"),
        ("deploy.streaming=off", "deploy.streaming: `off` is ambiguous"),
        ("parallelism.tensor=2", "parallelism.tensor above 1 needs a GPU flavour"),
        ("engine={max_batch_size: 4", "not valid YAML"),
        ("engine.max_batch_size", "an override is not of the form KEY=VALUE"),
        ("=4", "an override is not of the form KEY=VALUE"),
        ("engine..x=4", "an override is not of the form KEY=VALUE"),
        ("a." * 2000 + "b=4", "an override is not of the form KEY=VALUE"),
        ("imports=[x.yaml]", "`imports` cannot be overridden"),
        ("schema=2", "schema must be 1"),
        ("name=\x07", "is not allowed in YAML"),
    ],
)
def test_a_bad_override_is_named(write: Write, override: str, message: str) -> None:
    with pytest.raises(RecipeError, match="--set") as caught:
        load_recipe(write("r.yaml", MINIMAL), [override])
    (problem,) = caught.value.problems
    assert message in problem.what
    assert problem.where == f"--set {override if override.isprintable() else ascii(override)[1:-1]}"
    assert problem.why
    assert problem.fix


def test_an_override_mends_the_file(write: Write) -> None:
    path = write("r.yaml", MINIMAL + "engine: {max_batch_size: many}\n")
    assert load_recipe(path, ["engine.max_batch_size=3"]).engine.max_batch_size == 3


# --- whatever it is given, the answer is a recipe or a RecipeError

DEMO = (configs_dir() / "demo-int4.yaml").read_text("utf-8")
FRAGMENTS = st.sampled_from(
    ["&a ", "*a", "<<: *a\n", "!!python/object:x ", "---\n", "%YAML 1.1\n", "? ", "- ", "no", "1e3", "0o7",
     "[", "]", "{", "}", '"\\ud800"', '"\\0"', '"\\UFFFFFFFF"', "imports: [r.yaml]\n", ".nan", "1e999",
     "9" * 50, "|\n  x\n", ": ", "\t", "#", "'", '"', "\x85", "\u2028", "\x00"]
)  # fmt: skip


def refusals(path: Path, overrides: Sequence[str] = ()) -> list[LlmbuildError]:
    """The problems of a recipe, none if it loads; anything but a RecipeError passes through."""
    try:
        load_recipe(path, overrides)
    except RecipeError as error:
        str(error).encode("utf-8")  # can be printed
        return error.problems or [error]
    return []


def complete(problem: LlmbuildError) -> bool:
    return bool(problem.what and problem.where and problem.why and problem.fix)


EDITS = st.tuples(st.integers(0, len(DEMO)), st.integers(0, 12), FRAGMENTS | st.text(max_size=6))


@given(edits=st.lists(EDITS, min_size=1, max_size=8))
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_damaged_recipe_is_accepted_or_refused(tmp_path: Path, edits: list[tuple[int, int, str]]) -> None:
    text = DEMO
    for at, length, inserted in edits:
        text = text[:at] + inserted + text[at + length :]
    path = tmp_path / "r.yaml"
    path.write_bytes(text.encode("utf-8", "replace"))
    assert all(map(complete, refusals(path)))


@given(data=st.binary(max_size=200))
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_are_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "r.yaml"
    path.write_bytes(data)
    assert refusals(path)
    assert all(map(complete, refusals(path)))


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@given(values=st.dictionaries(st.sampled_from(all_paths()), VALUES, min_size=1, max_size=6))
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_value_anywhere_is_accepted_or_refused(tmp_path: Path, values: dict[str, object]) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(MINIMAL, "utf-8")
    overrides = [f"{field}={json.dumps(value)}" for field, value in values.items()]
    assert all(map(complete, refusals(path, overrides)))
