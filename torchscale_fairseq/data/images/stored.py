"""Images that lie in a larger file, next to those that are files of their own."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias


@dataclass(frozen=True)
class StoredImage(os.PathLike[str]):
    """The bytes of an image in an uncompressed archive. Its path, which no file has, names it in messages.

    Args:
        shard: the archive.
        name: of the image in it.
        start, size: place and length in the archive, in bytes.
    """

    shard: Path
    name: str
    start: int
    size: int

    def read(self) -> bytes:
        """The content of the image's file.

        Raises:
            OSError: the archive cannot be read.
        """
        with open(self.shard, "rb") as file:
            file.seek(self.start)
            return file.read(self.size)

    def exists(self) -> bool:
        """Whether the archive is there."""
        return self.shard.exists()

    def stat(self) -> os.stat_result:
        """Size and times of the archive, which change when the image does."""
        return self.shard.stat()

    def __fspath__(self) -> str:
        return str(self)

    def __str__(self) -> str:
        return f"{self.shard}/{self.name}"


ImageFile: TypeAlias = Path | StoredImage
