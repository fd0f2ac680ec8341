"""Importing the room costs nothing that is not needed."""

import json
import subprocess
import sys

LIST = """
import sys, json, torch
before = set(sys.modules)
import shaketable.data
print(json.dumps(sorted({name.partition(".")[0] for name in set(sys.modules) - before})))
"""


def test_no_optional_library_is_imported():
    made = subprocess.run([sys.executable, "-c", LIST], capture_output=True, text=True, timeout=120, check=True)
    imported = set(json.loads(made.stdout.splitlines()[-1]))
    heavy = {"PIL", "scipy", "torchvision", "datasets", "pyarrow", "pandas", "zstandard"}
    assert "shaketable" in imported
    assert not imported & heavy
    assert imported <= {"shaketable", "jaxtyping", "numpy", "beartype", "typing_extensions"} | set(
        sys.stdlib_module_names
    )
