"""The backward engine: activations replaced by handles, rebuilt when autograd asks for them.

Autograd stays autograd. While a stage runs forward, every tensor that a node would save for
backward is replaced by a `Handle` (`torch.autograd.graph.saved_tensors_hooks`). When backward
first asks for a handle, the engine walks the stage's program backwards from its final streams to
the step in question, replays the residual function there, and fills the handles with what the
replay saves. The graph is the real one, so hooks, accumulation, frozen parameters and gradients of
gradients need no special case.

How a backward pass goes, and where:

1. `steps`: a stage's program is data, layers of steps, each an update, a map or a permutation.
   `forward` runs them, `inversion` takes them back, both on the streams alone.
2. `tape`: a `Tape` records a forward pass. Its `Recorder` answers autograd with `handles`, in
   groups: one for each *call* of a residual function, one for the *arithmetic* of a step around
   its calls. With a call it takes down the function's parameters, buffers and modes (`modules`),
   what it drew from the random generators and the autocast settings (`states`), and the versions
   of what must not be changed in place (`versions`).
3. `handles`: autograd asks for a handle, which asks its tape.
4. `reversible`: a `ReversibleTape` stands at the final streams, which the one door out of the
   stage has saved. It undoes steps until it stands behind the one of the handle.
   (`compiler/checkpointing.py` has the tapes that run layers again from streams that were kept.)
5. `replay`: the function is called again as it was in the forward pass, and the tape captures what
   the call saves in the handles of its group. The same result undoes the step.
6. What would be a wrong gradient on the way is an error of `errors`. `contexts` knows what else is
   at work: replays, stages inside stages, torch.func, torch.compile, CUDA graphs.

Beside torch this package imports exact arithmetic, its information and the schedules alone.
"""

from compiler.engine.contexts import is_replaying, is_transformed, uncompiled
from compiler.engine.errors import ReplayError
from compiler.engine.forward import invoke, run
from compiler.engine.inversion import OTHER_INFORMATION, invert, unwind
from compiler.engine.reversible import run_reversible
from compiler.engine.states import RandomState
from compiler.engine.steps import Call, Layer, Map, Permute, Step, Update, Values

__all__ = [
    "OTHER_INFORMATION",
    "Call",
    "Layer",
    "Map",
    "Permute",
    "RandomState",
    "ReplayError",
    "Step",
    "Update",
    "Values",
    "invert",
    "invoke",
    "is_replaying",
    "is_transformed",
    "run",
    "run_reversible",
    "uncompiled",
    "unwind",
]
