"""The README's example runs as printed."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_the_python_example_runs_as_printed(tmp_path):
    subprocess.run([sys.executable, ROOT / "examples" / "make_sample.py", "demo"], cwd=tmp_path, check=True)
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    printed = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True, text=True
    ).stdout
    assert "homography" not in printed
    assert "True () error below" in printed
    assert (tmp_path / "aligned.png").stat().st_size > 10_000
