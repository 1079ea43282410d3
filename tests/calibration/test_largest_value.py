import numpy as np
import pytest
import torch
from spikeexport import export
from spikeexport.calibration.checkpoint import load_model, open_checkpoint
from spikeexport.calibration.largest_value import FP16_MAX, fp16_warning

from tests.tiny_models import tiny_llama


@pytest.mark.parametrize(("factor", "warned"), [(1.0, False), (1.3e5, True)])
def test_fp16_export_warns_of_hidden_states_near_its_limit(factor, warned, tmp_path, sample_text_file, capsys):
    folder = tiny_llama(tmp_path / "m")
    model = load_model(open_checkpoint(folder))
    model.model.embed_tokens.weight.data *= factor
    model.save_pretrained(folder)
    ids = torch.from_numpy(np.random.default_rng(0).integers(3, 380, (1, 20)))
    hidden = float(model.model(ids, output_hidden_states=True).hidden_states[1].abs().max())
    assert (hidden > FP16_MAX / 2) == warned
    options = {"calibration": [str(sample_text_file)], "samples": 4, "seqlen": 24, "qfep": "off", "qfem": "off"}
    for dtype in ("fp16", "bf16"):
        result = export(folder, tmp_path / "x.onnx", dtype=dtype, **options)
        assert ("export with --dtype bf16" in capsys.readouterr().err) == (warned and dtype == "fp16")
    assert result.plan.largest_activation > 0.3 * hidden


def test_warning_begins_at_half_of_fp16s_range():
    assert fp16_warning(None) is None
    assert fp16_warning(FP16_MAX / 2 - 1) is None
    assert "up to 4e+04" in fp16_warning(4e4)
