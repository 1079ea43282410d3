import pytest
import torch
from spikeexport.calibration.checkpoint import bos_id, load_model, open_checkpoint

from tests.tiny_models import BOS, FAMILIES, VOCAB_SIZE, plant_spike, tiny_family, token_id


@pytest.mark.parametrize("family", FAMILIES)
def test_each_family_opens_and_matches_transformers(family, tmp_path):
    from transformers import AutoModelForCausalLM

    checkpoint = open_checkpoint(tiny_family(family, tmp_path / family))
    model = load_model(checkpoint)
    reference = AutoModelForCausalLM.from_pretrained(tmp_path / family, dtype=torch.float32)
    ids = torch.randint(3, VOCAB_SIZE, (2, 100), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        logits = model(ids).logits
        # Experts run as linears of their own here: the order of their sums is another one.
        torch.testing.assert_close(logits, reference(ids).logits, rtol=0, atol=1e-5)
    assert logits.std() > 0.1
    assert checkpoint.model_id.model_type == family
    assert checkpoint.model_id.layers == 3
    assert bos_id(checkpoint) == BOS


def test_planted_spike_is_where_it_was_planted(tmp_path):
    spiky = token_id(" the")
    model = load_model(open_checkpoint(plant_spike(tmp_path / "m", spiky, layer=1, ratio=1000.0)))
    absmax = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and "lm_head" not in name:
            module.register_forward_pre_hook(
                lambda m, args, name=name: absmax.update({name: args[0].abs().amax(-1)[0]})
            )
    others = [i for i in range(10, 200) if i != spiky]
    ids = [BOS, *others[:50], spiky, *others[50:100], spiky, *others[100:]]
    with torch.inference_mode():
        model(torch.tensor([ids]))
    planted = absmax.pop("model.layers.1.mlp.down_proj")
    ratios = planted / planted.median()
    assert 500 < ratios[[51, 102]].min() <= ratios[[51, 102]].max() < 2000
    ratios[[51, 102]] = 0
    assert ratios.max() < 10
    assert max(float(s.max() / s.median()) for s in absmax.values()) < 10
