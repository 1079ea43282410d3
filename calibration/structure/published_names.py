"""Module names of published exclusion lists, mapped onto a model's linears."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from spikeexport.calibration.structure.roles import is_router

_PREFIXES = ("", "model.", "model.language_model.")
_BLOCKS = ("mlp", "block_sparse_moe")
_PARTS = (
    ("w1", "gate_proj"),
    ("w3", "up_proj"),
    ("w2", "down_proj"),
    ("up_proj", "gate_up_proj"),
    ("q_proj", "qkv_proj"),
)


@dataclass(frozen=True)
class MappedNames:
    """What a list's names mean in a model.

    Attributes:
        linears: Published name -> module path of the linear.
        routers: Published names of routers, which are never quantised here: nothing has to be left out.
        unknown: Names that the model does not have.
    """

    linears: dict[str, str]
    routers: tuple[str, ...]
    unknown: tuple[str, ...]


def map_published_names(names: Iterable[str], linears: Collection[str]) -> MappedNames:
    """Finds each published name among a model's linears.

    Lists leave out the `model.` in front, may say `mlp` for Mixtral's block or `w1`/`w3`/`w2` for gate/up/down (and the
    other way round), and know no fused linears: `up_proj` stands for `gate_up_proj`, `q_proj` for `qkv_proj`.

    Args:
        names: As published, such as "layers.1.block_sparse_moe.experts.3.w2".
        linears: Module paths of the model's decoder linears.
    """
    known = set(linears)
    blocks = {path.rsplit(".experts.", 1)[0] for path in known if ".experts." in path}
    found: dict[str, str] = {}
    routers, unknown = [], []
    for name in names:
        spellings = list(_spellings(name))
        path = next((spelling for spelling in spellings if spelling in known), None)
        if path is not None:
            found[name] = path
        elif is_router(name) and any(spelling.rsplit(".", 1)[0] in blocks for spelling in spellings):
            routers.append(name)
        else:
            unknown.append(name)
    return MappedNames(found, tuple(routers), tuple(unknown))


def _spellings(name: str) -> Iterable[str]:
    for prefix in _PREFIXES:
        for block in _BLOCKS:
            parts = [block if part in _BLOCKS else part for part in name.split(".")]
            yield prefix + ".".join(parts)
            for pair in _PARTS:
                if parts[-1] in pair:
                    other = pair[1] if parts[-1] == pair[0] else pair[0]
                    yield prefix + ".".join([*parts[:-1], other])
