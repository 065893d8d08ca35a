"""A model's tokenizer, and files of all forms."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

DEMO = Path(__file__).parents[4] / "models" / "demo"


@pytest.fixture
def model_dir(tmp_path: Path) -> Path:
    """The demo model's tokenizer, with a chat template."""
    directory = tmp_path / "model"
    directory.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(DEMO / name, directory / name)
    (directory / "chat_template.jinja").write_text(
        "{% for m in messages %}[{{ m.role }}{% if m.name is defined %} {{ m.name }}{% endif %}]"
        "{{ m.content }}\n{% endfor %}"
    )
    return directory


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, Any], Path]:
    """A function (name, records or bytes) -> the file, in the form that the name's suffix tells."""

    def write(name: str, content: Any) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif path.suffix == ".parquet":
            pq.write_table(pa.Table.from_pylist(content), path, row_group_size=3)
        elif path.suffix == ".json":
            path.write_text(json.dumps(content, indent=1))
        else:
            path.write_text("".join(json.dumps(record) + "\n" for record in content))
        return path

    return write
