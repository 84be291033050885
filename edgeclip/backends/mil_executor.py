"""Carries out an ML program over NumPy, with the types that the program states.

Every result is brought to the data type that the program gives it: fp16 is rounded after each operation, and nowhere
within one. Core ML's own engines may fuse operations or accumulate in fp16, so they differ from this in the last bits.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from edgeclip.backends.base import Array
from edgeclip.backends.mil_elementwise import Kernel
from edgeclip.backends.mil_ops import KERNELS, PICKING, SEVERAL
from edgeclip.backends.mil_program import Argument, Operation, Program, TensorType
from edgeclip.backends.mil_weights import SMALL, STORED, Constant, load, rounded
from edgeclip.buffers import Buffer
from edgeclip.errors import TargetLoadError

Environment = dict[str, Constant]
Names = str | tuple[str, ...]
"""What a parameter is bound to: a value's name, or of operations that take several, all their names."""


@dataclass(frozen=True)
class Step:
    """One operation, ready to be carried out."""

    operation: Operation
    kernel: Kernel
    inputs: Mapping[str, Names]
    dead: tuple[str, ...]
    """Values that nothing needs after it."""

    def run(self, values: Environment) -> None:
        """Add the operation's outputs to the values, each of the type that the program states."""
        arguments = {
            name: tuple(values[n] for n in names) if isinstance(names, tuple) else values[names]
            for name, names in self.inputs.items()
        }
        try:
            results = self.kernel(**arguments)
        except (ValueError, TypeError, IndexError) as exc:
            raise TargetLoadError(f"{self.operation}: {exc}") from exc
        outputs = results if isinstance(results, tuple) else (results,)
        if len(outputs) != len(self.operation.outputs):
            raise TargetLoadError(f"{self.operation}: {len(outputs)} outputs, {len(self.operation.outputs)} are stated")
        for (name, kind), result in zip(self.operation.outputs, outputs, strict=True):
            values[name] = self._stated(name, kind, np.asarray(result))

    def _stated(self, name: str, kind: TensorType, result: Array) -> Array:
        fits = len(kind.shape) == result.ndim and all(
            stated is None or stated == found for stated, found in zip(kind.shape, result.shape, strict=True)
        )
        if not fits:
            raise TargetLoadError(f"{self.operation}: {name} has shape {list(result.shape)}, but is stated as {kind}")
        if kind.dtype == "fp16" and self.operation.type in PICKING:
            return result
        return rounded(result, kind.dtype)


class Executor:
    """A program whose constants are loaded. May run on many threads at once: a run shares only constants."""

    def __init__(self, program: Program, files: Mapping[str, Buffer]) -> None:
        """
        Args:
            files: of weights, by the name that the program gives them.

        Raises:
            TargetLoadError: an operation that is not known, a value that is used before it is there, or a constant
                that cannot be read.
        """
        self.program = program
        self._constants: Environment = {}
        self._steps: list[Step] = []
        known = set(program.inputs)
        _refuse_unknown(program)
        with _quiet():
            for operation in program.operations:
                self._add(operation, files, known)
        missing = [name for name in program.outputs if name not in known]
        if missing or not program.outputs:
            raise TargetLoadError(f"the program has no value for its output {', '.join(missing) or 'at all'}")
        self._steps = _with_lifetimes(self._steps, program.outputs, self._constants)
        self._constants = _needed(self._constants, self._steps, program.outputs)

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Arrays by the names of the program's inputs, to arrays by those of its outputs; fp16 comes as float32.

        Raises:
            TargetLoadError: an input is not of the shape that the program states, or the program contradicts itself.
        """
        values: Environment = dict(self._constants)
        for name, kind in self.program.inputs.items():
            values[name] = _input(name, kind, inputs[name])
        with _quiet():
            for step in self._steps:
                step.run(values)
                for name in step.dead:
                    del values[name]
        return {name: np.asarray(values[name]) for name in self.program.outputs}

    def _add(self, operation: Operation, files: Mapping[str, Buffer], known: set[str]) -> None:
        """A constant is loaded, what follows from constants alone is computed, and the rest becomes a step."""
        if operation.type == "const":
            ((name, _),) = operation.outputs
            self._constants[name] = load(operation.attributes["val"], files)
        else:
            step = Step(operation, KERNELS[operation.type], self._bind(operation, files, known), ())
            if all(name in self._constants for name in _names(step)):
                step.run(self._constants)
            else:
                self._steps.append(step)
        for name, _ in operation.outputs:
            if name in known:
                raise TargetLoadError(f"{operation}: the name {name!r} is taken")
            known.add(name)

    def _bind(self, operation: Operation, files: Mapping[str, Buffer], known: set[str]) -> dict[str, Names]:
        """Names for all arguments; constants that stand in the operation itself are given names of their own."""
        given: dict[str, tuple[Argument, ...]] = dict(operation.inputs)
        if operation.type.startswith("constexpr_"):  # of iOS 16, these have their inputs among the attributes
            given |= {name: (value,) for name, value in operation.attributes.items() if name != "name"}
        bound: dict[str, Names] = {}
        for parameter, arguments in given.items():
            names = tuple(
                self._name(operation, f"{parameter} {i}", argument, files, known)
                for i, argument in enumerate(arguments)
            )
            several = parameter == "values" and operation.type in SEVERAL
            if len(names) != 1 and not several:
                raise TargetLoadError(f"{operation}: {len(names)} values for {parameter}")
            bound[parameter] = names if several else names[0]
        try:
            inspect.signature(KERNELS[operation.type]).bind(**bound)
        except TypeError as exc:
            raise TargetLoadError(f"{operation}: {exc}") from exc
        return bound

    def _name(
        self, operation: Operation, place: str, argument: Argument, files: Mapping[str, Buffer], known: set[str]
    ) -> str:
        if isinstance(argument, str):
            if argument not in known:
                raise TargetLoadError(f"{operation}: its input {argument[:80]!r} is not there yet")
            return argument
        name = f"{operation.outputs[0][0]}: {place}"
        self._constants[name] = load(argument, files)
        return name


def _refuse_unknown(program: Program) -> None:
    unknown = sorted({o.type for o in program.operations if o.type not in KERNELS and o.type != "const"})
    if unknown:
        raise TargetLoadError(
            f"operations that the reference does not know: {', '.join(unknown)[:300]}",
            hint="it runs what CLIP towers are made of; on macOS, --backend coreml runs all",
        )
    for operation in program.operations:
        strange = [kind for _, kind in operation.outputs if kind.dtype not in STORED and kind.dtype not in _CONSTANT]
        if (strange and operation.type != "const") or not operation.outputs:
            raise TargetLoadError(f"{operation}: an output of type {strange[0] if strange else 'none'}")


_CONSTANT = {"string", *SMALL}


def _names(step: Step) -> list[str]:
    return [n for names in step.inputs.values() for n in (names if isinstance(names, tuple) else (names,))]


def _with_lifetimes(steps: Sequence[Step], outputs: Sequence[str], constants: Environment) -> list[Step]:
    """The steps, each with the values that may be dropped after it."""
    needed = {*outputs, *constants}
    found: list[Step] = []
    for step in reversed(steps):
        mentioned = {*_names(step), *(name for name, _ in step.operation.outputs)}
        dead = tuple(sorted(mentioned - needed))
        needed |= mentioned
        found.append(Step(step.operation, step.kernel, step.inputs, dead))
    return found[::-1]


def _needed(constants: Environment, steps: Sequence[Step], outputs: Sequence[str]) -> Environment:
    """Without those that only went into other constants, such as compressed weights."""
    used = {name for step in steps for name in _names(step)} | set(outputs)
    return {name: value for name, value in constants.items() if name in used}


def _input(name: str, kind: TensorType, given: Array) -> Array:
    fits = len(kind.shape) == given.ndim and all(
        stated is None or stated == found for stated, found in zip(kind.shape, given.shape, strict=True)
    )
    if not fits:
        raise TargetLoadError(f"input {name!r} has shape {list(given.shape)}, but is stated as {kind}")
    return rounded(given, kind.dtype)


def _quiet() -> np.errstate:
    """fp16 overflows to infinity as IEEE says; who reads the embeddings looks for that, not NumPy."""
    return np.errstate(all="ignore")
