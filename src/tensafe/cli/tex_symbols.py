r"""What TeX's commands stand for in Unicode, as far as `tex` knows them."""

# ruff: noqa: RUF001, SIM905  # symbols are meant to look like what they are like; words in a row read better than a list

from __future__ import annotations

import unicodedata

__all__ = [
    "ACCENTS",
    "FONTS",
    "FUNCTIONS",
    "GAP",
    "HALVES",
    "IGNORED",
    "LETTERS",
    "NAMES",
    "OPENING",
    "RELATIONS",
    "SIZES",
    "SMALL_ABOVE",
    "SMALL_BELOW",
    "SPACES",
]

GAP = "   "
r"""What stands for `\quad`: where a line that is too long may be broken."""

OPENING = frozenset({"lVert", "lvert", "langle", "lfloor", "lceil", "{", "lbrack"})
LETTERS = {
    **{name: unicodedata.lookup(f"GREEK SMALL LETTER {name.upper()}") for name in (
        "alpha beta gamma delta zeta eta theta iota kappa mu nu xi pi rho sigma tau upsilon chi psi omega".split()
    )},
    **{name: unicodedata.lookup(f"GREEK CAPITAL LETTER {name.upper()}") for name in (
        "Gamma Delta Theta Xi Pi Sigma Upsilon Phi Psi Omega".split()
    )},
    "lambda": "λ", "Lambda": "Λ", "epsilon": "ϵ", "varepsilon": "ε", "phi": "φ", "varphi": "φ", "vartheta": "ϑ",
    "ell": "ℓ", "infty": "∞", "partial": "∂", "nabla": "∇", "top": "⊤", "prime": "′", "star": "⋆", "ast": "∗",
    "emptyset": "∅", "forall": "∀", "exists": "∃", "neg": "¬", "dots": "…", "ldots": "…", "cdots": "…", "degree": "°",
    "sum": "∑", "prod": "∏", "int": "∫",
    "{": "{", "}": "}", "|": "‖", "Vert": "‖", "lVert": "‖", "rVert": "‖", "vert": "|", "lvert": "|", "rvert": "|",
    "langle": "⟨", "rangle": "⟩", "lfloor": "⌊", "rfloor": "⌋", "lceil": "⌈", "rceil": "⌉",
    "lbrack": "[", "rbrack": "]",
    "%": "%", "_": "_", "&": "&", "#": "#", "$": "$", "colon": ":",
}  # fmt: skip
RELATIONS = {
    "le": "≤", "leq": "≤", "ge": "≥", "geq": "≥", "ne": "≠", "neq": "≠", "ll": "≪", "gg": "≫", "approx": "≈",
    "equiv": "≡", "sim": "∼", "propto": "∝", "in": "∈", "notin": "∉", "subset": "⊂", "subseteq": "⊆", "setminus": "∖",
    "cup": "∪", "cap": "∩", "to": "→", "rightarrow": "→", "leftarrow": "←", "gets": "←", "mapsto": "↦",
    "Rightarrow": "⇒", "iff": "⇔", "cdot": "·", "times": "×", "pm": "±", "mp": "∓", "odot": "⊙", "oplus": "⊕",
    "circ": "∘", "mid": "|", "parallel": "∥", "succ": "≻", "prec": "≺", "land": "∧", "lor": "∨", "wedge": "∧",
    "vee": "∨", "coloneqq": "≔", "triangleq": "≜", "lt": "<", "gt": ">",
}  # fmt: skip
FUNCTIONS = frozenset(
    "log ln exp sin cos tan tanh sinh cosh arccos arcsin arctan max min sup inf arg argmax argmin dim lim Pr".split()
)
SPACES = {",": " ", ";": " ", ":": " ", " ": " ", "!": "", "quad": GAP, "qquad": GAP, "enspace": " ", "thinspace": " "}
SIZES = frozenset(
    f"{size}{side}" for size in ("big", "Big", "bigg", "Bigg") for side in ("", "l", "r", "m")
) | {"left", "right", "middle"}  # fmt: skip
IGNORED = frozenset({"displaystyle", "textstyle", "limits", "nolimits"})
ACCENTS = {
    "bar": "\u0304", "hat": "\u0302", "widehat": "\u0302", "tilde": "\u0303", "widetilde": "\u0303", "dot": "\u0307",
    "ddot": "\u0308", "vec": "\u20d7", "check": "\u030c", "overline": "\u0304",
}  # fmt: skip
NAMES = frozenset({"mathrm", "text", "textrm", "mathit", "textit", "mathsf", "mathtt", "operatorname", "operatorname*"})
FONTS = {"mathbf": "BOLD", "boldsymbol": "BOLD", "mathcal": "SCRIPT", "mathbb": "DOUBLE-STRUCK"}
HALVES = {("1", "2"): "½", ("1", "3"): "⅓", ("2", "3"): "⅔", ("1", "4"): "¼", ("3", "4"): "¾"}

SMALL_BELOW = dict(zip("0123456789+-=()aehijklmnoprstuvxβγρφχ", "₀₁₂₃₄₅₆₇₈₉₊₋₌₍₎ₐₑₕᵢⱼₖₗₘₙₒₚᵣₛₜᵤᵥₓᵦᵧᵨᵩᵪ", strict=True))
SMALL_ABOVE = dict(
    zip(
        "0123456789+-=()abcdefghijklmnoprstuvwxyzABDEGHIJKLMNOPRTUVWβγδθ⊤",
        "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁼⁽⁾ᵃᵇᶜᵈᵉᶠᵍʰⁱʲᵏˡᵐⁿᵒᵖʳˢᵗᵘᵛʷˣʸᶻᴬᴮᴰᴱᴳᴴᴵᴶᴷᴸᴹᴺᴼᴾᴿᵀᵁⱽᵂᵝᵞᵟᶿᵀ",
        strict=True,
    )
)
