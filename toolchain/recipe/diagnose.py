"""A composed tree to a `Recipe`, or to everything that is wrong with it."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from toolchain.errors import LlmbuildError
from toolchain.recipe.document import KeyPath, Leaf, Table, find, leaves, locate, plain
from toolchain.recipe.fields import all_paths, expectation, fragment_at, nearest
from toolchain.recipe.marks import Mark, problem, quoted, shown
from toolchain.recipe.mend import OTHER_PLACES, mend, path_name, unset_flag
from toolchain.recipe.rules import violations
from toolchain.recipe.scalars import ambiguity
from toolchain.recipe.schema import Recipe

Found = tuple[Mark, LlmbuildError]


def diagnose(tree: Table, *, complete: bool) -> tuple[Recipe | None, list[LlmbuildError]]:
    """Validate a tree. Either a recipe and no problems, or problems in the order of the file.

    Args:
        tree: the composed recipe.
        complete: False when parts of it could not be read; what is absent is then no problem.
    """
    found: list[Found] = []
    bad: set[KeyPath] = set()
    recipe, errors = _validate(plain(tree))
    unknown = {error["loc"] for error in errors if error["type"] == "extra_forbidden"}
    for path, leaf in leaves(tree):
        if leaf.reported:
            bad.add(path)
        elif leaf.raw is not None and not any(path[:n] in unknown for n in range(1, len(path) + 1)):
            other = ambiguity(leaf.raw)
            # No choice of any field is ambiguous, so there the choices are what needs to be said.
            if other is not None and "enum" not in (fragment_at(path) or {}):
                bad.add(path)
                found.append(_unclear(path, leaf, *other))
    for error in errors:
        if error["loc"] not in bad and (complete or error["type"] != "missing"):
            found.append(_explain(tree, error))
    bad |= {error["loc"] for error in errors}
    if complete:
        found += _broken_rules(tree, recipe if not bad else _valid_part(plain(tree), bad), bad)
    found.sort(key=lambda item: (item[0].line == 0, item[0].origin != tree.mark.origin, item[0].origin,
                                 item[0].line, item[0].column))  # fmt: skip
    return recipe, [error for _, error in found]


def _validate(data: Any) -> tuple[Recipe | None, list[ErrorDetails]]:
    try:
        return Recipe.model_validate(data), []
    except ValidationError as error:
        return None, _one_a_field(error.errors(include_url=False, include_context=False))


def _one_a_field(errors: list[ErrorDetails]) -> list[ErrorDetails]:
    """Errors at the fields that they are about: a union has one for each form, a step below its field."""
    found: dict[KeyPath, ErrorDetails] = {}
    for error in errors:
        path = error["loc"]
        while error["type"] != "extra_forbidden" and fragment_at(path) is None:
            path = path[:-1]
        found.setdefault(path, {**error, "loc": path})
    return list(found.values())


def _valid_part(data: Any, bad: set[KeyPath]) -> Recipe | None:
    """A recipe of what is valid in `data`, with defaults for the rest, so that rules can judge that much."""
    for _ in range(8):  # removing a value can make its section incomplete, and so on upwards
        for path in bad:
            _remove(data, path)
        data = {"schema": 1, "name": "unnamed", "model": {}} | data
        data["model"] = {"source": "/"} | data["model"]
        recipe, errors = _validate(data)
        if recipe is not None:
            return recipe
        bad = {error["loc"][:-1] if error["type"] == "missing" else error["loc"] for error in errors}
    return None


def _remove(data: dict[str, Any], path: KeyPath) -> None:
    """Remove what stands at `path`, or the list or scalar that the path leads into."""
    for step in path[:-1]:
        if not isinstance(data.get(str(step)), dict):
            data.pop(str(step), None)
            return
        data = data[str(step)]
    data.pop(str(path[-1]), None)


def _broken_rules(tree: Table, recipe: Recipe | None, bad: set[KeyPath]) -> list[Found]:
    if recipe is None:
        return []
    wrong = {".".join(map(str, path)) for path in bad}
    found = []
    for rule in violations(recipe):
        if any(f"{field}.".startswith(f"{path}.") or f"{path}.".startswith(f"{field}.")
               for path in wrong for field in (rule.path, *rule.others)):  # fmt: skip
            continue
        # A default at fault has no place of its own: point to what it clashes with.
        paths = [tuple(field.split(".")) for field in (rule.path, *rule.others)]
        written = next((path for path in paths if find(tree, path) is not None), paths[0])
        mark = locate(tree, written)
        found.append((mark, problem(rule.what, mark, why=rule.why, fix=rule.fix)))
    return found


def _unclear(path: KeyPath, leaf: Leaf, why: str, meant: str) -> Found:
    fragment = fragment_at(path) or {}
    as_text = f'"{leaf.raw}"'
    if fragment.get("type") == "string":
        fix = f"put quotes around it: {as_text}"
    elif fragment.get("type") in ("boolean", "integer", "number"):
        fix = f"write {meant}"
    elif meant == as_text:
        fix = f"write {meant} for the text"
    else:
        fix = f"write {meant}, or {as_text} for the text"
    return leaf.mark, problem(f"{path_name(path)}: `{leaf.raw}` is ambiguous", leaf.mark, why=why, fix=fix)


def _explain(tree: Table, error: ErrorDetails) -> Found:
    """What pydantic found, in our words and at its place."""
    path: KeyPath = error["loc"]
    if error["type"] == "extra_forbidden":
        return _unknown_key(tree, path)
    fragment = fragment_at(path)
    assert fragment is not None  # only an unknown key has no field
    mark = locate(tree, path)
    if error["type"] == "missing":
        where = f" under `{path_name(path[:-1])}:`" if path[:-1] else ""
        entry = f"{path[-1]}: {{...}}" if "properties" in fragment else f"{path[-1]}: ..."
        why = str(fragment.get("description", "")).split(". ")[0].rstrip(".")
        return mark, problem(f"{path_name(path)} is missing", mark, why=why, fix=f"add `{entry}`{where}")
    value = error["input"]
    return mark, problem(
        f"{path_name(path)} must be {expectation(fragment)}",
        mark,
        why=f"it is {shown(value)}",
        fix=mend(path, fragment, value, find(tree, path)),
    )


def _unknown_key(tree: Table, path: KeyPath) -> Found:
    mark = locate(tree, path, key=True)
    key, section = str(path[-1]), path[:-1]
    names = list((fragment_at(section) or {}).get("properties", {}))
    names += ["imports"] if not section else []
    place = f"section {path_name(section)}" if section else "a recipe"
    elsewhere = OTHER_PLACES.get(key) or next((p for p in all_paths() if p.rpartition(".")[2] == key), None)
    near = nearest(key, names)
    unset = unset_flag(key) if section == ("engine", "build") else None
    if unset is not None:
        why, fix = unset, "remove it"
    elif elsewhere is not None:
        why, fix = f"{place} has no such field", f"write it as {elsewhere}"
    elif near is not None:
        why, fix = f"{place} has no such field; the nearest name is {near}", f"write `{near}`"
    else:
        why, fix = f"{place} has the fields {', '.join(names)}", "remove it, or use one of these"
    return mark, problem(f"unknown key {quoted(path_name(path))}", mark, why=why, fix=fix)
