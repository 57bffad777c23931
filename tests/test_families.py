"""Every causal family of transformers: exact and saved, or refused in one sentence before the first step."""

from collections import Counter

import pytest
from small_families import FAMILIES, NOT_BUILT, judge

REFUSED = {  # and what the sentence says
    "big_bird": "gives other log-probabilities in training mode",
    "cpmant": "a token sees later ones",
    "xlnet": "a token sees later ones",
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_every_family_is_exact_and_saved_or_refused(tmp_path):
    """Log-probabilities and gradients, in training mode with every rate of dropout at 0.3, against plain
    transformers in evaluation mode, each sequence alone; and again after a save and a load.
    `judge` asserts it.
    """
    outcomes: Counter[str] = Counter()
    for family in FAMILIES:
        if family in NOT_BUILT:
            continue
        verdict = judge(family, tmp_path / family)
        outcomes[verdict.outcome] += 1
        assert (verdict.outcome == "refused") == (family in REFUSED), verdict
        assert REFUSED.get(family, "") in verdict.reason, verdict
        assert verdict.reason or verdict.outcome == "packed", verdict
    assert outcomes["packed"] > 80 and outcomes["padded"] > 50, outcomes
