"""The names of a vision transformer's weights.

All have the same tensors as they stand: queries, keys and values are the thirds of one matrix, in
this order, and each third has its heads one after the other.
"""

from __future__ import annotations

from collections.abc import Mapping

TORCHVISION: Mapping[str, str] = {
    "conv_proj.{kind}": "stem.patch_embed.project.{kind}",
    "class_token": "stem.class_token.token",
    "encoder.pos_embedding": "stem.position.embedding",
    "encoder.layers.encoder_layer_{i}.ln_1.{kind}": "stages.trunk.layers.{i}.F.layer_norm.{kind}",
    "encoder.layers.encoder_layer_{i}.self_attention.in_proj_{kind}": (
        "stages.trunk.layers.{i}.F.attention.query_key_value.{kind}"
    ),
    "encoder.layers.encoder_layer_{i}.self_attention.out_proj.{kind}": (
        "stages.trunk.layers.{i}.F.attention.project.{kind}"
    ),
    "encoder.layers.encoder_layer_{i}.ln_2.{kind}": "stages.trunk.layers.{i}.G.layer_norm.{kind}",
    "encoder.layers.encoder_layer_{i}.mlp.0.{kind}": "stages.trunk.layers.{i}.G.mlp.expand.{kind}",
    "encoder.layers.encoder_layer_{i}.mlp.3.{kind}": (
        "stages.trunk.layers.{i}.G.mlp.contract.{kind}"
    ),
    "encoder.ln.{kind}": "head.layer_norm.{kind}",
    "heads.head.{kind}": "head.linear.{kind}",
}
"""torchvision's `vit_b_16` and others → `vit_b` and others."""

TORCHVISION_FILES: Mapping[str, str] = {
    theirs.replace("mlp.0", "mlp.linear_1").replace("mlp.3", "mlp.linear_2"): ours
    for theirs, ours in TORCHVISION.items()
}
"""The files that torchvision downloads still have the names of its first version."""

TIMM: Mapping[str, str] = {
    "patch_embed.proj.{kind}": "stem.patch_embed.project.{kind}",
    "cls_token": "stem.class_token.token",
    "pos_embed": "stem.position.embedding",
    "blocks.{i}.norm1.{kind}": "stages.trunk.layers.{i}.F.layer_norm.{kind}",
    "blocks.{i}.attn.qkv.{kind}": "stages.trunk.layers.{i}.F.attention.query_key_value.{kind}",
    "blocks.{i}.attn.proj.{kind}": "stages.trunk.layers.{i}.F.attention.project.{kind}",
    "blocks.{i}.norm2.{kind}": "stages.trunk.layers.{i}.G.layer_norm.{kind}",
    "blocks.{i}.mlp.fc1.{kind}": "stages.trunk.layers.{i}.G.mlp.expand.{kind}",
    "blocks.{i}.mlp.fc2.{kind}": "stages.trunk.layers.{i}.G.mlp.contract.{kind}",
    "norm.{kind}": "head.layer_norm.{kind}",
    "head.{kind}": "head.linear.{kind}",
}
"""timm's `vit_base_patch16_224` and others → `vit_b` and others."""
