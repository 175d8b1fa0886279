"""Labels of images."""

from torchscale_fairseq.data.images.labels import LISTED, listed


def test_a_log_names_the_first_of_many_classes() -> None:
    assert listed(["cat", "dog"]) == "2 classes: cat, dog"
    many = [str(number) for number in range(1000)]
    assert listed(many) == f"1000 classes: {', '.join(many[:LISTED])} and {1000 - LISTED} more"
