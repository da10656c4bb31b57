"""A network that is small enough for a CPU."""

SMALL = (
    "input={image: [3, 64, 64]}",
    "stem=[patch_embed: {patch: 8, width: 192}, position: learned]",
    "stages.trunk.functions.F=[layer_norm, attention: {heads: 3}]",
    "stages.trunk.functions.G=[layer_norm, mlp: {ratio: 4}]",
)
"""Settings that make it of a ViT-B spec: 64 tokens of width 192."""
