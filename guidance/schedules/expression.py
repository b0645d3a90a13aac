"""A user's formula, evaluated by simpleeval: only known names, no long computations."""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

from .curve import AXES, Curve, ScheduleError, shortened
from .run_position import RunPosition

MAX_LENGTH = 500
VARIABLES = ("percent", "step", "steps", "sigma")
OPERATORS: dict[Any, Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Mod: operator.mod,
    # floats overflow quickly; integers would grow without a limit
    ast.Pow: lambda a, b: float(a) ** float(b),
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Not: operator.not_,
}
FUNCTIONS: dict[str, Callable[..., Any]] = {
    name: getattr(math, name) for name in ("sin", "cos", "exp", "log", "sqrt", "floor", "ceil")
} | {"min": min, "max": max, "abs": abs, "clamp": lambda x, low, high: min(max(x, low), high)}
CONSTANTS = {"pi": math.pi, "e": math.e}


@dataclass(frozen=True)
class Formula(Curve):
    """An expression in percent, step, steps and sigma.

    Numbers, pi, e, + - * / % **, comparisons, a if b else c, and the functions sin cos exp log sqrt
    floor ceil min max abs clamp(x, low, high). Raises ScheduleError for anything else.
    """

    text: str

    key: ClassVar[str] = "expression"
    keys: ClassVar[frozenset[str]] = frozenset({"expression"})

    def __post_init__(self) -> None:
        if len(self.text) > MAX_LENGTH:
            raise ScheduleError(
                f"expression has {len(self.text)} characters; at most {MAX_LENGTH} are allowed."
            )
        self._refuse_foreign_nodes()
        # a formula that always fails is reported before a run
        self.at(RunPosition(percent=0.5, step=9.5, steps=20, sigma=0.5))

    @cached_property
    def _tree(self) -> ast.expr:
        try:
            return ast.parse(self.text.strip(), mode="eval").body
        except Exception as error:  # ast raises many kinds of errors
            raise self._wrong(str(error)) from error

    @cached_property
    def _evaluator(self) -> Any:
        from simpleeval import SimpleEval  # imported on first use, so that ComfyUI starts faster

        return SimpleEval(operators=OPERATORS, functions=FUNCTIONS)

    @property
    def depends_on(self) -> frozenset[str]:
        names = {node.id for node in ast.walk(self._tree) if isinstance(node, ast.Name)}
        return frozenset(names & {*AXES})

    def at(self, position: RunPosition) -> float:
        """The scale there, finite; ScheduleError if the formula has no value there."""
        values = {name: float(getattr(position, name)) for name in VARIABLES}
        self._evaluator.names = CONSTANTS | values
        where = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
        try:
            number = float(self._evaluator.eval(self.text, previously_parsed=self._tree))
        except ArithmeticError as error:
            raise self._wrong(f"{error} at {where}") from error
        except Exception as error:  # simpleeval raises many kinds of errors
            raise self._wrong(str(error)) from error
        if not math.isfinite(number):
            raise self._wrong(f"it is {number} at {where}")
        return number

    def _refuse_foreign_nodes(self) -> None:
        known = {*VARIABLES, *CONSTANTS, *FUNCTIONS}
        for node in ast.walk(self._tree):
            if isinstance(node, ast.Constant) and not isinstance(node.value, (int, float)):
                raise self._wrong(f"{node.value!r} is not a number")
            if isinstance(node, ast.Name) and node.id not in known:
                raise self._wrong(f"there is no {node.id!r}")
            if not isinstance(node, ALLOWED):
                raise self._wrong(f"{type(node).__name__} is not allowed")

    def _wrong(self, reason: str) -> ScheduleError:
        shown = self.text if len(self.text) <= 80 else self.text[:77] + "..."
        brief = " ".join(reason.split())[:120].rstrip(".")
        names = ", ".join((*VARIABLES, *CONSTANTS))
        return ScheduleError(
            f"expression {shown!r} cannot be used ({brief}); write a formula in {names}, such as "
            "'1 + 6 * (1 - percent)'."
        )

    def to_dict(self) -> dict[str, Any]:
        return {"expression": self.text}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Formula:
        text = values["expression"]
        if not isinstance(text, str):
            raise ScheduleError(f"expression is {shortened(text)}; expected text.")
        return cls(text)

    def describe(self) -> str:
        return self.text


ALLOWED = (
    ast.BinOp,
    ast.UnaryOp,
    ast.BoolOp,
    ast.boolop,
    ast.Compare,
    ast.IfExp,
    ast.Call,
    ast.Name,
    ast.Load,
    ast.Constant,
    *OPERATORS,
)
