"""What services say."""

import os
import pathlib


def of(service: str) -> str:
    """The sentence of a service, and which services are here."""
    here = pathlib.Path(__file__).parent
    sentence = (here / "texts" / "sentence.txt").read_text().strip()
    services = sorted(path.name for path in (here.parent / "services").iterdir() if path.is_dir())
    return f"{service} {sentence} {','.join(services)} as {os.getuid()}"
