"""
Cases that math-verify's comparison of a gold and an answer misses: small numbers, and answers that contradict
themselves. The grading worker uses this module, which imports what math-verify imports.
"""

from latex2sympy2_extended.logic import And
from math_verify import verify
from sympy import Basic, Eq, Float, Interval, MatrixBase, Symbol, Tuple, log
from sympy.core.relational import Relational
from sympy.sets.sets import Set, Union


# math-verify's own: decimals to which it rounds floats, digits by which it compares other numbers
DECIMALS, DIGITS = 6, 15
# Rounded to six decimals, numbers below this keep two digits at most.
SMALL = 1e-4
# A gold of zero is met by no other number.
DECIMALS_OF_ZERO = 300


def is_right(gold: list, answer: list) -> bool:
    """
    Whether an answer is right: math-verify's verdict, except for two kinds of answers.

    Small numbers are compared by their leading digits: rounded to six decimals, 1.3e-27 and 1.3e-26 are the same. And
    an equation whose sides are different numbers, as `1 = 2 = 3`, is wrong, though it ends in the gold.

    Args:
        gold, answer (`list`): Expressions that math-verify parsed.
    """
    answer = [_assignment(expression) for expression in answer]
    if any(_contradicts_itself(expression) for expression in answer):
        return False
    decimals, digits = _precision(gold)
    return bool(verify(gold, answer, float_rounding=decimals, numeric_precision=digits, timeout_seconds=None))


def _assignment(expression):
    """`x = 3` for `3 = x`."""
    if isinstance(expression, Eq) and isinstance(expression.rhs, Symbol) and _is_number(expression.lhs):
        return Eq(expression.rhs, expression.lhs, evaluate=False)
    return expression


def _contradicts_itself(expression) -> bool:
    """Whether sides of an equation are different numbers."""
    if isinstance(expression, Eq):
        sides = [expression.lhs, expression.rhs]
    elif isinstance(expression, And) and all(isinstance(part, Eq) for part in expression._unsorted_args):
        equations = expression._unsorted_args
        sides = [equations[0].lhs, *(equation.rhs for equation in equations)]
    else:
        return False
    numbers = [side for side in sides if _is_number(side)]
    return any(not _same_number(number, numbers[-1]) for number in numbers[:-1])


def _same_number(number, other) -> bool:
    if verify([number], [other], timeout_seconds=None):
        return True
    for rounded, exact in ((number, other), (other, number)):
        if isinstance(rounded, Float):  # 1/3 = 0.33
            value = float(rounded)
            decimals = next((d for d in range(DECIMALS) if round(value, d) == value), DECIMALS)
            if abs(float(exact.doit()) - value) <= 0.5000001 * 10**-decimals:
                return True
    return False


def _is_number(expression) -> bool:
    return isinstance(expression, Basic) and bool(getattr(expression, "is_number", False)) and _is_scalar(expression)


def _is_scalar(expression) -> bool:
    return not isinstance(expression, (Set, Tuple, MatrixBase, Relational))


def _precision(gold: list) -> tuple[int, int]:
    """Decimals and digits that tell the numbers of a gold from their neighbours."""
    decimals, digits = DECIMALS, DIGITS
    for number in _numbers(gold):
        try:
            size = abs(number.doit().evalf(DIGITS))
            if size == 0:
                decimals = max(decimals, DECIMALS_OF_ZERO)
            elif size < SMALL:
                zeros = int(-log(size, 10).evalf(DIGITS)) + 1
                decimals, digits = max(decimals, DECIMALS + zeros), max(digits, DIGITS - 3 + zeros)
        except (TypeError, ValueError, AttributeError):
            continue  # not a real number
    return decimals, digits


def _numbers(expressions):
    """The numbers in a gold."""
    for expression in expressions:
        if not isinstance(expression, (Basic, MatrixBase)):
            continue
        if isinstance(expression, Interval):
            yield from _numbers([expression.start, expression.end])
        elif isinstance(expression, MatrixBase):
            yield from _numbers(expression.flat())
        elif isinstance(expression, (Set, Union, Tuple, Relational, And)):
            yield from _numbers(expression.args)
        elif _is_number(expression):
            yield expression
