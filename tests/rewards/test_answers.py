"""
Which answers are right: golds and answers as people and data sets write them, by hand, and the verdict that each gets.

A gold that is left out has no right answer. The list of differences in `docs/grading.md` is tried on TRL's reward.
"""

import json
import logging
import re
import time
from pathlib import Path

import pytest
from datasets import Dataset
from trl.rewards import accuracy_reward as trl_accuracy_reward

from trl_fork.data.benchmarks import load_benchmark
from trl_fork.data.prompt_and_solution import final_answer, to_prompt_and_solution
from trl_fork.rewards.boxed import readable_answer
from trl_fork.rewards.golds import as_gold
from trl_fork.rewards.grading import GradingPool, accuracy_reward


# ruff: noqa: RUF001 (signs that look like others are what this is about)

ROOT = Path(__file__).parents[2]

# gold, right answers, wrong answers
CASES = [
    ("9 (apples)", ["9", r"9\text{ apples}", "9 (apples)"], ["8", "9 (pears)", "90"]),
    ("12 dollars", ["12", r"\$12", "12 dollars", r"12\text{ dollars}"], ["13"]),
    ("15 km/h", ["15", "15 km/h", r"15\text{ km/h}", "15 km / h"], ["16", "15 m/s"]),
    ("350,000 pages", ["350000", "350,000", "350,000 pages", "350000 pages", "350{,}000"], ["350", "35000"]),
    (r"11\sqrt{2}", [r"11\sqrt{2}", r"11\sqrt2", "11√2"], ["11", r"11\sqrt{3}"]),
    ("√2", ["√2", r"\sqrt{2}", r"\sqrt2"], ["2", r"\sqrt{3}"]),
    ("½", ["½", "0.5", r"\frac12", "1/2"], ["2", "12"]),
    ("x²", ["x²", "x^2", "x^{2}"], ["x", "2x", "x^3"]),
    ("π", ["π", r"\pi"], ["3.14", r"2\pi"]),
    ("2√3/3", [r"\frac{2\sqrt{3}}{3}", "2√3/3"], ["2"]),
    ("x ≤ 3", [r"x \le 3", "x≤3", r"(-\infty,3]"], ["x<3", "3", r"x\ge 3"]),
    ("3×4", ["12", "3×4"], ["3", "34"]),
    ("−5", ["-5", "−5"], ["5"]),
    ("3½", ["3.5", r"\frac72", "3½"], ["1.5"]),
    ("∞", [r"\infty", "∞"], [r"-\infty"]),
    ("30°", ["30", r"30^\circ", "30°"], ["31"]),
    ("$5$;$10$", ["5,10", "10, 5", r"5 \text{ and } 10"], ["10", "5", "5,11"]),
    (
        "x = $3$ or x = $5$",
        ["3,5", r"x=3 \text{ or } x=5", "x=3,x=5", r"\{3,5\}", "x = 3 or x = 5"],
        ["5", "3", "3,6"],
    ),
    ("20 $cm^{2}$", ["20", "20 cm^2", r"20\text{ cm}^2", r"20\ \mathrm{cm}^{2}", "20 cm²"], ["21", "2", "cm^2"]),
    (r"\frac12", [r"\frac12", "0.5", r"\dfrac12", r"\tfrac{1}2", r"\frac 12"], ["12", "1", r"\frac13"]),
    (r"\sqrt3", [r"\sqrt3", r"\sqrt{3}", r"\sqrt 3"], ["3"]),
    (r"2\frac58", [r"2\frac58", r"\frac{21}{8}", "2 5/8", "2.625"], [r"\frac54", "2"]),
    (
        "4.5e33",
        [
            "4.5e33",
            r"4.5 \times 10^{33}",
            "4.5×10^33",
            "4.5 * 10^33",
            "4.5E+33",
            r"4.5\cdot10^{33}",
            "45e32",
            "4500000000000000000000000000000000",
            "4.5 x 10^{33}",
            "4.5 × 10³³",
        ],
        ["4.5", "4.5e32", r"4.5 \times 10^{34}"],
    ),
    (
        "1.325e-27",
        ["1.325e-27", r"1.325 \times 10^{-27}", "13.25e-28", r"1.325\times10^-27"],
        [r"1.325 \times 10^{-26}", "1.326e-27", "0"],
    ),
    ("1/2^{99}", ["1/2^{99}", "2^{-99}", r"\frac{1}{2^{99}}"], ["1/2^{98}", "0", r"\frac{1}{2^{100}}"]),
    ("0.0000012", ["0.0000012", r"1.2\times10^{-6}"], ["0.0000013", "0.000001"]),
    ("0", ["0", "0.0"], ["1e-27", "0.0000001", "10^{-20}"]),
    ("1 000 000", ["1 000 000", "1000000", "1,000,000", r"1\,000\,000", "1{,}000{,}000", "1'000'000"], ["1", "1000"]),
    ("3 1/2", ["3 1/2", "3.5", "7/2", r"3\frac12", r"3\frac{1}{2}"], ["1.5", "31/2", "3", "2"]),
    (
        r"0.\overline{3}",
        [r"0.\overline{3}", "1/3", r"0.\bar3", r"0.\dot{3}", "0.(3)", r"0.3\overline{3}"],
        ["0", "0.3", r"0.\overline{4}", r"0.0\overline{3}"],
    ),
    ("3", ["3", "x=3", "1+2=3", "x=2+1=3", "3=x", "3."], ["1=2=3", "5=3", "x=5=3", "3,5", r"3\text{ or }5"]),
    ("5", ["5", r"5\%"], []),
    ("(1,2)", ["(1,2)", "(1, 2)", r"\left(1,2\right)"], ["(2,1)", "1", "[1,2]"]),
    ("[1,2)", ["[1,2)"], ["[1,2]", "(1,2)"]),
    (r"\{1,2\}", [r"\{2,1\}", "1,2"], ["1"]),
    (r"(-\infty, 2) \cup (3, \infty)", [r"(-\infty,2)\cup(3,\infty)", "(-∞,2)∪(3,∞)"], [r"(-\infty,2]\cup(3,\infty)"]),
    ("(-∞, 2] ∪ [3, ∞)", [r"(-\infty,2]\cup[3,\infty)"], [r"(-\infty,2)\cup[3,\infty)"]),
    (
        r"\begin{pmatrix}1&2\\3&4\end{pmatrix}",
        [r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"\begin{bmatrix}1&2\\3&4\end{bmatrix}"],
        [r"\begin{pmatrix}1&2\\4&3\end{pmatrix}"],
    ),
    ("x < 2", ["x<2", r"(-\infty,2)"], ["x>2", r"x\le2"]),
    ("1 < x < 2", ["1<x<2", "(1,2)"], ["1<x<3"]),
    (r"\text{Friday}", [r"\text{Friday}", "Friday"], [r"\text{Monday}"]),
    ("Friday", [r"\text{Friday}", "Friday"], [r"\text{Monday}", "F"]),
    ("Evelyn", [r"\text{Evelyn}", "Evelyn"], [r"\text{Carla}"]),
    ("(B)", ["B", r"\text{B}", r"\text{(B)}", "(B)", r"\textbf{(B)}"], ["A", r"\text{(C)}"]),
    ("B", ["B", r"\text{B}"], ["A"]),
    ("x=5", ["5", "x=5"], ["y=5", "6", "x=6"]),
    (r"\pm 2", [r"\pm 2", "2,-2", "±2", r"2 \text{ and } -2"], ["2", "-2"]),
    ("±2", [r"\pm2"], ["2"]),
    (
        r"\frac{-1 \pm \sqrt{5}}{2}",
        [r"\frac{-1\pm\sqrt{5}}{2}", r"\frac{-1+\sqrt5}{2}, \frac{-1-\sqrt5}{2}", r"\frac{-1±√5}{2}"],
        [r"\frac{-1+\sqrt{5}}{2}", r"\frac{1\pm\sqrt{5}}{2}"],
    ),
    (
        r"x = \frac{-1 \pm \sqrt{5}}{2}",
        [r"\frac{-1\pm\sqrt{5}}{2}", r"x=\frac{-1\pm\sqrt{5}}{2}"],
        [r"\frac{-1-\sqrt{5}}{2}"],
    ),
    ("10%", [r"10\%", "10%", "0.1", r"10\text{ percent}", "10 percent"], ["11%"]),
    ("10 percent", [r"10\%", "0.1"], ["11%"]),
    (r"12.5\%", [r"12.5\%", "0.125"], [r"12.6\%"]),
    ("$5", ["5", r"\$5", "$5"], ["6"]),
    (r"\$32.50", ["32.5", r"\$32.50"], ["32"]),
    ("£5", ["5", "£5", r"\pounds 5"], ["6", "€5"]),
    ("5 €", ["5", "5€", "5 €"], ["6", "5 £"]),
    ("€1,200", ["1200", "€1,200", "€1200"], ["1"]),
    ("1,000", ["1000", "1,000", "1{,}000", "1 000"], ["1"]),
    ("1,234,567", ["1234567", "1,234,567"], ["1"]),
    ("12,345.67", ["12345.67"], ["12"]),
    ("1 234.5", ["1234.5"], ["1"]),
    ("1'000'000", ["1000000"], ["1"]),
    ("30 degrees", ["30", r"30^\circ"], ["31"]),
    (r"30^\circ", ["30", r"30^{\circ}", "30°"], ["60"]),
    ("25°C", ["25", r"25^\circ C", r"25^\circ\text{C}", "25°C"], ["26"]),
    ("3.5e-9 m", ["3.5e-9", r"3.5\times10^{-9}", r"3.5 \times 10^{-9}\text{ m}"], ["3.5", r"3.5\times10^{-8}"]),
    ("6.02e23", [r"6.02\times10^{23}", r"6.02 \cdot 10^{23}", "6.02*10^23"], ["6.02", "6.03e23"]),
    ("1e-6", ["0.000001", "10^{-6}", r"1\times10^{-6}"], ["1e-7", "0.000002"]),
    ("3e8", ["300000000", r"3\times10^8"], ["3", "3e9"]),
    ("-1.6e-19", [r"-1.6\times10^{-19}"], [r"1.6\times10^{-19}", r"-1.6\times10^{-18}"]),
    ("-3 1/2", ["-3.5", r"-3\frac12"], ["3.5", "-2.5"]),
    ("3-1/2", ["2.5"], ["3.5"]),
    (r"1\frac{3}{4}", ["1.75", "7/4"], ["3/4"]),
    (r"0.1\overline{6}", ["1/6", r"0.1\overline{6}"], ["0.16", r"0.\overline{16}"]),
    (r"0.\overline{142857}", [r"\frac17"], []),
    (r"2.\overline{3}\%", [r"2.\overline{3}\%"], ["2.3"]),
    ("2:3", ["2:3", r"\frac23", "4:6"], ["3:2"]),
    ("1, 2, 3", ["1,2,3", "3,2,1"], ["1,2"]),
    ("1; 2", ["1,2"], ["1"]),
    ("2 and 3", ["2,3"], ["2", "3"]),
    ("2 or 3", ["2,3", r"2\text{ or }3"], ["2"]),
    ("$2$ and $3$", ["2,3"], ["3"]),
    ("$x=1$, $y=2$", ["x=1,y=2"], ["x=2,y=1", "2"]),
    ("$(1,2)$; $(3,4)$", ["(1,2),(3,4)", "(3,4),(1,2)"], ["(3,4)", "(2,1),(3,4)"]),
    ("$1$, $2$, $3$, $4$, $5$, $6$, $7$, $8$", ["1,2,3,4,5,6,7,8"], ["8"]),
    ("$a = 2$; $b = 3$", ["a=2,b=3"], ["3"]),
    ("$n = 4k$ or $n = 4k+1$", ["n=4k,n=4k+1"], ["4k+1"]),
    (r"$\frac{1}{2}$ hour", ["1/2"], ["2"]),
    ("$5$ cm", ["5", r"5\text{ cm}"], ["6"]),
    ("3 1/2 cups", ["3.5", r"3\frac12"], ["3", "1.5"]),
    ("1/2 cup", ["1/2", "0.5"], ["2"]),
    ("5 m", ["5", "5 m", r"5\text{ m}"], ["6"]),
    ("12 V", ["12", "12 V", r"12\text{ V}"], ["13", "13 V"]),
    ("5 m/s", ["5", r"5\text{ m/s}", "5 m/s"], ["6"]),
    ("3 (three)", ["3"], ["4"]),
    ("2 x", ["2x"], ["2"]),
    ("2n", ["2n"], ["2"]),
    ("xy", ["xy", "yx"], ["x"]),
    ("2ab", ["2ab"], ["2a"]),
    ("3x + 2y = 7", ["3x+2y=7", "2y+3x=7"], ["3x+2y=8", "7"]),
    ("y = 2x+1", ["y=2x+1", "2x+1"], ["y=2x"]),
    ("x^2 - 1", ["(x-1)(x+1)", "x^{2}-1"], ["x^2+1"]),
    ("sin(x)", [r"\sin(x)", r"\sin x"], [r"\cos x"]),
    ("sqrt(2)", [r"\sqrt{2}"], ["2"]),
    ("2*pi", [r"2\pi", "2π"], ["2"]),
    ("π/4", [r"\frac{\pi}{4}"], ["4"]),
    ("3π", [r"3\pi"], ["3"]),
    ("√3/2", [r"\frac{\sqrt3}{2}"], ["3/2"]),
    ("2√(x+1)", [r"2\sqrt{x+1}"], ["2"]),
    ("∛2", [r"\sqrt[3]{2}"], ["2", r"\sqrt2"]),
    ("10⁻³", ["0.001", "10^{-3}"], ["1000", "103"]),
    ("x₁ = 3", ["x_1=3", "3"], ["4"]),
    ("≈ 3.14", ["3.14"], ["3.15"]),
    ("¾", ["0.75"], ["3", "34"]),
    ("－５", ["-5"], ["5"]),
    ("∅", [r"\emptyset", r"\varnothing"], ["0"]),
    ("–7", ["-7"], ["7"]),
    ("5 ± 2", ["3,7", r"5\pm2"], ["5", "7"]),
    ("α + β", [r"\alpha+\beta"], [r"\alpha"]),
    ("0.5", ["1/2", "0.50", ".5"], ["0.6"]),
    ("5!", ["120", "5!"], ["5"]),
    (r"\binom52", ["10"], ["52"]),
    (r"e^{i\pi}", [r"e^{i\pi}"], []),
    ("3+4i", ["3+4i", "4i+3"], ["3-4i"]),
    ("10 million", ["10 million"], ["11"]),
    (r"\text{no solution}", [r"\text{no solution}"], ["0"]),
    (r"\text{Yes}", [r"\text{Yes}", "Yes"], [r"\text{No}"]),
    ("True", [r"\text{True}"], [r"\text{False}"]),
    ("even", [r"\text{even}"], [r"\text{odd}"]),
    ("7", ["7.0", r"\mathbf{7}", r"\textbf{7}", r"\,7", r"7\text{.}", r"\boxed{7}"], ["70"]),
    ("12:30", ["12:30"], ["12:31"]),
    # Percentages of fractions
    ("33 1/3%", [r"33\frac{1}{3}\%", r"33\frac13\%", r"\frac13", "100/3%", "33⅓%"], ["33", r"34\%", r"\frac{1}{30}"]),
    (r"33\frac{1}{3}\%", [r"33 1/3\%", r"\frac{1}{3}", r"\frac{100}{3}\%"], ["33", "3", r"33\frac{2}{3}\%"]),
    (r"$66\frac23\%$", [r"66\frac{2}{3}\%", r"\frac{2}{3}"], ["66", r"\frac{3}{2}"]),
    ("1/2%", [r"\frac12\%", "0.005", r"0.5\%", r"\frac{1}{200}", "½%"], ["50", "2", r"50\%", r"5\%"]),
    ("66 2/3 percent", [r"66\frac23\%", "2/3", "66 2/3 percent"], ["66", r"66\%"]),
    ("-12½%", [r"-12\frac12\%", "-1/8", r"-12.5\%"], [r"12\frac12\%", "1/8", "-12"]),
    ("1.5e3%", ["15", r"1.5 \times 10^3\%", r"1500\%"], ["10", "1.5", "150"]),
    (r"0.\overline{3}\%", [r"\frac{1}{300}", r"0.\bar{3}\%"], ["0", "3"]),
    # Thousands beside signs
    ("x = 1,234", ["1234", "x=1234", "1,234", "x = 1,234"], ["1", "234", "x=1", "1.234", "(1,234)"]),
    (r"1,234\%", [r"1234\%", "12.34"], [r"1\%", "2.34"]),
    ("x > 12,000", ["x>12000", r"(12000,\infty)", "12,000 < x"], ["x>12", "x<12000"]),
    ("1,500 and 2,500", ["1500,2500", r"1,500 \text{ and } 2,500", "2,500 or 1,500"], ["1500", "2500", "1500,2501"]),
    ("1,000 < x < 2,000", ["1000<x<2000", "(1000,2000)"], ["(1000,3000)", "1<x<2"]),
    ("(1,234)", ["(1,234)", "(1, 234)"], ["1234", "(234,1)"]),
    ("x, y = 1,234", ["x,y=1,234"], ["1234"]),
    ("2^{10}", ["1024", "2^10", "2**10"], ["20"]),
    ("x^(2)", ["x^2"], ["2x"]),
    ("1/3", [r"\frac{1}{3} = 0.\overline{3}", r"\frac13", "0.333333"], ["0.33", "1/4=1/3"]),
    ("0.33", [r"\frac13=0.33"], ["0.5=0.33"]),
    ("10", ["5+5=10", "2*5=10", r"2\cdot 5=10", "n=2*5=10"], ["9=10", "n=9=10", "10=9"]),
    (r"3\sqrt[3]4", [r"3\sqrt[3]{4}"], ["12"]),
    (r"\frac{\sqrt3}2", [r"\frac{\sqrt{3}}{2}"], []),
    (r"\frac\pi2", [r"\frac{\pi}{2}"], [r"\pi"]),
    (r"\dfrac{3}4", ["0.75"], []),
    ("A, C", ["A,C", "C,A", r"\text{A, C}", r"\text{A and C}"], ["A"]),
    (r"\left(\frac12, 3\right)", [r"\left(\frac{1}{2},3\right)", r"(\frac12,3)"], ["(3,1/2)"]),
    (r"\log_2 3", [r"\log_2 3", r"\log_{2}{3}"], [r"\log_3 2"]),
    ("1.0 × 10^3", ["1000"], ["1", "10"]),
    ("2 × 10⁸ m/s", ["200000000", r"2\times10^8"], ["2", "10"]),
    (r"$2 \times 10^8$ m/s", [r"2\times10^8"], ["2"]),
    ("100 200", ["100200"], ["100"]),
    ("5-6", ["-1"], []),
    ("0.333...", ["0.333..."], ["0.4"]),
    ("2π cm²", [r"2\pi", "2π", r"2\pi\text{ cm}^2"], ["2", r"3\pi"]),
    (r"\sqrt{2} cm", [r"\sqrt2", r"\sqrt{2}\text{ cm}"], ["2"]),
    ("π/3 rad", [r"\frac{\pi}{3}"], [r"\pi"]),
    (r"16\pi \text{ cm}^3", [r"16\pi"], ["16"]),
    (r"$6\pi$ square units", [r"6\pi"], ["6"]),
    ("3 × 10^8 m/s", ["3e8", r"3\times10^8\text{ m/s}"], ["3", "3e7"]),
    ("1.6 x 10^-19", ["1.6e-19", r"1.6\times10^{-19}"], ["1.6", "1.6e-18"]),
    ("(1e-9, 2e-9)", ["(1e-9,2e-9)"], ["(1e-9,3e-9)"]),
    ("x = 1e-9", ["1e-9", "x=1e-9"], ["2e-9", "x=2e-9"]),
    ("-1e-9", ["-1e-9"], ["1e-9"]),
    ("1e-400", ["1e-400"], ["1e-401", "0"]),
    ("{x | x > 2}", [r"\{x|x>2\}"], [r"\{x|x>3\}"]),
    ("x ≥ -1", [r"x\ge-1", r"[-1,\infty)", r"-1 \le x"], [r"x>-1"]),
    ("{1, 2, 3}", [r"\{3,2,1\}"], ["1,2"]),
    (
        r"\begin{bmatrix} 1 \\ \frac12 \end{bmatrix}",
        [r"\begin{pmatrix}1\\0.5\end{pmatrix}"],
        [r"\begin{pmatrix}1\\2\end{pmatrix}"],
    ),
    ("3 ± 0.5", [r"3\pm0.5", "2.5,3.5"], ["2.5"]),
    (
        "7",
        ["x=7", "a=b=7", "f(2)=7", "x=3+4=7", r"\frac{14}{2}=7", "7=x", "x=7=14/2"],
        ["5=x=7", "1+1=7", "x^2=9=7", "x=5,y=7"],
    ),
]

UNREADABLE = [
    *(
        "proof",
        "Proof.",
        "notfound",
        "not found",
        "not_found",
        "Not Found",
        "None",
        "none",
        "null",
        "NaN",
        "nil",
        "N/A",
    ),
    *(
        "n/a",
        "NA",
        "#N/A",
        "unknown",
        "Unknown.",
        "<unknown>",
        "[missing]",
        "(none)",
        "TBD",
        "no answer",
        "-",
        "--",
        "—",
    ),
    *(
        "?",
        "???",
        "？",
        "...",
        "…",
        ".",
        "*",
        "_",
        "",
        " ",
        "[]",
        "()",
        "$?$",
        "$-$",
        "$N/A$",
        "$$",
        r"\boxed{?}",
        "无",
    ),
    *(
        r"\text{proof}",
        r"$\text{unknown}$",
        r"\text{N/A}",
        r"\boxed{proof}",
        "see solution",
        "None of the above",
        "QED",
    ),
    *("Not provided", r"\text{not found}", "**proof**", "**N/A**", "Answer not found", "∎", "cannot be determined"),
]

# whole completion, gold, verdict
COMPLETIONS = [
    (r"\boxed{5}? No, \boxed{3}", "3", 1.0),
    (r"\boxed{5}? No, \boxed{3}", "5", 0.0),
    (r"\boxed{5}? No, \boxed{3}", "3, 5", 0.0),
    (r"$\boxed{5}$. Wait, that is wrong: $\boxed{3}$", "3", 1.0),
    (r"\[\boxed{5}\] Hmm, actually \[\boxed{3}\]", "3", 1.0),
    (r"\boxed{5}. Checking again, it is \boxed{3}.", "3", 1.0),
    (r"\boxed{5}, sorry, \boxed{3}", "3", 1.0),
    (r"\boxed{5}, no, \boxed{4}, no, \boxed{3}", "3", 1.0),
    (r"\boxed{5}? No, \boxed{2} and \boxed{3}", "2, 3", 1.0),
    (r"\boxed{5}? No, \boxed{2} and \boxed{3}", "3", 0.0),
    (r"\boxed{3}? No, \boxed{5}", "3", 0.0),
    (r"\boxed{2} and \boxed{3}", "2, 3", 1.0),
    (r"\boxed{2} and \boxed{3}", "3", 0.0),
    (r"\boxed{2}, \boxed{3}", "3, 2", 1.0),
    (r"\boxed{2} \boxed{3}", "3", 0.0),
    (r"$x=\boxed{2}$ or $x=\boxed{3}$", "2, 3", 1.0),
    (r"$x = \boxed{2}$, and the other root is $\boxed{3}$", "3", 1.0),
    (r"\boxed{\boxed{3}}", "3", 1.0),
    (r"So $a = \boxed{\frac12}$ cm.", "0.5", 1.0),
    (r"\fbox{3}", "3", 1.0),
    (r"\boxed {3}", "3", 1.0),
    (r"The final answer is $\frac12$.", "0.5", 1.0),
    (r"The final answer is $√2$.", r"\sqrt{2}", 1.0),
    (r"The final answer is $\frac{-1\pm\sqrt5}{2}$.", r"$\frac{-1-\sqrt5}{2}$", 0.0),
    (r"\boxed{3", "3", 0.0),  # as TRL
    (r"\boxed{5}? No, \boxed{3}", r"\frac{6}{2}", 1.0),
    (r"\boxed{5}? No, \boxed{\frac12}", "0.5", 1.0),
    ("3", "3", 0.0),
]


@pytest.fixture(scope="module")
def pool():
    with GradingPool(num_workers=1) as pool:
        yield pool


def box(answer):
    return rf"\boxed{{{answer}}}"


@pytest.mark.parametrize(("gold", "right", "wrong"), CASES, ids=[case[0] for case in CASES])
def test_verdicts(gold, right, wrong, pool):
    itself = re.sub(r"(?<!\\)\$", "", gold) if gold.count("$") > 1 else gold
    answers = [itself, *right, *wrong]
    expected = dict.fromkeys([itself, *right], 1.0) | dict.fromkeys(wrong, 0.0)
    for given in (gold, final_answer(gold)):  # as a data set has it, and as it is loaded
        verdicts = pool.grade([f"So it is {box(answer)}." for answer in answers], [given] * len(answers))
        assert {a: v.reward for a, v in zip(answers, verdicts, strict=True)} == expected
    assert not pool.failures


def test_there_are_cases_of_every_kind():
    assert len(CASES) >= 80 and sum(len(right) + len(wrong) for _, right, wrong in CASES) >= 300


@pytest.mark.parametrize("gold", [case[0] for case in CASES] + UNREADABLE)
def test_a_gold_is_read_once(gold):
    assert as_gold(as_gold(gold)) == as_gold(gold)


@pytest.mark.parametrize("gold", UNREADABLE)
def test_what_is_no_answer_is_left_out(gold, pool):
    answers = [box(gold), box("5"), ""]
    for given in (gold, final_answer(gold)):
        assert [verdict.reward for verdict in pool.grade(answers, [given] * 3)] == [None] * 3
    # Where TRL's reward is used in place of ours, the loaded gold is left out too.
    assert trl_accuracy_reward([[{"content": box(gold)}]], [final_answer(gold)]) == [None]


@pytest.mark.parametrize(("completion", "gold", "reward"), COMPLETIONS)
def test_which_boxes_count(completion, gold, reward, pool):
    assert pool.grade([completion], [gold])[0].reward == reward


def listed():
    """The rows of the tables in `docs/grading.md`."""
    for line in (ROOT / "docs/grading.md").read_text().splitlines():
        if line.startswith("| `"):
            gold, answer, trls, ours, _ = [cell.strip() for cell in line[1:].split(" |")[:5]]
            answer = answer.strip("`")
            verdicts = [{"1": 1.0, "0": 0.0, "-": None}[cell] for cell in (trls, ours)]
            yield gold.strip("`"), answer if r"\boxed" in answer else box(answer), *verdicts


@pytest.mark.parametrize(("gold", "answer", "trls", "ours"), list(listed()))
def test_the_list_of_differences_is_true(gold, answer, trls, ours, pool):
    assert trl_accuracy_reward([[{"content": answer}]], [gold]) == [trls]
    assert [pool.grade([answer], [given])[0].reward for given in (gold, final_answer(gold))] == [ours, ours]


def test_the_list_of_differences_is_found():
    assert sum(trls != ours for *_, trls, ours in listed()) > 40
    assert sum(trls == ours for *_, trls, ours in listed()) > 10


def test_real_golds(pool):
    """GSM8K's golds are met by themselves, in words too, and not by those of other problems."""
    rows = [json.loads(line) for line in (ROOT / "tests/files/gsm8k.jsonl").read_text().splitlines()]
    golds = [final_answer(row["answer"]) for row in rows]
    neighbours = [*golds[1:], golds[0]]
    for form in ("{}", "${}$", r"\${}", r"{}\text{{ apples}}", "x = {}", "{}.0", "{}."):
        answers = [box(form.format(gold)) for gold in golds]
        assert [v.reward for v in pool.grade(answers, golds)] == [1.0] * len(golds)
        assert [v.reward for v in pool.grade(answers, neighbours)] == [
            float(a == b) for a, b in zip(golds, neighbours, strict=True)
        ]


def test_formulas_with_words_are_left_to_trl():
    """Sentences and remarks are read as TRL reads them, and so as they are."""
    for text in ("9 (apples)", "12 dollars", "15 km/h", "350,000 pages", "So the answer is 3", r"It is \boxed{3}."):
        assert as_gold(text) == text


def test_preprocessing_is_linear():
    """A hostile text of a megabyte takes time linear in its length; a text that is not an answer stays as it is."""
    for piece in (
        "√(",
        "0.",
        "1 ",
        "1 000",
        r"\boxed{1} ",
        r"\boxed{",
        "$",
        "$1",
        r"\frac1",
        "{",
        "(",
        "a" * 20,
        "²",
        "e1",
        "\u3000",
        "é ",
        "\n",
        "=1,000",
        "1/2%",
    ):
        text = piece * (10**6 // len(piece))
        for hostile in (text, box(text), f"√2 {text}", f"{text}–5"):
            start = time.process_time()
            readable_answer(hostile)
            as_gold(hostile)
            as_gold(hostile[:4000])
            assert time.process_time() - start < 5, piece


def test_unreadable_golds_are_reported_once(caplog, monkeypatch, tmp_path):
    monkeypatch.setattr(logging.getLogger("trl_fork"), "propagate", True)
    golds = ["5", "proof", "proof", "N/A", "x+1", "", r"So \boxed{3}."]
    data = Dataset.from_list([{"question": f"{n}?", "answer": gold} for n, gold in enumerate(golds)])
    loaded = to_prompt_and_solution(data)
    assert [record.getMessage() for record in caplog.records] == [
        "The data set: 4 of 7 rows have a gold answer that cannot be read, such as 'proof'. accuracy_reward gives "
        "them no reward (None), and an evaluation counts them as wrong. Leave them out, or write their answers as "
        r"math-verify reads them: numbers, LaTeX, \text{...} for words."
    ]
    rewards = accuracy_reward([box("5")] * 7, loaded["solution"][:])
    assert rewards == [1.0, None, None, None, 0.0, None, 0.0]  # the count is that of the rewards
    caplog.clear()
    data.to_json(tmp_path / "test.jsonl")
    load_benchmark(str(tmp_path / "test.jsonl"))
    assert "test.jsonl: 4 of 7 rows" in caplog.text
    caplog.clear()
    to_prompt_and_solution(data.select([0, 4, 6]))
    to_prompt_and_solution(data.to_iterable_dataset())
    assert not caplog.records


def test_only_the_first_process_reports(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("trl_fork"), "propagate", True)
    monkeypatch.setenv("RANK", "1")
    to_prompt_and_solution(Dataset.from_list([{"question": "1?", "answer": "proof"}]))
    assert not caplog.records
