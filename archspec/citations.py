"""The papers that specs and couplings cite."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from archspec.spec import Spec

_CVPR = "Proceedings of the IEEE/CVF Conference on Computer Vision and Pattern Recognition"
_ICCV = "Proceedings of the IEEE/CVF International Conference on Computer Vision"
_ICLR = "International Conference on Learning Representations"
_ICML = "Proceedings of the {} International Conference on Machine Learning"
_NEURIPS = "Advances in Neural Information Processing Systems"
_PMLR = "Proceedings of Machine Learning Research"


@dataclass(frozen=True)
class Paper:
    """A paper, with the fields of its BibTeX entry."""

    system: str
    """What its network is called, in a word or two."""
    authors: tuple[str, ...]
    """Given name first, the family name the last word."""
    year: int
    title: str
    venue: str
    """The short name of the conference or journal."""
    booktitle: str = ""
    """The proceedings; of an article, nothing."""
    journal: str = ""
    series: str = ""
    volume: str = ""
    number: str = ""
    pages: str = ""
    doi: str = ""
    url: str = ""

    @property
    def reference(self) -> str:
        """One line: Gomez, Ren, Urtasun and Grosse 2017, The Reversible …, NeurIPS."""
        families = [name.rpartition(" ")[2] for name in self.authors]
        if len(families) > 4:
            who = f"{families[0]} et al."
        else:
            who = " and ".join(filter(None, (", ".join(families[:-1]), families[-1])))
        return f"{who} {self.year}, {self.title}, {self.venue}"

    def bibtex(self, key: str) -> str:
        """The BibTeX entry, in UTF-8. The title stands in two pairs of braces, which keep its
        capitals."""
        kind = "article" if self.journal else "inproceedings"
        fields = {
            "author": " and ".join(self.authors),
            "title": f"{{{self.title}}}",
            "booktitle": self.booktitle,
            "journal": self.journal,
            "series": self.series,
            "volume": self.volume,
            "number": self.number,
            "pages": self.pages,
            "year": str(self.year),
            "doi": self.doi,
            "url": self.url,
        }
        lines = [f"  {name} = {{{_escaped(v)}}}," for name, v in fields.items() if v]
        return "\n".join([f"@{kind}{{{key},", *lines, "}"])


def _escaped(text: str) -> str:
    return text.replace("&", r"\&")


PAPERS: Mapping[str, Paper] = {
    "chang2018": Paper(
        "Hamiltonian",
        (
            "Bo Chang",
            "Lili Meng",
            "Eldad Haber",
            "Lars Ruthotto",
            "David Begert",
            "Elliot Holtham",
        ),
        2018,
        "Reversible Architectures for Arbitrarily Deep Residual Neural Networks",
        "AAAI",
        booktitle="Proceedings of the AAAI Conference on Artificial Intelligence",
        volume="32",
        number="1",
        pages="2811--2818",
        doi="10.1609/aaai.v32i1.11668",
    ),
    "dinh2015": Paper(
        "NICE",
        ("Laurent Dinh", "David Krueger", "Yoshua Bengio"),
        2015,
        "NICE: Non-linear Independent Components Estimation",
        "ICLR workshop",
        booktitle=f"{_ICLR}, Workshop Track",
        url="https://arxiv.org/abs/1410.8516",
    ),
    "dinh2017": Paper(
        "RealNVP",
        ("Laurent Dinh", "Jascha Sohl-Dickstein", "Samy Bengio"),
        2017,
        "Density estimation using Real NVP",
        "ICLR",
        booktitle=_ICLR,
        url="https://openreview.net/forum?id=HkpbnH9lx",
    ),
    "dosovitskiy2021": Paper(
        "ViT",
        (
            "Alexey Dosovitskiy",
            "Lucas Beyer",
            "Alexander Kolesnikov",
            "Dirk Weissenborn",
            "Xiaohua Zhai",
            "Thomas Unterthiner",
            "Mostafa Dehghani",
            "Matthias Minderer",
            "Georg Heigold",
            "Sylvain Gelly",
            "Jakob Uszkoreit",
            "Neil Houlsby",
        ),
        2021,
        "An Image is Worth 16x16 Words: Transformers for Image Recognition at Scale",
        "ICLR",
        booktitle=_ICLR,
        url="https://openreview.net/forum?id=YicbFdNTTy",
    ),
    "fan2021": Paper(
        "MViT",
        (
            "Haoqi Fan",
            "Bo Xiong",
            "Karttikeya Mangalam",
            "Yanghao Li",
            "Zhicheng Yan",
            "Jitendra Malik",
            "Christoph Feichtenhofer",
        ),
        2021,
        "Multiscale Vision Transformers",
        "ICCV",
        booktitle=_ICCV,
        pages="6824--6835",
    ),
    "gholami2019": Paper(
        "ANODE",
        ("Amir Gholami", "Kurt Keutzer", "George Biros"),
        2019,
        "ANODE: Unconditionally Accurate Memory-Efficient Gradients for Neural ODEs",
        "IJCAI",
        booktitle="Proceedings of the International Joint Conference on Artificial Intelligence",
        pages="730--736",
        doi="10.24963/ijcai.2019/103",
    ),
    "gomez2017": Paper(
        "RevNet",
        ("Aidan N. Gomez", "Mengye Ren", "Raquel Urtasun", "Roger B. Grosse"),
        2017,
        "The Reversible Residual Network: Backpropagation Without Storing Activations",
        "NeurIPS",
        booktitle=_NEURIPS,
        volume="30",
        pages="2214--2224",
    ),
    "gregor2010": Paper(
        "LISTA",
        ("Karol Gregor", "Yann LeCun"),
        2010,
        "Learning Fast Approximations of Sparse Coding",
        "ICML",
        booktitle=_ICML.format("27th"),
        pages="399--406",
    ),
    "griewank2000": Paper(
        "revolve",
        ("Andreas Griewank", "Andrea Walther"),
        2000,
        "Algorithm 799: Revolve: An Implementation of Checkpointing for the Reverse or Adjoint "
        "Mode of Computational Differentiation",
        "ACM TOMS",
        journal="ACM Transactions on Mathematical Software",
        volume="26",
        number="1",
        pages="19--45",
        doi="10.1145/347837.347846",
    ),
    "he2016": Paper(
        "ResNet",
        ("Kaiming He", "Xiangyu Zhang", "Shaoqing Ren", "Jian Sun"),
        2016,
        "Deep Residual Learning for Image Recognition",
        "CVPR",
        booktitle="Proceedings of the IEEE Conference on Computer Vision and Pattern Recognition",
        pages="770--778",
        doi="10.1109/CVPR.2016.90",
    ),
    "he2016identity": Paper(
        "pre-activation ResNet",
        ("Kaiming He", "Xiangyu Zhang", "Shaoqing Ren", "Jian Sun"),
        2016,
        "Identity Mappings in Deep Residual Networks",
        "ECCV",
        booktitle="European Conference on Computer Vision",
        series="Lecture Notes in Computer Science",
        volume="9908",
        pages="630--645",
        doi="10.1007/978-3-319-46493-0_38",
    ),
    "jacobsen2018": Paper(
        "i-RevNet",
        ("Jörn-Henrik Jacobsen", "Arnold W. M. Smeulders", "Edouard Oyallon"),
        2018,
        "i-RevNet: Deep Invertible Networks",
        "ICLR",
        booktitle=_ICLR,
        url="https://openreview.net/forum?id=HJsjkMb0Z",
    ),
    "kidger2021": Paper(
        "reversible Heun",
        ("Patrick Kidger", "James Foster", "Xuechen Li", "Terry Lyons"),
        2021,
        "Efficient and Accurate Gradients for Neural SDEs",
        "NeurIPS",
        booktitle=_NEURIPS,
        volume="34",
        pages="18747--18761",
    ),
    "kingma2018": Paper(
        "Glow",
        ("Diederik P. Kingma", "Prafulla Dhariwal"),
        2018,
        "Glow: Generative Flow with Invertible 1x1 Convolutions",
        "NeurIPS",
        booktitle=_NEURIPS,
        volume="31",
    ),
    "kitaev2020": Paper(
        "Reformer",
        ("Nikita Kitaev", "Łukasz Kaiser", "Anselm Levskaya"),
        2020,
        "Reformer: The Efficient Transformer",
        "ICLR",
        booktitle=_ICLR,
        url="https://openreview.net/forum?id=rkgNKkHtvB",
    ),
    "li2022": Paper(
        "MViTv2",
        (
            "Yanghao Li",
            "Chao-Yuan Wu",
            "Haoqi Fan",
            "Karttikeya Mangalam",
            "Bo Xiong",
            "Jitendra Malik",
            "Christoph Feichtenhofer",
        ),
        2022,
        "MViTv2: Improved Multiscale Vision Transformers for Classification and Detection",
        "CVPR",
        booktitle=_CVPR,
        pages="4804--4814",
    ),
    "liu2021": Paper(
        "Swin",
        (
            "Ze Liu",
            "Yutong Lin",
            "Yue Cao",
            "Han Hu",
            "Yixuan Wei",
            "Zheng Zhang",
            "Stephen Lin",
            "Baining Guo",
        ),
        2021,
        "Swin Transformer: Hierarchical Vision Transformer using Shifted Windows",
        "ICCV",
        booktitle=_ICCV,
        pages="10012--10022",
    ),
    "mangalam2022": Paper(
        "Rev-ViT",
        (
            "Karttikeya Mangalam",
            "Haoqi Fan",
            "Yanghao Li",
            "Chao-Yuan Wu",
            "Bo Xiong",
            "Christoph Feichtenhofer",
            "Jitendra Malik",
        ),
        2022,
        "Reversible Vision Transformers",
        "CVPR",
        booktitle=_CVPR,
        pages="10830--10840",
    ),
    "nesterov1983": Paper(
        "Nesterov",
        ("Yurii Nesterov",),
        1983,
        "A method of solving a convex programming problem with convergence rate O(1/k²)",
        "Doklady",
        journal="Doklady Akademii Nauk SSSR",
        volume="269",
        number="3",
        pages="543--547",
    ),
    "sander2021": Paper(
        "Momentum ResNet",
        ("Michael E. Sander", "Pierre Ablin", "Mathieu Blondel", "Gabriel Peyré"),
        2021,
        "Momentum Residual Neural Networks",
        "ICML",
        booktitle=_ICML.format("38th"),
        series=_PMLR,
        volume="139",
        pages="9276--9287",
        url="https://proceedings.mlr.press/v139/sander21a.html",
    ),
    "touvron2021": Paper(
        "DeiT",
        (
            "Hugo Touvron",
            "Matthieu Cord",
            "Matthijs Douze",
            "Francisco Massa",
            "Alexandre Sablayrolles",
            "Hervé Jégou",
        ),
        2021,
        "Training data-efficient image transformers & distillation through attention",
        "ICML",
        booktitle=_ICML.format("38th"),
        series=_PMLR,
        volume="139",
        pages="10347--10357",
    ),
    "vaswani2017": Paper(
        "Transformer",
        (
            "Ashish Vaswani",
            "Noam Shazeer",
            "Niki Parmar",
            "Jakob Uszkoreit",
            "Llion Jones",
            "Aidan N. Gomez",
            "Łukasz Kaiser",
            "Illia Polosukhin",
        ),
        2017,
        "Attention Is All You Need",
        "NeurIPS",
        booktitle=_NEURIPS,
        volume="30",
        pages="5998--6008",
    ),
    "zhang2025": Paper(
        "BDIA",
        ("Guoqiang Zhang", "J. P. Lewis", "W. Bastiaan Kleijn"),
        2025,
        "On Exact Bit-level Reversible Transformers Without Changing Architecture",
        "ICML",
        booktitle=_ICML.format("42nd"),
        series=_PMLR,
        volume="267",
        pages="75314--75328",
        url="https://proceedings.mlr.press/v267/zhang25ao.html",
    ),
    "zhuang2021": Paper(
        "MALI",
        ("Juntang Zhuang", "Nicha C. Dvornek", "Sekhar Tatikonda", "James S. Duncan"),
        2021,
        "MALI: A memory efficient and reverse accurate integrator for Neural ODEs",
        "ICLR",
        booktitle=_ICLR,
        url="https://openreview.net/forum?id=blfSjHeFM_e",
    ),
}


def reference(key: str) -> str:
    """The paper of a citation key, in one line; the key itself where it is not known."""
    return PAPERS[key].reference if key in PAPERS else key


def family_of(spec: Spec) -> str | None:
    """What a spec's kind of network is called: by itself, or else by the first paper that it
    cites."""
    known = [PAPERS[key].system for key in spec.cite if key in PAPERS]
    return spec.family or (known[0] if known else None)
