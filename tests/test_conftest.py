import subprocess
import sys
from pathlib import Path

from tests import conftest

ROOT = Path(__file__).parents[1]


def _run(tmp_path, why):
    test = tmp_path / "test_gpu_things.py"
    test.write_text(
        "import pytest\n\n\n@pytest.mark.gpu\ndef test_on_a_gpu():\n    pass\n\n\ndef test_here():\n    pass\n"
    )
    start = f"import sys, pytest; from tests import conftest; conftest._why_no_gpu_tests = lambda: {why!r}; "
    run = f"sys.exit(pytest.main(['-q', '--rootdir', {str(tmp_path)!r}, '-c', '/dev/null', {str(test)!r}], [conftest]))"
    return subprocess.run([sys.executable, "-c", start + run], cwd=ROOT, capture_output=True, text=True).stdout


def test_gpu_tests_are_listed_with_the_reason_where_they_cannot_run(tmp_path):
    output = _run(tmp_path, "no GPU today")
    assert "not run here" in output
    assert "test_on_a_gpu: no GPU today" in output
    assert "1 passed, 1 deselected" in output


def test_gpu_tests_run_where_they_can(tmp_path):
    output = _run(tmp_path, None)
    assert "not run here" not in output
    assert "2 passed" in output


def test_the_reason_is_none_or_a_sentence():
    why = conftest._why_no_gpu_tests()
    assert why is None or len(why) > 10
