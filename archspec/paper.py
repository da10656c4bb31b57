"""A paper, in one line and as BibTeX."""

from __future__ import annotations

from dataclasses import dataclass


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
