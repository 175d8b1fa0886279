"""The nearest known names."""

import pytest

from torchscale_fairseq.core.errors import did_you_mean

KNOWN = ["gpt_deepnorm_small", "gpt_deepnorm", "gpt_xpos_small", "mt_deepnorm_small", "longvit_tiny"]


@pytest.mark.parametrize(
    ("name", "clause"),
    [
        ("gpt_small", "; did you mean gpt_deepnorm_small or gpt_xpos_small?"),
        ("gpt", "; did you mean gpt_deepnorm?"),
        ("gpt_depnorm_smal", "; did you mean gpt_deepnorm_small?"),
        ("longvt_tiny", "; did you mean longvit_tiny?"),
        ("quartz", ""),
    ],
)
def test_nearest_names(name: str, clause: str) -> None:
    assert did_you_mean(name, KNOWN) == clause
