"""The papers that specs and couplings cite."""

from __future__ import annotations

from collections.abc import Mapping

PAPERS: Mapping[str, str] = {
    "chang2018": "Chang et al. 2018, Reversible architectures for arbitrarily deep residual neural "
    "networks, AAAI",
    "dinh2017": "Dinh, Sohl-Dickstein and Bengio 2017, Density estimation using Real NVP, ICLR",
    "dosovitskiy2021": "Dosovitskiy et al. 2021, An image is worth 16x16 words, ICLR",
    "gholami2019": "Gholami, Keutzer and Biros 2019, ANODE: unconditionally accurate "
    "memory-efficient gradients for neural ODEs, IJCAI",
    "gomez2017": "Gomez, Ren, Urtasun and Grosse 2017, The reversible residual network, NeurIPS",
    "he2016": "He, Zhang, Ren and Sun 2016, Deep residual learning for image recognition, CVPR",
    "kidger2021": "Kidger, Foster, Li and Lyons 2021, Efficient and accurate gradients for neural "
    "SDEs, NeurIPS",
    "kingma2018": "Kingma and Dhariwal 2018, Glow: generative flow with invertible 1x1 "
    "convolutions, NeurIPS",
    "kitaev2020": "Kitaev, Kaiser and Levskaya 2020, Reformer: the efficient transformer, ICLR",
    "mangalam2022": "Mangalam et al. 2022, Reversible vision transformers, CVPR",
    "sander2021": "Sander, Ablin, Blondel and Peyré 2021, Momentum residual neural networks, ICML",
    "vaswani2017": "Vaswani et al. 2017, Attention is all you need, NeurIPS",
    "zhang2025": "Zhang et al. 2025, On exact bit-level reversible transformers without changing "
    "architecture (BDIA), ICML",
    "zhuang2021": "Zhuang, Dvornek, Tatikonda and Duncan 2021, MALI: a memory efficient and "
    "reverse accurate integrator for neural ODEs, ICLR",
}


def reference(key: str) -> str:
    """The paper of a citation key; the key itself where it is not known."""
    return PAPERS.get(key, key)
