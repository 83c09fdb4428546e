"""What the tests of the data share: a cache that ends with them, and the real tokenizers."""

import datasets
import pytest
from transformers import AutoTokenizer

from prefkd.data.sides import ModelSide


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    datasets.disable_progress_bars()


@pytest.fixture(scope="session")
def real_sides(real_models):
    """Folder name -> the side of a real model or tokenizer."""
    names = ("smollm2-135m-instruct", "gemma-3-270m", "tokenizer-mistral-v3", "tokenizer-qwen")
    return {name: ModelSide(AutoTokenizer.from_pretrained(real_models / name), name=name) for name in names}
