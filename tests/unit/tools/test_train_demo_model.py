"""What makes the demo model: how the text is divided, the conversations, the schedule, the configuration."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from transformers import AutoTokenizer

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "tools"))

from demo_model.architecture import DEMO_LAYERS, DRAFT_LAYERS, model_config  # noqa: E402
from demo_model.corpus import Document, collect, conversations  # noqa: E402
from demo_model.tokenizer import render_turn  # noqa: E402
from demo_model.training import Schedule  # noqa: E402

MODULE = '"""Module {n}."""\n\n' + "\n".join(
    f"def function_{{n}}_{i}(argument):\n    return argument + 1000 * {{n}} + {i}\n" for i in range(70)
)


@pytest.fixture
def stdlib(tmp_path: Path) -> Path:
    files = {f"package/module{n}.py": MODULE.format(n=n) for n in range(80)}
    files |= {
        "copy.py": files["package/module1.py"],
        "own_terms.py": "# Permission is hereby granted to anyone\nx = 1\n",
        "table.py": f"data = {'x' * 400!r}\n",
        "broken.py": "def (:\n",
        "encodings/cp1.py": "x = 1\n",
        "test/test_module.py": "assert True\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_corpus_leaves_out_what_is_not_plain_library_code(stdlib: Path) -> None:
    corpus = collect(stdlib)
    names = {d.name for part in (corpus.train, corpus.calibration, corpus.heldout) for d in part}
    assert {"own_terms.py", "table.py", "broken.py", "encodings/cp1.py"}.isdisjoint(names)
    assert "test/test_module.py" in {d.name for d in corpus.train}
    assert len({"copy.py", "package/module1.py"} & names) == 1


def test_corpus_parts_share_no_file_and_do_not_depend_on_the_place(stdlib: Path) -> None:
    corpus = collect(stdlib)
    parts = [{d.name for d in part} for part in (corpus.train, corpus.calibration, corpus.heldout)]
    assert all(parts)
    assert sum(map(len, parts)) == len(set.union(*parts))
    assert collect(stdlib).digest() == corpus.digest()


def test_conversations_pair_a_docstring_with_its_dedented_function() -> None:
    text = (
        "class Box:\n    def size(self):\n"
        '        """Return the number\n        of items here.\n\n        More.\n        """\n'
        "        return len(self.items)\n\n    def bare(self):\n        return None\n"
    )
    ((request, answer),) = conversations((Document("box.py", text),), seed=0)
    assert "Return the number of items here." in request
    assert answer.startswith('def size(self):\n    """Return')
    assert answer.endswith("\n    return len(self.items)")


def test_conversations_are_trained_in_the_form_that_the_chat_template_renders() -> None:
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "models" / "demo")
    messages = [{"role": "user", "content": "Add."}, {"role": "assistant", "content": "def add(): ..."}]
    assert tokenizer.apply_chat_template(messages, tokenize=False) == render_turn("Add.", "def add(): ...")


def test_schedule_warms_up_stays_and_decays_towards_zero() -> None:
    schedule = Schedule(tokens=64 * 1024 * 1000)
    rates = [schedule.rate(step) for step in range(schedule.steps)]
    assert len(rates) == 1000
    assert rates[:20] == sorted(rates[:20])
    assert set(rates[20:600]) == {schedule.learning_rate}
    assert rates[600:] == sorted(rates[600:], reverse=True)
    assert 0 < rates[-1] < schedule.learning_rate / 100


@pytest.mark.parametrize(("name", "layers"), [("demo", DEMO_LAYERS), ("demo-draft", DRAFT_LAYERS)])
def test_committed_config_is_the_one_that_the_tool_writes(name: str, layers: int) -> None:
    assert json.loads((ROOT / "models" / name / "config.json").read_text()) == model_config(layers)
