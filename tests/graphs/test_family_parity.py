"""Every family's graph computes Hugging Face's logits."""

from __future__ import annotations

import pytest

from tests.family_cases import CASES, all_cases
from tests.family_parity import measure_case

TOLERANCE = 1e-3


@pytest.mark.parametrize(("family", "label"), all_cases())
def test_graph_is_hugging_face(family, label, tmp_path):
    for call, difference in measure_case(family, label, tmp_path).items():
        assert difference <= TOLERANCE, call


def test_each_family_has_two_configurations_of_unlike_features():
    assert all(len(cases) >= 2 for cases in CASES.values())
