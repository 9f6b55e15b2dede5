"""The cure in an error message: an imperative clause after a colon, semicolon or full stop."""

import re

ORDERS = """
    add, ask, balance, call, change, choose, convert, copy, delete, divide, draw, end, fill, finish, flatten, free,
    give, keep, leave, lower, make, map, measure, merge, name, open, pass, pip install, project, raise, remove,
    reshape, resume, return, run, save, select, set, sort, start, take, transpose, use, wait, write
"""
"""The verbs that a cure may begin with. If a message needs another verb, add it here, as an imperative."""

VERBS = [verb.strip() for verb in ORDERS.split(",")]
CURE = re.compile(rf"[:;.] (?:{'|'.join([*VERBS, *map(str.capitalize, VERBS)])})\b(?! (?:of|is|are|has|have|was)\b)")


def has_cure(text: str) -> bool:
    """Whether a message says what to do, by an imperative or by asking whether a similar name was meant."""
    return CURE.search(text) is not None or "; did you mean '" in text
