"""One codec of each published kind."""

from pathlib import Path

import pytest
import tiny_tokenizers

from unmask.text.codec import Codec


@pytest.fixture(scope="session")
def tokenizer_dirs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    base = tmp_path_factory.mktemp("tokenizers")
    return {
        "llada": tiny_tokenizers.llada_dir(base / "llada"),
        "dream": tiny_tokenizers.dream_dir(base / "dream"),
        "metaspace": tiny_tokenizers.metaspace_dir(base / "metaspace"),
    }


@pytest.fixture(scope="session")
def codecs(tokenizer_dirs: dict[str, Path]) -> dict[str, Codec]:
    return {name: Codec.from_dir(path) for name, path in tokenizer_dirs.items()}


@pytest.fixture(scope="session")
def codec(codecs: dict[str, Codec]) -> Codec:
    return codecs["llada"]
