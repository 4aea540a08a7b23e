r"""Which unit does an answer carry? `12\text{ cm}^2`, `12 square centimeters` and `12 cm²` carry the same one.

Only units of the table below are told apart; nothing is converted (100 cm is not 1 m here). A unit stands behind a
number, or in `\text{…}` and its like behind anything; a bare single letter is a variable, never a unit. `units`
and `square units` are no unit: they are taken off and compared with nothing.
"""

from __future__ import annotations

import re
from functools import lru_cache

from model.rewards.answers.numerals import number

NO_UNIT = ""  # a placeholder such as `square units`, which fits any unit

# First the key, then its other spellings; plurals in -s and full stops go without saying.
_TABLE = """
    mm millimeter millimetre | cm centimeter centimetre | m meter metre | km kilometer kilometre
    inch in inches | foot ft feet | yard yd | mile mi
    mg milligram | g gram gramme | kg kilogram | tonne | ounce oz | pound lb lbs GBP
    s second sec | min minute | h hour hr | day | week wk | month | year yr
    ml milliliter millilitre mL | l liter litre L | gallon gal | quart qt | pint pt | cup
    dollar USD | cent | euro EUR | yuan RMB CNY | yen JPY | rupee
    degree deg | radian rad | celsius | fahrenheit | kelvin K
    mph | kph kmh | N newton | J joule kJ | W watt | kW kilowatt | V volt | A amp ampere | Pa pascal
    Hz hertz | mol mole
"""
_COMPOUND = {"mph": "mile/h", "kph": "km/h"}
_KEYS = {
    spelling: names[0]
    for entry in _TABLE.replace("\n", "|").split("|")
    if (names := entry.split())
    for spelling in names
}

_WRAP = r"\\(?:text|mathrm|mbox|textnormal|textrm|textit|textbf)\s*\{([^{}]*)\}"
_SPACE = r"(?:\s|\\[,;:! ]|~)"
_POWER = r"\^\s*\{?\s*-?\d\s*\}?"
_WRAPPED = re.compile(rf"(.*?[\w)\]}}]){_SPACE}*({_WRAP}(?:{_WRAP}|{_SPACE}|/|{_POWER})*)", re.DOTALL)
_BARE = re.compile(r"(.*?[\d}])\s*([A-Za-z]{2}[A-Za-z.]*(?:[ /][A-Za-z ./]*)?|k?m/[a-z]+)((?:\^\{?\d\}?)?)")
_TEMPERATURE = re.compile(rf"\^\s*\{{?\\circ\s*\}}?{_SPACE}*(?:\\(?:text|mathrm)\s*\{{\s*)?([CF])\s*\}}?$")
_ANGLE = re.compile(r"\^\s*(?:\\circ|\{\s*\\circ\s*\})$")
_SIGN = re.compile(r"([+-]?)\s*(\\\$|€|£|¥)\s*(?=[\d.])")
_SIGNS = {r"\$": "dollar", "€": "euro", "£": "pound", "¥": "yen"}
_POWERS = {"square": 2, "sq": 2, "cubic": 3, "cu": 3}


def split_unit(core: str) -> tuple[str, str | None]:
    """The answer without its unit, and the unit's key; the answer as it is, and None, where it has none we know."""
    if found := _SIGN.match(core):
        return found[1] + core[found.end() :], _SIGNS[found[2]]
    if found := _TEMPERATURE.search(core):
        return core[: found.start()], "celsius" if found[1] == "C" else "fahrenheit"
    if found := _ANGLE.search(core):
        return core[: found.start()], "degree"
    if found := _WRAPPED.fullmatch(core):
        key = unit(re.sub(_WRAP, r" \1 ", found[2]))
        return (core, None) if key is None else (found[1], key)
    found = _BARE.fullmatch(core)
    if found is None or number(found[1]) is None:
        return core, None
    key = unit(found[2] + found[3])
    return (core, None) if key is None else (found[1], key)


@lru_cache(maxsize=1024)
def unit(text: str) -> str | None:
    """The key of a unit's spelling (`cm^2`, `km/h`), NO_UNIT for a placeholder, None for what we do not know."""
    plain = re.sub(r"\\[,;:! ]|~|[{}]", " ", text)
    plain = re.sub(r"\s*\^\s*", "^", " ".join(plain.split()))
    parts = [_simple(part) for part in re.split(r"\s*/\s*|\s+per\s+", plain)]
    if any(part is None for part in parts):
        return None
    return "/".join(part for part in parts if part)


def _simple(text: str) -> str | None:
    r"""One unit with its power: `square cm`, `cm squared`, `cm^2`."""
    words = text.replace(".", "").split()
    power = 1
    if len(words) == 2 and words[0].lower() in _POWERS:
        power = _POWERS[words.pop(0).lower()]
    elif len(words) == 2 and words[1] in ("squared", "cubed"):
        power = 2 if words.pop() == "squared" else 3
    name, _, exponent = "".join(words).partition("^")
    if exponent:
        power = int(exponent)
    if name.lower() in ("unit", "units"):
        return NO_UNIT
    key = _key(name) if len(words) == 1 else None
    if key is None or power == 1:
        return key and _COMPOUND.get(key, key)
    return f"{key}^{power}"


def _key(name: str) -> str | None:
    """Single letters and symbols such as `Pa` as they are spelled, words in any case."""
    for spelling in (name, name.lower(), name.lower().removesuffix("s"), name.lower().removesuffix("es")):
        if spelling in _KEYS and (len(spelling) > 1 or spelling == name):
            return _KEYS[spelling]
    return None
