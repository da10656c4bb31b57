"""The spec files that are mutated: what is shipped, and all that it does without."""

from __future__ import annotations

import re
from functools import cache

from archspec.dumping import dump
from archspec.finding import zoo
from archspec.loading import PROGRAM, load, ordered

MAIN = "spec.yaml"
"""The file of a mutant that is loaded."""
SMALL = (
    "stem=[patch_embed: {patch: 4, width: 16}, position: learned]",
    "stages.trunk.depth=3",
    "stages.trunk.functions.F.1.attention.heads=2",
)
"""Settings that make one of these small enough to be built and verified in no time."""
VITS = ("vit_digits", "rev_vit_digits", "momrev_vit_digits")
STAGE = """\
archspec: 1
name: spec
summary: A coupling with its functions
input: {tokens: [5, 8]}
stages:
  trunk:
    depth: 3
    coupling: mine
    functions:
FUNCTIONS
head: [pool: mean, linear: classes]
task: {classify: {classes: 3}}
"""
FUNCTION = "      {}: [layer_norm, linear: channels, tanh]\n"
MAP = "      {}: actnorm\n"
EVERYTHING = """\
archspec: 1
name: spec
summary: All that the shipped specs do without
input: {tokens: [5, 8]}
side: {time: {features: [3]}, pull: {tokens: [5, 8]}}
stages:
  trunk:
    depth: 4
    streams: {x: input, y: "F0(input)", z: zeros}
    functions:
      F0: [layer_norm, tanh]
      F: [layer_norm, attention: {heads: 2}, drop_path: 0.2*layer/(depth - 1)]
      G: [layer_norm, modulate, mlp: {ratio: 2, dropout: 0.1}]
      H: [add, scale, linear: {out: channels, bias: false}]
    maps: {W: invertible_linear, A: actnorm}
    constants:
      h: 1/depth
      gamma: {learn: 0.9, within: [0.5, 0.99], per: channel}
      sign: {draw: [0.5, -0.5], per: sample, evaluate: 0.25}
      ramp: 0.5 + 0.4*progress
    update:
      - x = W(x)
      - k := tanh(y)*pull
      - x = gamma*x + h*F(y) + k
      - z = sign*z + (1 - sign)*x + H(x, y)
      - y += ramp*G(x, time)/2
      - y = A(y)
      - x, y, z = y, z, x
    output: (x + y)/2 - z
    share: false
head: [pool: mean, linear: classes]
task: {classify: {classes: 3}}
"""
"""A spec of everything that the shipped ones do without."""


@cache
def originals() -> tuple[dict[str, str], ...]:
    """Every shipped spec as it is written and with all that it inherits, and every coupling beside
    a spec that uses it and written out in one."""
    found = []
    for path in sorted(zoo().glob("*.yaml")):
        found.append({MAIN: path.read_text(encoding="utf-8")})
        small = SMALL if path.stem in VITS else ()
        found.append({MAIN: dump(ordered(load(path, small).tree))})
    for path in sorted((zoo() / "couplings").glob("*.yaml")):
        text = path.read_text(encoding="utf-8")
        stage = STAGE.replace(
            "FUNCTIONS\n", "".join(map(FUNCTION.format, named(text, "functions")))
        )
        if maps := named(text, "maps"):
            stage = stage.replace("head:", "    maps:\n" + "".join(map(MAP.format, maps)) + "head:")
        if path.stem in ("residual", "residual_pair", "euler", "rk2", "rk4"):
            stage = stage.replace("    depth: 3\n", "    depth: 3\n    backward: store\n")
        found.append({MAIN: stage, "couplings/mine.yaml": text})
        program = re.findall(rf"^(?:{'|'.join(PROGRAM)}):.*\n(?:[ -].*\n)*", text, re.M)
        written = "".join(re.sub("^", "    ", part, flags=re.M).rstrip(" ") for part in program)
        found.append({MAIN: stage.replace("    coupling: mine\n", written)})
    return (*found, {MAIN: EVERYTHING})


def named(text: str, key: str) -> list[str]:
    """The functions or maps that a coupling asks for."""
    return re.findall(r"\w+", "".join(re.findall(rf"^{key}: \[(.*)\]", text, re.M)))
