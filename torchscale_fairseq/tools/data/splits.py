"""The splits that data is divided into."""

SPLITS = ("train", "valid", "test")
