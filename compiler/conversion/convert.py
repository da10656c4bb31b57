"""Weights of a published network as those of a network of ours: a renaming, and nothing more."""

from __future__ import annotations

import math
from collections import Counter, OrderedDict
from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from compiler.base_stage import BaseStage
from compiler.conversion.namings import HEAD, NAMINGS, POSITIONS, Naming, naming_of
from compiler.conversion.patterns import placed

MAX_NAMES = 5
"""How many names of each kind an error lists."""


class ConversionError(ValueError):
    """Weights that are not those of the network; the message says which, and what could be done."""


def weights_of(network: nn.Module) -> dict[str, Tensor]:
    """All that a network is made of, statistics of norms too, by name: its state without how far
    training is."""
    stages = [n for n, module in network.named_modules() if isinstance(module, BaseStage)]
    progress = {f"{stage}.progress" for stage in stages}
    return {name: value for name, value in network.state_dict().items() if name not in progress}


def recognised(source: Mapping[str, Tensor]) -> Naming:
    """Whose names these are. Raises `ConversionError`."""
    naming = naming_of(source)
    if naming is None:
        known = sorted({each.title for each in NAMINGS})
        raise ConversionError(f"the names are none of {', '.join(known)}: {_listed(list(source))}")
    return naming


def convert(
    source: Mapping[str, Tensor],
    ours: Mapping[str, Tensor],
    new_head: bool = False,
    resize_positions: bool = False,
) -> dict[str, Tensor]:
    """The tensors of `source` under the names of `ours`, which is `weights_of` our network, and in
    its dtypes. Each of ours is filled once, and each of the source's is used once.

    With `new_head` the classifier is left out of both; with `resize_positions` the embeddings of
    positions are interpolated to ours (bicubic; Dosovitskiy et al. 2021, section 3.2). Raises
    `ConversionError`.
    """
    names = paired(source, ours, new_head)
    ours = {name: ours[name] for name in ours if name in names.values()}
    found = {name: source[theirs] for theirs, name in names.items()}
    if resize_positions and POSITIONS in found:
        found[POSITIONS] = resized(found[POSITIONS], ours[POSITIONS].shape[1])
    _refuse_other_shapes(found, ours)
    cast = {name: found[name].detach().to(like.dtype).contiguous() for name, like in ours.items()}
    check_finite(cast)
    return cast


def paired(
    source: Mapping[str, Tensor], ours: Mapping[str, Tensor], new_head: bool
) -> dict[str, str]:
    """The names of `source` → those of `ours`: all of both, each once; with `new_head`, without the
    classifier. Raises `ConversionError`."""
    names = {theirs: placed(name, ours) for theirs, name in recognised(source).ours(source).items()}
    dropped = {theirs for theirs, name in names.items() if new_head and _is_head(name)}
    kept = [theirs for theirs in source if theirs not in dropped]
    wanted = [name for name in ours if not (new_head and _is_head(name))]
    names = {theirs: name for theirs, name in names.items() if theirs not in dropped}
    _refuse_other_names(kept, names, wanted)
    return names


def resized(positions: Tensor, count: int) -> Tensor:
    """Embeddings (1, 1 + n², D) of a class token and a square grid, interpolated to `count` tokens.
    Raises `ConversionError` where one of the two is no such grid."""
    from torchvision.models.vision_transformer import interpolate_embeddings

    if positions.dim() != 3 or len(positions) != 1:
        message = f"the embeddings of positions are {_sizes(positions)}, and not 1×tokens×channels"
        raise ConversionError(message)
    found = positions.shape[1]
    if not all(map(_is_grid, (found, count))):
        message = f"{found} positions cannot become {count}: both are 1 and a square"
        raise ConversionError(message)
    key = "encoder.pos_embedding"
    state = interpolate_embeddings(math.isqrt(count - 1), 1, OrderedDict({key: positions}))
    result: Tensor = state[key]
    return result


def _is_grid(tokens: int) -> bool:
    """Whether these are a class token and a square."""
    return tokens > 1 and math.isqrt(tokens - 1) ** 2 == tokens - 1


def _is_head(name: str) -> bool:
    return name.startswith(f"{HEAD}.")


def _refuse_other_names(
    source: Sequence[str], names: Mapping[str, str], ours: Sequence[str]
) -> None:
    """Raises `ConversionError` unless the names of both are the same, each once."""
    counts = Counter(names.values())
    problems = {
        "not in the spec": [name for name in source if names.get(name) not in ours],
        "missing from the source": [name for name in ours if name not in counts],
        "filled twice": [name for name, count in counts.items() if count > 1],
    }
    lines = [f"{what}: {_listed(which)}" for what, which in problems.items() if which]
    if lines:
        raise ConversionError("\n".join(["the weights are of another network", *lines]))


def _refuse_other_shapes(found: Mapping[str, Tensor], ours: Mapping[str, Tensor]) -> None:
    """Raises `ConversionError` unless all tensors are as large as ours."""
    other = [name for name, value in found.items() if value.shape != ours[name].shape]
    if not other:
        return
    shown = [f"{n} is {_sizes(found[n])} there and {_sizes(ours[n])} in the spec" for n in other]
    lines = ["tensors have other sizes", *shown[:MAX_NAMES]]
    if len(shown) > MAX_NAMES:
        lines.append(f"and {len(shown) - MAX_NAMES} more")
    if all(map(_is_head, other)):
        lines.append("--new-head starts the classifier afresh")
    elif other == [POSITIONS]:
        lines.append("--resize-positions interpolates the embeddings of positions")
    raise ConversionError("\n".join(lines))


def check_finite(found: Mapping[str, Tensor]) -> None:
    """Raises `ConversionError` for values that are no finite numbers in our dtypes."""
    odd = [name for name, value in found.items() if not value.isfinite().all()]
    if odd:
        raise ConversionError(f"values are not finite, or too large for the spec's: {_listed(odd)}")


def _sizes(value: Tensor) -> str:
    return "×".join(map(str, value.shape)) or "a number"


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
    return ", ".join(names[:MAX_NAMES]) + more
