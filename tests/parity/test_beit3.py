"""BEiT3 equals the official one under ``torchscale_compatible``."""

import pytest

from tests.helpers import assert_close
from tests.parity.vectors import Case, cases, check_loss_and_gradients
from torchscale_fairseq import BEiT3, BEiT3Config


@pytest.mark.parametrize("case", cases("beit3"), ids=lambda case: case.name)
def test_beit3(case: Case) -> None:
    model = BEiT3(BEiT3Config(torchscale_compatible=True, **case.meta["config_kwargs"]))
    model.load_state_dict(case.group("param/"))
    words, images = case["in/textual_tokens"], case["in/visual_tokens"]
    padding, masked = case["in/text_padding_position"], case["in/vision_masked_position"]
    both = model.eval()(words, images, padding, vision_masked_position=masked)
    assert both["multiway_split_position"] == case.meta["extra"]["multiway_split_position"]
    assert_close(both["encoder_out"], case["out/both.encoder_out"], "parity", "both")
    text = model(words, text_padding_position=padding)
    assert_close(text["encoder_out"], case["out/text.encoder_out"], "parity", "text")
    image = model(visual_tokens=images, vision_masked_position=masked)
    assert_close(image["encoder_out"], case["out/vision.encoder_out"], "parity", "vision")
    check_loss_and_gradients(case, model, both["encoder_out"])
