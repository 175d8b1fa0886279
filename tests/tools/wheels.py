"""Wheels with message catalogues."""

import zipfile
from io import BytesIO
from pathlib import Path

from babel.messages.catalog import Catalog
from babel.messages.mofile import write_mo


def add_wheel(folder: Path, name: str, messages: dict[str, str], catalogue: str) -> None:
    """Write a wheel whose German catalogue has these messages, one more with a plural, and another language.

    Args:
        folder: where it goes.
        name: of the wheel.
        messages: English to German.
        catalogue: the path of the catalogue in the folder of locales.
    """
    catalog = Catalog(locale="de")
    for english, german in messages.items():
        catalog.add(english, german)
    catalog.add(("%d new file", "%d new files"), ("%d neue Datei", "%d neue Dateien"))
    content = BytesIO()
    write_mo(content, catalog)
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as archive:
        archive.writestr(f"{name}/locale/{catalogue}", content.getvalue())
        archive.writestr(f"{name}/locale/fr/LC_MESSAGES/django.mo", b"not read")
