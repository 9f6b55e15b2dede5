"""The cure of a refusal: a clause, after a colon, semicolon or full stop, that is an order."""

import re

ORDERS = """
    add, ask, balance, call, change, choose, convert, copy, delete, draw, end, fill, flatten, free, give, keep, leave,
    lower, make, map, measure, name, open, pass, pip install, project, raise, remove, reshape, resume, return,
    run, save, select, set, sort, start, take, transpose, use, wait, write
"""
"""The verbs that a cure may begin with. A message that needs another adds it here, and means it as an order."""

VERBS = [verb.strip() for verb in ORDERS.split(",")]
CURE = re.compile(rf"[:;.] (?:{'|'.join([*VERBS, *map(str.capitalize, VERBS)])})\b(?! (?:of|is|are|has|have|was)\b)")


def has_cure(text: str) -> bool:
    """Whether a message says what to do, by an order or by asking whether a near name was meant."""
    return CURE.search(text) is not None or "; did you mean '" in text
