"""placeholder"""

from pathlib import Path


def converted_gguf(file: Path) -> Path:
    raise NotImplementedError
