"""The examples of docs/models.md are settings that work: every alias in them is a model that can be opened."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from loom.models.base import ModelContext
from loom.models.registry import open_model
from loom.spool import config
from loom.spool.home import open_home
from loom.wire import settings

PAGE = (Path(__file__).parents[2] / "docs" / "models.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)


def test_there_are_examples():
    assert len(EXAMPLES) == 2


@pytest.mark.parametrize("text", EXAMPLES)
def test_an_example_works_as_it_stands(text: str, tmp_path: Path):
    home = open_home(tmp_path / "home", {"LOOM_ALLOW_FILESYSTEM": "1"})
    home.config.write_text(text)
    (tmp_path / ".config").mkdir()
    (tmp_path / ".config" / "openai.key").write_text("sk-x\n")
    providers = settings.providers(config.load(home, {}).values)
    env = {f"{alias.upper()}_API_KEY": "sk-x" for alias in providers if alias != "openai"} | {"HOME": str(tmp_path)}
    for alias in providers:
        model = open_model(f"{alias}/some/model", ModelContext(env=env, providers=providers))
        assert model.name == f"{alias}/some/model"
        assert type(model).__name__ == ("OllamaModel" if alias == "gpu" else "OpenAIModel")
