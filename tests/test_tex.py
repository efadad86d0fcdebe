"""Formulas on a terminal: what is rendered groups as the source does, and what is not understood stays TeX."""

# ruff: noqa: RUF001  # symbols are meant to look like what they are like

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensafe._docstrings import Formula, parse
from tensafe.cli.tex import to_unicode
from tensafe.training.losses.registry import builtin_names, lookup


@pytest.mark.parametrize(
    ("tex", "text"),
    [
        (r"\ell_i = \max(0,\; m - (c_i - r_i))", "ℓᵢ = max(0, m - (cᵢ - rᵢ))"),
        (r"-\log\sigma(\beta d)", "-log σ(β d)"),
        (r"e^{z_{tv}}", "e^(zₜᵥ)"),
        (r"x^{n+1}_{ij}", "xⁿ⁺¹ᵢⱼ"),
        (r"\pi_{\mathrm{ref}}(y_c)", "π_ref(y_c)"),
        (r"w_{y_t}", "w_(yₜ)"),
        (r"\frac{a + b}{c}", "(a + b)/c"),
        (r"\frac{x}{2\sigma^2}", "x/(2σ²)"),
        (r"\frac{1}{n}\sum_{i=1}^n x_i", "(1/n)∑ᵢ₌₁ⁿ xᵢ"),
        (r"\frac{a}{b} + 1", "a/b + 1"),
        (r"\Big(\frac{a}{b}\Big)^2", "(a/b)²"),
        (r"\frac{a}{b}^2", "(a/b)²"),
        (r"x / \frac{a}{b}", "x / (a/b)"),
        (r"\log \frac{\pi(y)}{\bar\pi(y)}", "log (π(y)/π̄(y))"),
        (r"\tfrac12 d^2", "½ d²"),
        (r"{2\sigma}^2", "(2σ)²"),
        (r"\sqrt{a + b}", "√(a + b)"),
        (r"\sqrt x", "√x"),
        (r"\{x\}, \|x\|, \lVert x \rVert_2", "{x}, ‖x‖, ‖x ‖₂"),
        (r"A^\top, A^+, \pi^*, x'", "Aᵀ, A⁺, π^*, x'"),
        (r"\left[ x \right]", "[ x ]"),
        (r"\left. x \right|_0", "x |₀"),
        (r"a \le b \ne c \in D", "a ≤ b ≠ c ∈ D"),
        (r"\mathbb{E}, \mathcal{L}, \mathbf{x}, \mathbb{1}", "𝔼, ℒ, 𝐱, 𝟙"),
        (r"\operatorname{clip}(r, 1 - \epsilon)", "clip(r, 1 - ϵ)"),
        (r"\mathrm{CE} x", "CE x"),
        (r"\text{ if } x", "if x"),
        (r"p = q, \quad r = s", "p = q,   r = s"),
        (r"\begin{cases} a & b \le c \\ d, & \text{otherwise} \end{cases}", "{ a, b ≤ c; d, otherwise }"),
        (r"\begin{aligned} a &= b \\ c &= d \end{aligned}", "a = b\nc = d"),
        ("", ""),
    ],
)  # fmt: skip
def test_rendering(tex: str, text: str) -> None:
    assert to_unicode(tex) == text


@pytest.mark.parametrize(
    "tex",
    [
        r"\underbrace{x}_y", r"\foo", r"x}", r"{x", r"a_b_c", r"x^", r"\frac{a}", r"\sqrt[3]{x}", r"a & b", r"\hat{ab}",
        r"\begin{matrix} a \end{matrix}", r"\begin{cases} a \end{aligned}", r"\begin{cases} a", r"a \\[4pt] b", "a % b",
        r"\mathrm{a\,b}", r"\mathcal{+}", "{" * 5000,
    ],
    ids=lambda tex: tex[:30],
)  # fmt: skip
def test_what_is_not_understood_stays_tex(tex: str) -> None:
    assert to_unicode(tex) is None


@given(st.lists(st.sampled_from([*r"{}_^&~\x12+-/()[]|' ", r"\frac", r"\left", r"\sum", r"\bar", r"\text", r"\\"])))
def test_any_text_gives_a_formula_without_leftovers_or_none(tokens: list[str]) -> None:
    text = to_unicode("".join(tokens))
    assert text is None or "\\" not in text


@pytest.mark.parametrize("name", sorted(builtin_names()))
def test_every_formula_of_ours_is_understood(name: str) -> None:
    formulas = [block for block in parse(lookup(name).__doc__).body if isinstance(block, Formula)]
    assert formulas, "the docstring has a formula"
    for formula in formulas:
        assert to_unicode(formula) is not None, formula
