"""Warnings of stock fairseq that are nobody's to act on."""

import warnings


def hide_warnings_nobody_can_act_on() -> None:
    """Each command prints a dozen warnings about how fairseq calls Hydra, torch's autocast and data loaders.
    They concern fairseq's authors alone, and are left out, as are Pillow's of photographs with damaged EXIF."""
    for message in (
        r"hydra\.experimental\..* is no longer experimental",
        r"\nThe version_base parameter is not specified",
        r"In '.*': Usage of deprecated keyword in package header",
        r"\n'.*' is validated against ConfigStore schema with the same name",
        r"\nThe strict flag in the compose API is deprecated",
        r"\n?Future Hydra versions will no longer change working directory",
        r"'pin_memory' argument is set as true but no accelerator is found",
    ):
        warnings.filterwarnings("ignore", message=message, category=UserWarning)
    for message in (r"`torch\.cuda\.amp\..*` is deprecated", r"`broadcast_buffers` is deprecated"):
        warnings.filterwarnings("ignore", message=message, category=FutureWarning)
    warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.TiffImagePlugin")
