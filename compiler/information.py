"""The side information of exact arithmetic: what updates lose, kept for their inverses.

Beside torch this file imports its kernels alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from compiler.kernels import Multiplier

WORD = 51
"""Bits of a stack's word that are used: so many can be divided (`divided`)."""
SPILL = 16
"""Low bits that leave a word when it is full."""
ROOM = 2**24
"""For digits, that a word has after it was looked at: at least that of one push."""


@dataclass(frozen=True)
class Spill:
    """Low digits that left the words of a stack, before push number `at`."""

    at: int
    values: Tensor
    """int16: of all elements, or, one after another, of those that had so many."""
    everywhere: bool


@dataclass(frozen=True)
class Stack:
    """A stack of digits for each element, of any radix each: one number in mixed radix.

    A stack is never changed; each operation gives another.
    """

    word: Tensor
    """float64 integers below 2^51."""
    pushes: int = 0
    bound: int = 0
    """No word is larger."""
    spills: tuple[Spill, ...] = ()

    def with_room(self, radix: int) -> Stack:
        """Room for one more digit, so that words stay exact. They are looked at only when their
        bound is spent: that waits for the device."""
        if (self.bound + 1) * radix <= 2**WORD:
            return self
        if not is_known(self.word):
            return replace(self, bound=0)  # what spills is counted, not computed
        largest = float(self.word.max()) if self.word.numel() else 0.0
        known = 0 <= largest <= 2**WORD  # numbers that are none are told of with their stream
        stack = replace(self, bound=int(largest)) if known else self
        # Less room would soon be spent again.
        while (stack.bound + 1) * max(radix, min(radix**8, ROOM)) > 2**WORD:
            stack = stack._spilled() if known else stack._spilled_everywhere()
        return stack

    def pushed(self, word: Tensor, largest: int) -> Stack:
        """After a digit was pushed, of a radix up to `largest`."""
        bound = self.bound * largest + largest - 1
        return replace(self, word=word, pushes=self.pushes + 1, bound=bound)

    def pulled_from(self, word: Tensor, radix: int) -> Stack:
        """After a digit was pulled that is part of a new value, and will be pushed back."""
        return replace(self, word=word, bound=self.bound // radix)

    def before_push(self, word: Tensor) -> Stack:
        """After the last push was undone: what spilled before it is put back."""
        stack = replace(self, word=word, pushes=self.pushes - 1)
        return stack._refilled()

    def _spilled(self) -> Stack:
        large = self.word >= 2.0**SPILL
        share = float(large.mean(dtype=torch.float64))
        # Which elements have spilled takes a bit of each.
        if SPILL * (1 - share) < 1:
            return self._spilled_everywhere()
        high, values = self._divided()
        word = torch.where(large, high.mul_(2).add_(1), self.word * 2)
        spill = Spill(self.pushes, values[large], False)
        bound = max(2 * (self.bound >> SPILL) + 1, 2 ** (SPILL + 1))
        return Stack(word, self.pushes, bound, (*self.spills, spill))

    def _spilled_everywhere(self) -> Stack:
        high, values = self._divided()
        spills = (*self.spills, Spill(self.pushes, values, True))
        return Stack(high, self.pushes, self.bound >> SPILL, spills)

    def _divided(self) -> tuple[Tensor, Tensor]:
        high = torch.mul(self.word, 2.0**-SPILL).floor_()
        low = self.word - high * 2.0**SPILL
        return high, low.sub_(2.0 ** (SPILL - 1)).to(torch.int16)

    def _refilled(self) -> Stack:
        if not self.spills or self.spills[-1].at != self.pushes:
            return self
        spill, word = self.spills[-1], self.word
        values = spill.values.double().add_(2.0 ** (SPILL - 1))
        if spill.everywhere:
            whole = torch.mul(word, 2.0**SPILL).add_(values)
        else:
            half = torch.mul(word, 0.5).floor_()
            large = word != 2 * half
            low = torch.zeros_like(word).masked_scatter_(large, values)
            whole = torch.where(large, half * 2.0**SPILL + low, half)
        return replace(self, word=whole, spills=self.spills[:-1])._refilled()

    @property
    def bits(self) -> float:
        """Bits of information an element holds, on average."""
        elements = max(1, self.word.numel())
        spilled = SPILL * sum(spill.values.numel() for spill in self.spills) / elements
        return spilled + float(torch.log2(self.word + 1).mean())


@dataclass(frozen=True)
class Bits:
    """A stack of bits for each element, eight to a byte."""

    full: tuple[tuple[Tensor, int], ...] = ()
    """Bytes, and how many bits of each are used."""
    top: Tensor | None = None
    used: int = 0

    def push(self, count: int, digit: Tensor) -> Bits:
        """With `count` more bits: `digit` (uint8), below 2^count."""
        if self.top is None:
            return Bits(self.full, digit, count)
        if self.used + count > 8:
            return Bits((*self.full, (self.top, self.used)), digit, count)
        return Bits(self.full, torch.mul(self.top, 2**count).add_(digit), self.used + count)

    def pull(self, count: int) -> tuple[Tensor, Bits]:
        """The digit pushed last, and the stack before."""
        assert self.top is not None
        digit, rest = self.top.bitwise_and(2**count - 1), self.top.bitwise_right_shift(count)
        if self.used > count:
            return digit, Bits(self.full, rest, self.used - count)
        if not self.full:
            return digit, Bits()
        (top, used), full = self.full[-1], self.full[:-1]
        return digit, Bits(full, top, used)

    @property
    def bits(self) -> float:
        """Bits of information an element holds."""
        return self.used + sum(used for _, used in self.full)


@dataclass(frozen=True)
class Gauged:
    """A stream as t/g in units (float64 integers), and g after each of its updates so far."""

    units: Tensor
    gauges: tuple[Multiplier, ...] = ()

    @property
    def gauge(self) -> Multiplier:
        """The product of the scales so far."""
        return self.gauges[-1] if self.gauges else 1.0


Shape = tuple[int, ...]


@dataclass
class Information:
    """The side information of one pass through a stage: empty before its first layer, filled by
    the forward pass, and read by the inverse, which leaves it as it is.

    Streams of one shape share a stack. With `keeps` False only that is kept which later layers
    read.
    """

    keeps: bool = True
    stacks: dict[Shape, Stack] = field(default_factory=dict)
    packed: dict[Shape, Bits] = field(default_factory=dict)
    gauged: dict[str, Gauged] = field(default_factory=dict)
    peaks: list[tuple[int, str, Tensor]] = field(default_factory=list)
    """The layer (-1 is before the first), the stream, and the largest absolute value that it had
    there: to be checked once, since that waits for the device."""

    @property
    def is_empty(self) -> bool:
        """Whether no pass has filled it."""
        return not (self.stacks or self.packed or self.gauged)

    @property
    def is_spent(self) -> bool:
        """Whether all that was kept has been read again, as at the start of a stage it must be.
        Waits for the device."""
        stacks = all(s.pushes == 0 and not _any(s.word) for s in self.stacks.values())
        packed = all(bits == Bits() for bits in self.packed.values())
        return stacks and packed and not any(g.gauges for g in self.gauged.values())

    def copy(self) -> Information:
        """Another container of the same tensors."""
        return Information(self.keeps, dict(self.stacks), dict(self.packed), dict(self.gauged))

    def stack(self, like: Tensor) -> Stack:
        """The stack for streams of a shape."""
        known = self.stacks.get(tuple(like.shape))
        return known or Stack(torch.zeros_like(like, dtype=torch.float64))

    def tensors(self) -> list[Tensor]:
        """All tensors in it but the peaks, in an order of their own."""
        found: list[Tensor] = []

        def note(tensor: Tensor) -> Tensor:
            found.append(tensor)
            return tensor

        self.rebuilt(note)
        return found

    def with_tensors(self, tensors: Sequence[Tensor]) -> Information:
        """The same with other tensors in the places of its own, in the order of `tensors()`."""
        following = iter(tensors)
        return self.rebuilt(lambda _: next(following))

    def rebuilt(self, of: Callable[[Tensor], Tensor]) -> Information:
        """The same with `of(tensor)` in place of each tensor."""

        def stack(old: Stack) -> Stack:
            spills = tuple(replace(spill, values=of(spill.values)) for spill in old.spills)
            return replace(old, word=of(old.word), spills=spills)

        def bits(old: Bits) -> Bits:
            top = None if old.top is None else of(old.top)
            return Bits(tuple((of(byte), used) for byte, used in old.full), top, old.used)

        def gauged(old: Gauged) -> Gauged:
            gauges = (of(g) if isinstance(g, Tensor) else g for g in old.gauges)
            return Gauged(of(old.units), tuple(gauges))

        return Information(
            self.keeps,
            {shape: stack(old) for shape, old in self.stacks.items()},
            {shape: bits(old) for shape, old in self.packed.items()},
            {name: gauged(old) for name, old in self.gauged.items()},
        )

    @property
    def nbytes(self) -> int:
        """Bytes that it holds."""
        return sum(tensor.nbytes for tensor in self.tensors())

    def bits_per_element(self) -> float:
        """Bits of information in the stacks, over the shapes that they are for."""
        stacked = sum(stack.bits for stack in self.stacks.values())
        return stacked + sum(bits.bits for bits in self.packed.values())

    def watch(self, layer: int, name: str, value: Tensor) -> None:
        """Take down how large a stream is."""
        if value.numel():
            self.peaks.append((layer, name, value.detach().abs().amax()))


def is_known(tensor: Tensor) -> bool:
    """Whether a tensor has values to look at: those of shape alone, meta or fake, have none, and
    torch.func hides them."""
    hidden = torch._C._functorch.is_functorch_wrapped_tensor(tensor)
    return tensor.device.type != "meta" and not hasattr(tensor, "fake_device") and not hidden


def _any(word: Tensor) -> bool:
    return is_known(word) and bool(word.any())
