"""Answers made to stall a grader, to fill its memory, or to look right, of every kind that was thought of."""

import random


def _box(text):
    return rf"\boxed{{{text}}}"


def _nest(left, middle, right, depth):
    return left * depth + middle + right * depth


HOSTILE = {
    "powers": lambda r: _box(_nest("9^{", str(r.randint(2, 99)), "}", r.randint(3, 6))),
    "power of two": lambda r: _box(f"2^{{2^{{{r.randint(35, 90)}}}}}"),
    "factorials": lambda r: _box(_nest("(", str(r.randint(9, 99)), ")!", r.randint(3, 9))),
    "binomial": lambda r: _box(rf"\binom{{10^{{{r.randint(7, 9)}}}}}{{{r.randint(10**6, 10**7)}}}"),
    "parentheses": lambda r: _box(_nest("(", "1", ")", r.randint(100, 4000))),
    "braces": lambda r: _box(_nest("{", "1", "}", r.randint(100, 4000))),
    "left right": lambda r: _box(_nest(r"\left(", "1", r"\right)", r.randint(100, 2000))),
    "open brackets": lambda r: _box("(" * r.randint(2000, 5000)),
    "fractions": lambda r: _box(_nest(r"\frac{1}{", "2", "}", r.randint(100, 500))),
    "roots": lambda r: _box(_nest(r"\sqrt{", "2", "}", r.randint(100, 500))),
    "long sum": lambda r: _box("+".join(f"x_{{{i}}}" for i in range(r.randint(500, 3000)))),
    "many values": lambda r: _box(",".join(map(str, range(r.randint(500, 3000))))),
    "minus signs": lambda r: _box("-" * r.randint(500, 4000) + "1"),
    "integral": lambda r: _box(rf"\int_0^{{{r.randint(1, 99)}}} e^{{e^{{x^x}}}} dx"),
    "series": lambda r: _box(rf"\sum_{{k=1}}^{{10^{{{r.randint(7, 99)}}}}} \frac{{1}}{{k^k}}"),
    "product": lambda r: _box(rf"\prod_{{k=1}}^{{10^{{{r.randint(7, 99)}}}}} k"),
    "expansion": lambda r: _box(f"(a+b+c+d+f)^{{{r.randint(100, 900)}}}"),
    "sine": lambda r: _box(rf"\sin(10^{{10^{{{r.randint(8, 99)}}}}})"),
    "digits": lambda r: _box("7" * r.randint(4000, 40000)),
    "bytes": lambda r: r.randbytes(200).decode("utf-8", "surrogateescape") + _box("\udcff"),
    "surrogates": lambda r: _box(f"\ud800{r.randint(0, 10**6)}"),
    "a megabyte of text": lambda r: chr(r.randint(97, 122)) * 10**6,
    "a megabyte of dollars": lambda r: "$" * (10**6 + r.randint(0, 10**4)),
    "a megabyte of digits": lambda r: _box("7" * (10**6 + r.randint(0, 10**4))),
    "a megabyte of boxes": lambda r: r"\boxed{1} " * (110_000 + r.randint(0, 10**4)),
    "a megabyte of open boxes": lambda r: r"\boxed{" * (140_000 + r.randint(0, 10**4)),
    "empty": lambda r: "",
    "nothing": lambda r: None,
    "not text": lambda r: r.randbytes(8),
}


def hostile_answers(number, seed=0):
    generator = random.Random(seed)
    kinds = list(HOSTILE.values())
    return [kinds[i % len(kinds)](generator) for i in range(number)]
