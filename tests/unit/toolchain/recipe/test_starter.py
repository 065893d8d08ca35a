"""A recipe to begin from holds whatever its name and its model are."""

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from toolchain.errors import UsageError
from toolchain.recipe import load_recipe
from toolchain.recipe.starter import write_starter


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("mine.yaml", "mine"), ("My Recipe (2).yaml", "my-recipe-2"), ("123.yaml", "123"),
        ("null.yaml", "null"), ("_.yaml", "recipe"), ("yes.yaml", "yes"),
    ],
)  # fmt: skip
def test_it_is_named_after_its_file_in_the_comment_too(file, name, tmp_path):
    write_starter(tmp_path / file, "demo-int4")
    assert load_recipe(tmp_path / file).name == name
    line = next(line for line in (tmp_path / file).read_text().splitlines() if line.startswith("name:"))
    assert line.endswith(f"# the artifact's directory: artifacts/{name}")
    assert [path.name for path in tmp_path.iterdir()] == [file]


@given(st.from_regex(r"/srv/[^\x00-\x1f\x7f-\x9f\ud800-\udfff\ufeff\ufffe\uffff]{1,30}", fullmatch=True))
def test_a_directory_of_any_printable_name_is_read_back(tmp_path_factory, model):
    path = tmp_path_factory.mktemp("starter") / "r.yaml"
    write_starter(path, "demo-int4", model)
    assert yaml.safe_load(path.read_text(encoding="utf-8"))["model"]["source"] == model
    assert load_recipe(path).model.source


@pytest.mark.parametrize("model", ["", 'a: b\n#"', "a b", "./new\nline", "\x7f"])
def test_a_model_that_no_recipe_can_name_leaves_nothing(model, tmp_path):
    with pytest.raises(UsageError, match="would make a recipe that is not valid"):
        write_starter(tmp_path / "r.yaml", "demo-int4", model)
    assert not list(tmp_path.iterdir())


def test_a_model_named_from_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "deep").mkdir()
    write_starter(tmp_path / "deep" / "r.yaml", "demo-int4", "./model")
    assert load_recipe(tmp_path / "deep" / "r.yaml").model.directory == tmp_path / "model"


def test_nothing_is_overwritten(tmp_path):
    path = tmp_path / "r.yaml"
    path.symlink_to("nowhere")
    for _ in range(2):
        with pytest.raises(UsageError, match="exists"):
            write_starter(path, "demo-int4")
        path.unlink()
        path.write_text("mine")
    assert path.read_text() == "mine"


def test_a_place_that_cannot_be_written(tmp_path):
    with pytest.raises(UsageError, match="cannot write the recipe: No such file") as caught:
        write_starter(tmp_path / "none" / "r.yaml", "demo-int4")
    assert caught.value.where == str(tmp_path / "none" / "r.yaml")
    with pytest.raises(UsageError, match="no shipped recipe is called demo"):
        write_starter(tmp_path / "r.yaml", "demo")
