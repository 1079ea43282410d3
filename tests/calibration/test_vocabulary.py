import numpy as np
import torch
from spikeexport.calibration.checkpoint import bos_id
from spikeexport.calibration.forward import Lead
from spikeexport.calibration.observe import observe_sites
from spikeexport.calibration.structure.sites import discover
from spikeexport.calibration.text.tokens import ordinary_tokens
from spikeexport.calibration.vocabulary import with_vocabulary

from tests.calibration.models import load, text_windows
from tests.tiny_models import plant_spike, token_id

FIRST, LAST = "model.layers.0.mlp.down_proj", "model.layers.2.mlp.down_proj"


def test_a_token_that_the_text_lacks_widens_the_first_layers(tmp_path, sample_text):
    token = token_id("e")
    checkpoint, model = load(plant_spike(tmp_path / "model", token, layer=0, ratio=300.0))
    structure, bos = discover(model), bos_id(checkpoint)
    windows = text_windows(checkpoint, sample_text, 3, 24)
    windows[windows == token] = token_id("a")
    tokens = ordinary_tokens(checkpoint, model)
    assert token in tokens
    assert bos not in tokens
    for lead in (Lead(bos=bos), Lead(prefix=(bos, 5))):
        seen = observe_sites(model, structure, windows, lead)
        wide = with_vocabulary(model, structure, seen, tokens, lead)
        assert wide[FIRST].channel_absmax.max() > 5 * seen[FIRST].channel_absmax.max()
        assert all((wide[FIRST].ranges.high >= seen[FIRST].ranges.high).tolist())
        assert wide[FIRST].token_absmax is seen[FIRST].token_absmax
        assert wide[LAST] is seen[LAST]


def test_ranges_are_those_of_each_token_alone(tiny_llama_folder, sample_text):
    checkpoint, model = load(tiny_llama_folder)
    structure, lead = discover(model), Lead(prefix=(1, 5))
    windows = text_windows(checkpoint, sample_text, 1, 8)
    tokens = ordinary_tokens(checkpoint, model)
    seen = observe_sites(model, structure, windows, lead)
    wide = with_vocabulary(model, structure, seen, tokens, lead)
    inputs = []
    handle = model.get_submodule(FIRST).register_forward_pre_hook(lambda _, args: inputs.append(args[0][:, -1]))
    for token in tokens:
        model(input_ids=torch.tensor([[1, 5, int(token)]]))
    handle.remove()
    by_hand = torch.cat(inputs)
    np.testing.assert_allclose(
        wide[FIRST].ranges.high, np.maximum(seen[FIRST].ranges.high, by_hand.amax(0)), rtol=1e-3, atol=1e-5
    )
    np.testing.assert_allclose(
        wide[FIRST].ranges.low, np.minimum(seen[FIRST].ranges.low, by_hand.amin(0)), rtol=1e-3, atol=1e-5
    )


def test_without_a_lead_nothing_is_added(tiny_llama_folder, sample_text):
    checkpoint, model = load(tiny_llama_folder)
    structure = discover(model)
    seen = observe_sites(model, structure, text_windows(checkpoint, sample_text, 1, 8), Lead())
    assert with_vocabulary(model, structure, seen, ordinary_tokens(checkpoint, model), Lead()) is seen
