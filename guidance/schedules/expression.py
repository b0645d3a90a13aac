"""A user's formula, evaluated by simpleeval: only known names, no long computations."""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

MAX_LENGTH = 500
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


class ExpressionError(ValueError):
    """An expression that cannot be used; the message says why."""


class Expression:
    """A formula with the given variables, numbers, + - * / % **, comparisons, a if b else c.

    Functions: sin cos exp log sqrt floor ceil min max abs clamp(x, low, high); pi, e. Raises
    ExpressionError for anything else.
    """

    def __init__(self, text: str, variables: Sequence[str]):
        from simpleeval import SimpleEval  # imported on first use, so that ComfyUI starts faster

        self.text = text
        self._variables = tuple(variables)
        if len(text) > MAX_LENGTH:
            raise ExpressionError(
                f"expression has {len(text)} characters; at most {MAX_LENGTH} are allowed."
            )
        self._evaluator = SimpleEval(operators=OPERATORS, functions=FUNCTIONS)
        try:
            self._tree = self._evaluator.parse(text.strip())
            self._refuse_foreign_nodes()
        except ExpressionError:
            raise
        except Exception as error:  # simpleeval and ast raise many kinds of errors
            raise self._wrong(str(error)) from error

    @property
    def reads(self) -> frozenset[str]:
        """Which of the variables the formula has."""
        names = {node.id for node in ast.walk(self._tree) if isinstance(node, ast.Name)}
        return frozenset(names & {*self._variables})

    def __call__(self, **values: float) -> float:
        """Its value, a finite float; ExpressionError if there is none."""
        self._evaluator.names = CONSTANTS | values
        where = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
        try:
            value = self._evaluator.eval(self.text, previously_parsed=self._tree)
            number = float(value)
        except ArithmeticError as error:
            raise self._wrong(f"{error} at {where}") from error
        except Exception as error:
            raise self._wrong(str(error)) from error
        if not math.isfinite(number):
            raise self._wrong(f"it is {number} at {where}")
        return number

    def _refuse_foreign_nodes(self) -> None:
        known = {*self._variables, *CONSTANTS, *FUNCTIONS}
        for node in ast.walk(self._tree):
            if isinstance(node, ast.Constant) and not isinstance(node.value, (int, float)):
                raise self._wrong(f"{node.value!r} is not a number")
            if isinstance(node, ast.Name) and node.id not in known:
                raise self._wrong(f"there is no {node.id!r}")
            if not isinstance(node, ALLOWED):
                raise self._wrong(f"{type(node).__name__} is not allowed")

    def _wrong(self, reason: str) -> ExpressionError:
        shown = self.text if len(self.text) <= 80 else self.text[:77] + "..."
        brief = " ".join(reason.split())[:120].rstrip(".")
        names = ", ".join((*self._variables, *CONSTANTS))
        return ExpressionError(
            f"expression {shown!r} cannot be used ({brief}); write a formula in {names}, such as "
            "'1 + 6 * (1 - percent)'."
        )


ALLOWED = (
    ast.Expression,
    ast.Expr,
    ast.BinOp,
    ast.UnaryOp,
    ast.BoolOp,
    ast.And,
    ast.Or,
    ast.Compare,
    ast.IfExp,
    ast.Call,
    ast.Name,
    ast.Load,
    ast.Constant,
    *OPERATORS,
)
