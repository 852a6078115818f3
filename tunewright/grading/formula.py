"""The formula of a multi grader: arithmetic over the names of its graders, parsed and walked, never run as Python.

    + - * / // % and ^ (or **) for powers; min, max, abs, floor, ceil, exp, sqrt, log (to the base e); parentheses

All is done in floats, so a number stays small in memory however large it grows, and each step takes the same time.
"""

from __future__ import annotations

import ast
import difflib
import math
import operator
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

LONGEST = 2_000  # characters
DEEPEST = 100  # operations inside operations; a sum of n terms is n deep

OPERATORS: dict[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: math.pow,  # of ** a negative number with a fraction for exponent makes a complex one
}
SIGNS: dict[type[ast.unaryop], Callable[[float], float]] = {ast.UAdd: operator.pos, ast.USub: operator.neg}
FUNCTIONS: dict[str, Callable[[float], float]] = {
    "abs": abs,
    "floor": math.floor,
    "ceil": math.ceil,
    "exp": math.exp,
    "sqrt": math.sqrt,
    "log": math.log,
}
OF_MANY: dict[str, Callable[[list[float]], float]] = {"min": min, "max": max}


class Undefined(ArithmeticError):
    """The formula has no finite value here."""


@dataclass(frozen=True)
class Formula:
    """A formula that is known to hold nothing but arithmetic."""

    text: str
    names: frozenset[str]  # those that it uses
    tree: ast.expr

    def __call__(self, values: Mapping[str, float]) -> float:
        """Its value. Raises Undefined where there is none, as in a division by zero."""
        return _value(self.tree, values)


def parse(text: str, names: Iterable[str]) -> Formula:
    """A formula over these names. Raises ValueError that says what in it is no arithmetic, or no name."""
    if len(text) > LONGEST:
        raise ValueError(f"the formula has {len(text):,} characters; {LONGEST:,} are allowed")
    used: set[str] = set()
    try:
        tree = ast.parse(text.strip().replace("^", "**"), mode="eval").body
        _check(tree, list(names), used, DEEPEST)
    except SyntaxError as error:
        raise ValueError(f"the formula {text!r:.80} cannot be read: {error.msg}") from error
    except (RecursionError, MemoryError) as error:  # of Python's parser, or of writing down what is refused
        raise ValueError(f"the formula {text!r:.80} cannot be read: it is too deep") from error
    return Formula(text, frozenset(used), tree)


def _check(node: ast.expr, names: list[str], used: set[str], depth: int) -> None:
    if depth == 0:
        raise ValueError(f"the formula is more than {DEEPEST} operations deep: make it simpler")
    match node:
        case ast.Constant(value=int() | float() as number) if not isinstance(number, bool):
            _check_size(number)
        case ast.Name(id=name):
            _check_name(name, names)
            used.add(name)
        case ast.BinOp(op=op) if type(op) in OPERATORS:
            _check(node.left, names, used, depth - 1)
            _check(node.right, names, used, depth - 1)
        case ast.UnaryOp(op=sign) if type(sign) in SIGNS:
            _check(node.operand, names, used, depth - 1)
        case ast.Call(func=ast.Name(id=name), keywords=[]):
            _check_call(name, len(node.args))
            for argument in node.args:
                _check(argument, names, used, depth - 1)
        case _:
            raise ValueError(
                f"the formula holds {ast.unparse(node)!r:.60}, which is no arithmetic: it may have numbers, "
                f"{', '.join(names)}, + - * / // % ^ and {', '.join([*OF_MANY, *FUNCTIONS])}"
            )


def _check_name(name: str, names: list[str]) -> None:
    if name not in names:
        close = difflib.get_close_matches(name, names, n=1)
        hint = f"Did you mean {close[0]}?" if close else f"There are {', '.join(names)}."
        raise ValueError(f"the formula names {name}, and there is no such grader. {hint}")


def _check_call(name: str, arguments: int) -> None:
    functions = [*OF_MANY, *FUNCTIONS]
    if name not in functions:
        close = difflib.get_close_matches(name, functions, n=1)
        raise ValueError(f"there is no function {name}. {f'Did you mean {close[0]}?' if close else functions}")
    if arguments < 1 or (name in FUNCTIONS and arguments > 1):
        raise ValueError(f"{name} takes {'one number' if name in FUNCTIONS else 'numbers'}, and is given {arguments}")


def _check_size(number: float) -> None:
    try:
        finite = math.isfinite(number)
    except OverflowError:  # of an integer
        finite = False
    if not finite:
        raise ValueError("the formula holds a number that is too large")


def _value(node: ast.expr, values: Mapping[str, float]) -> float:
    match node:
        case ast.Constant(value=int() | float() as number):
            return float(number)
        case ast.Name(id=name):
            return values[name]
        case ast.BinOp(left=left, op=op, right=right):
            return _finite(node, OPERATORS[type(op)], _value(left, values), _value(right, values))
        case ast.UnaryOp(op=sign, operand=operand):
            return SIGNS[type(sign)](_value(operand, values))
        case ast.Call(func=ast.Name(id=name), args=arguments) if name in FUNCTIONS:
            return _finite(node, FUNCTIONS[name], _value(arguments[0], values))
        case ast.Call(func=ast.Name(id=name), args=arguments):
            return OF_MANY[name]([_value(argument, values) for argument in arguments])
    raise AssertionError(ast.dump(node))


def _finite(node: ast.expr, function: Callable[..., float], *numbers: float) -> float:
    try:
        value = float(function(*numbers))
    except (ArithmeticError, ValueError) as error:
        raise Undefined(f"{ast.unparse(node)} has no value at {_listed(numbers)}: {error}") from error
    if not math.isfinite(value):
        raise Undefined(f"{ast.unparse(node)} is too large at {_listed(numbers)}")
    return value


def _listed(numbers: Iterable[float]) -> str:
    return " and ".join(f"{number:g}" for number in numbers)
