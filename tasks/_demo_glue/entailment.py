"""Entailment: two sentences about a small world; does the second follow from the first?

Five families of pairs, alike in number, each with as many pairs that follow as pairs that do not:

    denial        the same with less detail, or denied
    truth         `it is true that`, `it is false that`, and negation
    implicative   `managed to`, `failed to` and the like, and negation
    connective    `and` and `or`, from the compound to the part or from the part to the compound
    quantity      wider and narrower words under a quantifier; `at least` and `at most` with numbers

Single words give away denial alone; in the others both labels have the same words.
"""

from __future__ import annotations

from tasks._demo_glue.lexicon import (
    ADJECTIVES,
    ADVERBS,
    ANIMATE_KINDS,
    ANIMATES,
    INTRANSITIVE,
    ORIGINS,
    THING_KINDS,
    THINGS,
    TIMES,
    TRANSITIVE,
    Noun,
    Verb,
    text,
)
from tasks._draw import Draw, article, held_out

LABELS = ("entailment", "not_entailment")
NUMBERS = ("two", "three", "four", "five", "six", "seven")

# quantifier -> (a wider restrictor follows, a wider predicate follows)
QUANTIFIERS = {
    "some": (True, True),
    "every": (False, True),
    "no": (False, False),
    "not every": (True, False),
}
DONE = ("managed to", "remembered to", "happened to", "dared to")  # that it was done follows
NOT_DONE = ("failed to", "forgot to", "refused to", "neglected to")  # that it was not done follows


def example(draw: Draw, follows: bool, test: bool) -> tuple[str, ...]:
    """(premise, hypothesis). Subject and verb are a held-out combination in test, and never one elsewhere."""
    family = draw.one(FAMILIES)
    while True:
        noun, verb = draw.one(ANIMATES), draw.one(INTRANSITIVE + TRANSITIVE)
        if held_out(noun.one, verb.base) == test:
            premise, hypothesis = family(draw, noun, verb, follows)
            return text([premise]), text([hypothesis])


def _denial(draw: Draw, noun: Noun, verb: Verb, follows: bool) -> tuple[str, str]:
    """The old owl slept at midnight => the owl slept; but not: the owl did not sleep."""
    thing, detail = _thing(draw, verb), draw.one(ADVERBS + TIMES)
    premise = f"the {draw.one(ADJECTIVES)} {noun.one} {verb.past}{thing} {detail}"
    return premise, f"the {noun.one} {verb.past if follows else 'did not ' + verb.base}{thing}"


def _connective(draw: Draw, noun: Noun, verb: Verb, follows: bool) -> tuple[str, str]:
    """The bee and the owl slept => the owl slept => the ant or the owl slept."""
    other = draw.one([animate for animate in ANIMATES if animate != noun])
    left, right = draw.two((noun.one, other.one))
    action = _action(draw, verb)
    word = draw.one(("and", "or"))
    compound, part = f"the {left} {word} the {right} {action}", f"the {noun.one} {action}"
    return (compound, part) if follows == (word == "and") else (part, compound)


def _truth(draw: Draw, noun: Noun, verb: Verb, follows: bool) -> tuple[str, str]:
    """It is false that the owl slept => the owl did not sleep."""
    thing = _thing(draw, verb)
    done, not_done = f"the {noun.one} {verb.past}{thing}", f"the {noun.one} did not {verb.base}{thing}"
    word = draw.one(("true", "false"))
    claim, plain = f"it is {word} that {done}", done if follows == (word == "true") else not_done
    return draw.one(((claim, plain), (plain, claim)))


def _implicative(draw: Draw, noun: Noun, verb: Verb, follows: bool) -> tuple[str, str]:
    """The owl failed to sleep => the owl did not sleep."""
    thing = _thing(draw, verb)
    implicative = draw.one(DONE + NOT_DONE)
    premise = f"the {noun.one} {implicative} {verb.base}{thing}"
    if follows == (implicative in DONE):
        return premise, f"the {noun.one} {verb.past}{thing}"
    return premise, f"the {noun.one} did not {verb.base}{thing}"


def _quantity(draw: Draw, noun: Noun, verb: Verb, follows: bool) -> tuple[str, str]:
    """One of the two kinds of pairs with quantifiers."""
    return draw.one((_monotone, _number))(draw, noun, verb, follows)


def _monotone(draw: Draw, noun: Noun, verb: Verb, follows: bool) -> tuple[str, str]:
    """Every dog slept => every poodle slept; some poodle slept => some dog slept."""
    quantifier = draw.one(tuple(QUANTIFIERS))
    wider_restrictor_follows, wider_predicate_follows = QUANTIFIERS[quantifier]
    if draw.chance(0.5):
        action, wider_follows = _action(draw, verb), wider_restrictor_follows
        pair = [f"{quantifier} {restrictor} {action}" for restrictor in _restrictors(draw, noun)]
    else:
        wider_follows = wider_predicate_follows
        pair = [f"{quantifier} {noun.one} {predicate}" for predicate in _predicates(draw, verb)]
    narrow, wide = pair
    return (narrow, wide) if follows == wider_follows else (wide, narrow)


def _restrictors(draw: Draw, noun: Noun) -> tuple[str, str]:
    """A narrow and a wider noun with its modifiers."""
    return draw.one(
        (
            (noun.one, _kind_of(noun).one),
            (f"{draw.one(ADJECTIVES)} {noun.one}", noun.one),
            (f"{noun.one} {draw.one(ORIGINS)}", noun.one),
        )
    )


def _predicates(draw: Draw, verb: Verb) -> tuple[str, str]:
    """A narrow and a wider predicate."""
    if verb in INTRANSITIVE or draw.chance(0.5):
        action = _action(draw, verb)
        return f"{action} {draw.one(ADVERBS + TIMES)}", action
    kind = draw.one(tuple(THING_KINDS))
    member = draw.one(THING_KINDS[kind])
    return tuple(f"{verb.past} {article(thing.one)} {thing.one}" for thing in (member, kind))


def _number(draw: Draw, noun: Noun, verb: Verb, follows: bool) -> tuple[str, str]:
    """At least four owls slept => at least three owls slept."""
    small, large = sorted(draw.two(range(len(NUMBERS))))
    bound, action = draw.one(("at least", "at most")), _action(draw, verb)
    fewer, more = (f"{bound} {NUMBERS[number]} {noun.many} {action}" for number in (small, large))
    return (more, fewer) if follows == (bound == "at least") else (fewer, more)


def _kind_of(noun: Noun) -> Noun:
    return next(kind for kind, members in ANIMATE_KINDS.items() if noun in members)


def _action(draw: Draw, verb: Verb) -> str:
    """'slept' or 'found the hammer'."""
    return verb.past + _thing(draw, verb)


def _thing(draw: Draw, verb: Verb) -> str:
    """' the hammer' for a verb that takes an object, else nothing."""
    return "" if verb in INTRANSITIVE else f" the {draw.one(THINGS).one}"


FAMILIES = (_denial, _truth, _implicative, _connective, _quantity)
