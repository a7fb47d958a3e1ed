import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import unmask


def test_importing_the_package_imports_no_torch():
    code = "import unmask, sys; dir(unmask); unmask.InputError; unmask.fold; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_name_is_there():
    assert all(getattr(unmask, name) is not None for name in unmask.__all__)
    with pytest.raises(AttributeError, match="nonsense"):
        _ = unmask.nonsense


def test_the_version_is_the_projects():
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert unmask.__version__ == project["version"]


def test_the_pipeline_needs_no_transformers():
    code = "import unmask.pipeline, sys; sys.exit('transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
