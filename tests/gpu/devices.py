"""CUDA devices for processes that tests start, from which they are hidden otherwise."""

import os


def visible(number: int) -> dict[str, str]:
    """The environment of processes that see the first CUDA devices of those that this one sees.

    Args:
        number: of devices.
    """
    own = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(number)))).split(",")
    return {"CUDA_VISIBLE_DEVICES": ",".join(own[:number])}
