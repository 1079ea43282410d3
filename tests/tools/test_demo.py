"""What the demo does beside calling the package."""

import importlib.util
import sys
from pathlib import Path

import pytest

from tests.tiny_models import tiny_llama


@pytest.fixture(scope="module")
def demo():
    spec = importlib.util.spec_from_file_location("demo", Path(__file__).parents[2] / "tools" / "demo.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["demo"] = module
    spec.loader.exec_module(module)
    return module


def test_the_unseen_text_fills_the_windows(demo, tmp_path):
    from transformers import AutoTokenizer

    text = demo.unseen_text(tmp_path).read_text(encoding="utf-8")
    # The tiny tokenizer makes about twice as many tokens as a real one.
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama(tmp_path / "tiny"))
    assert len(tokenizer(text, add_special_tokens=False).input_ids) > 2 * demo.WINDOWS * demo.SEQLEN
    assert "argparse" in text


@pytest.mark.slow
def test_the_real_model_is_found(demo, smollm2_gguf):
    assert demo.real_model() == smollm2_gguf


def test_rows_say_how_far_from_the_original(demo):
    assert demo.Row("ours", 24.1, 146_500_000, (1400.4, 99.6), "200 of 210").cells(24.1 / 1.01) == (
        "ours",
        "24.10 (1.010 x)",
        "146 MB",
        "1400",
        "100",
        "200 of 210",
    )
    assert demo.Row("plain", None, None, None, "-").cells(20.0) == ("plain", "-", "-", "-", "-", "-")
