"""The lists and helpers that annotated templates name but never define.

The published templates say ``sample(names)`` or ``is_int(n * frac)``; neither the lists nor the helpers were
published. The lists here are this project's own, the helpers what their uses show them to mean. Lists can be added or
replaced by a file ``tables.json`` or ``tables.toml`` beside the templates; helpers are fixed.
"""

import json
import math
import tomllib
from collections.abc import Callable, Mapping
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

from cca.errors import InputError
from cca.problems.templates.expressions import MAX_ITEMS, Pair, Permutations, Value, items, number, whole
from cca.problems.templates.spelling import number_word, words

Lists = Mapping[str, list[Value]]
"""Named lists; an item is text, a number or a `Pair` of wording and value."""


_FEMALE = words("""
    Alice Amara Anita Astrid Beatriz Bella Carmen Chloe Clara Dalia Delphine Edith Elena Esther Fatima Fiona Freya Greta
    Hana Harriet Ingrid Irene Jasmine Joan Kamala Katya Laila Leonie Lucia Mabel Maeve Marisol Mei Mina Nadia Naomi Nora
    Odile Olga Paloma Petra Priya Rosa Ruth Sana Selma Simone Talia Tessa Ursula Vera Violet Wanda Yara Ying Zelda Zora
""")
_MALE = words("""
    Adam Ahmed Albert Anton Arjun Boris Bruno Carlos Cedric Damian Diego Dmitri Edgar Elias Emeka Felix Franco Gareth
    Gustav Hassan Henrik Hugo Ibrahim Igor Isaac Jamal Jonas Joshua Karl Kenji Kofi Lars Leon Liam Luca Malik Marco
    Mateo Milan Nikolai Noel Omar Oscar Pablo Pierre Rafael Ravi Rohan Samir Stefan Tariq Theo Tomas Victor Walter Wei
    Xavier Yusuf Zane
""")


def _fraction_words(style: str) -> list[Value]:
    """Wordings such as ``one-third`` (`style` ``one``) or ``a third`` (`style` ``a``), with their values."""
    names = {3: "third", 4: "quarter", 5: "fifth", 6: "sixth", 8: "eighth", 10: "tenth"}
    pairs: list[Value] = [Pair("half", Fraction(1, 2))]
    pairs += [Pair(f"{style}-{word}" if style == "one" else f"a {word}", Fraction(1, d)) for d, word in names.items()]
    link = "-" if style == "one" else " "
    for top, bottom in ((2, 3), (3, 4), (2, 5), (3, 5), (4, 5)):
        pairs.append(Pair(f"{number_word(top)}{link}{names[bottom]}s", Fraction(top, bottom)))
    return pairs


# Quarters and fifths come first: a template takes the first four for prices.
_FRACTION_NUMS: list[Value] = [
    Pair(str(text), Fraction(text)) for text in words("1/2 1/4 3/4 1/5 2/5 3/5 4/5 1/10 3/10 1/3 2/3 1/6 1/8 3/8")
]

LISTS: Lists = {
    "names": sorted(_FEMALE + _MALE),
    "names_female": _FEMALE,
    "names_male": _MALE,
    "cities": words("Lisbon Nairobi Montreal Osaka Lima Oslo Cairo Dublin Hanoi Prague Seattle Madrid Accra Vienna"),
    "colors": words("red blue green yellow purple orange pink white black brown gray turquoise"),
    "currencies_sym": ["$", "€", "£"],
    # Every fruit forms its plural with a bare s, as the templates write it.
    "fruits": words("apple banana orange pear plum mango lemon melon kiwi apricot grape fig"),
    "sports": words("basketball tennis soccer volleyball baseball hockey badminton golf rugby cricket"),
    "weekdays": words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday"),
    "months": words(
        "January February March April May June July August September October November December",
    ),
    "length_lg": ["mile", "kilometer"],
    "weights_sm": ["ounce", "gram"],
    "weights_med": ["pound", "kilogram"],
    "fractions": _fraction_words("one"),
    "fraction_alph": _fraction_words("a"),
    "fraction_nums": _FRACTION_NUMS,
    "fraction_alnum": _fraction_words("one") + _FRACTION_NUMS,
    "fraction_decimals": [Fraction(n, 20) for n in range(1, 20)],
    "multiple": [Pair("double", 2), Pair("triple", 3), Pair("quadruple", 4)],
    "multiple_ice": [Pair("twice", 2), Pair("thrice", 3)],
    "multi_times": [Pair(f"{number_word(n)} times", n) for n in range(2, 9)],
}


def _is_int(value: Value) -> bool:
    """No remainder is left: numbers are exact, so 0.1 * 30 is 3."""
    return isinstance(number(value), int)


def _divides(value: Value, divisor: Value) -> bool:
    """``divides(12, 4)``: 12 can be divided by 4."""
    return number(divisor) != 0 and (Fraction(number(value)) / number(divisor)).denominator == 1


def _int(value: Value) -> int:
    return math.trunc(number(value))


def _round(value: Value, places: Value = None) -> Value:
    if places is None:
        return round(number(value))
    if not 0 <= whole(places) <= 10:
        raise ValueError("round is to 0 to 10 places")
    return number(round(Fraction(number(value)), whole(places)))


def _fraction(top: Value, bottom: Value = 1) -> Value:
    return number(Fraction(number(top)) / number(bottom))


def _format_frac(value: Value) -> str:
    """A mixed number: 7/2 is ``3 1/2``."""
    exact = Fraction(number(value))
    units, rest = divmod(abs(exact), 1)
    text = f"{units} {rest}" if units and rest else str(rest or units)
    return f"-{text}" if exact < 0 else text


def _arange(start: Value, stop: Value, step: Value = 1) -> list[Value]:
    """From `start` up to, not including, `stop`, as numpy does, but exact."""
    first, step = number(start), number(step)
    count = max(0, math.ceil(Fraction(number(stop) - first) / step))
    if count > MAX_ITEMS:
        raise ValueError(f"a range of more than {MAX_ITEMS} items is not allowed")
    return [number(first + i * step) for i in range(count)]


def _range(start: Value, stop: Value = None, step: Value = 1) -> list[Value]:
    return _arange(0, whole(start)) if stop is None else _arange(whole(start), whole(stop), whole(step))


def _randint(low: Value, high: Value, count: Value) -> list[Value]:
    """`count` random integers to draw one of: the same as drawing one of all of them."""
    whole(count)
    return _range(low, high)


def _numbers_within(low: Value, high: Value) -> list[Value]:
    """The integers from `low` to `high`, both included, which a question writes as words."""
    if not 0 <= whole(low) <= whole(high) <= 99:
        raise ValueError("numbers_within is for 0 to 99")
    return [Pair(number_word(n), n) for n in range(whole(low), whole(high) + 1)]


def _sample(pool: Value, count: Value = None) -> Value:
    """What one item, or `count` different ones in any order, can be drawn from."""
    return items(pool) if count is None else Permutations(list(dict.fromkeys(items(pool))), whole(count))


def _sample_sequential(pool: Value, count: Value) -> list[Value]:
    """Runs of `count` neighbours; after the last item comes the first, as after Sunday comes Monday."""
    pool, count = items(pool), whole(count)
    if not 1 <= count <= min(len(pool), 20):
        raise ValueError(f"cannot choose {count} of {len(pool)} items in a row")
    return [tuple((pool + pool)[i : i + count]) for i in range(len(pool))]


def _same(values: Value) -> Value:
    return items(values)


def _least(*values: Value) -> Value:
    return min(map(number, values))


def _greatest(*values: Value) -> Value:
    return max(map(number, values))


HELPERS: Mapping[str, Callable[..., Value]] = {
    "Fraction": _fraction,
    "abs": lambda value: abs(number(value)),
    "divides": _divides,
    "fix_floats": _same,  # exact numbers have nothing to fix
    "format_frac": _format_frac,
    "frange": _arange,
    "int": _int,
    "is_int": _is_int,
    "list": _same,
    "math.ceil": lambda value: math.ceil(number(value)),
    "math.floor": lambda value: math.floor(number(value)),
    "max": _greatest,
    "min": _least,
    "np.arange": _arange,
    "np.random.randint": _randint,
    "numbers_within": _numbers_within,
    "range": _range,
    "round": _round,
    "sample": _sample,
    "sample_sequential": _sample_sequential,
    "shuffle_list": _same,  # one is drawn at random anyway
}


def load_lists(folder: Path) -> Lists:
    """`LISTS` with those of ``tables.json`` or ``tables.toml`` in `folder` added or put in their place.

    An item is text, a number, or ``[wording, value]`` where the value may be a fraction as text (``"1/3"``).

    Raises:
        InputError: a table is unreadable or has an item of another kind.
    """
    lists = dict(LISTS)
    for path in (folder / "tables.json", folder / "tables.toml"):
        if not path.is_file():
            continue
        try:
            text = path.read_text(encoding="utf-8-sig")
            # Decimals are kept as they are written; floats would carry their binary error into every is_int.
            load = json.loads if path.suffix == ".json" else tomllib.loads
            tables: Any = load(text, parse_float=Decimal)
        except (OSError, ValueError, RecursionError) as error:
            raise InputError(f"{path}: {error}; mend the file, which is UTF-8 text") from None
        if not isinstance(tables, dict):
            raise InputError(f"{path}: expected names with lists, got {type(tables).__name__}")
        for name, entries in tables.items():
            if not isinstance(entries, list) or not entries:
                raise InputError(f"{path}, {name}: expected a list of items that is not empty")
            try:
                lists[name] = [_item(entry) for entry in entries]
            except (TypeError, ValueError, ZeroDivisionError) as error:
                raise InputError(
                    f"{path}, {name}: {error}; an item is text, a number, or [wording, value] such as "
                    '["a third", "1/3"]'
                ) from None
    return lists


def _item(entry: Any) -> Value:
    if isinstance(entry, str):
        return writable(entry)
    if isinstance(entry, list) and len(entry) == 2 and isinstance(entry[0], str):
        return Pair(writable(entry[0]), number(_exact(entry[1])))
    return number(_exact(entry))


def writable(text: str) -> str:
    """`text`, or ValueError where it holds half a character (a lone surrogate), which no file can."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{text!a} holds half a character: {error.reason}") from None
    return text


def _exact(value: Any) -> Value:
    if type(value) is int:
        return value
    if not isinstance(value, Decimal | str) or len(str(value)) > 40 or "e" in str(value).lower():
        raise TypeError(f"{value!r} is not a number")
    return Fraction(value)
