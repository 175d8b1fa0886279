"""Raw text in any format, with white space as the commands that prepare data write it."""

from collections.abc import Iterator

from torchscale_fairseq.data.problems import Problems
from torchscale_fairseq.data.text.formats import TEXT, Document, reader_of
from torchscale_fairseq.data.text.formats.compression import suffix_of
from torchscale_fairseq.data.text.formats.lines import numbered_lines, why_no_text
from torchscale_fairseq.data.text.formats.locations import is_url

TEXT_FIELD = "text"
CAPTION_FIELD = "caption"


def is_cut_by_bytes(location: str) -> bool:
    """Whether a file is plain local text, which can be read from any line."""
    return reader_of(location) is TEXT and not suffix_of(location) and not is_url(location)


def field_in(location: str, given: str | None) -> str:
    """The field or column of a file's text: --text-field, or else text; caption in a file of images and captions.

    Args:
        location: path or URL of the file.
        given: --text-field; None for its default.

    Raises:
        DataError: the file cannot be read.
    """
    if given or reader_of(location).name != "JSON lines":
        return given or TEXT_FIELD
    first = [next(reader_of(location).documents(location, field), None) for field in (TEXT_FIELD, CAPTION_FIELD)]
    text, caption = (document is not None and document.reason is None for document in first)
    return CAPTION_FIELD if caption and not text else TEXT_FIELD


def raw_lines(location: str, field: str, problems: Problems) -> Iterator[bytes]:
    """The lines of a file, in which every run of white space is one space. An empty line ends a document.

    Args:
        location: path or URL.
        field: name of the field or column of the text, where the format has such.
        problems: takes invalid lines or rows, which are left out.

    Raises:
        DataError: the file cannot be read, or is not of its format.
    """
    reader = reader_of(location)
    for document in _documents(location, field):
        reason = document.reason or why_no_text(document.text.replace(b"\r", b" "))
        if reason is not None:
            where = f"{location}, {reader.counts} {document.number:,}"
            problems.found(f"invalid {reader.counts}s", f"{where}: {reason}")
        elif reader.holds_lines:
            yield normalized(document.text)
        else:
            yield from filter(None, map(normalized, document.text.split(b"\n")))
            yield b""


def normalized(line: bytes) -> bytes:
    """A line of UTF-8 with one space for each run of white space, and none at its ends."""
    return " ".join(line.decode().split()).encode()


def _documents(location: str, field: str) -> Iterator[Document]:
    """The documents of a file; of text, its lines, which may have carriage returns inside."""
    reader = reader_of(location)
    return numbered_lines(location) if reader is TEXT else reader.documents(location, field)
