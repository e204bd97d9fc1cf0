"""Acceptability: a sentence of a small English grammar, as it should be or with one error.

Acceptable and unacceptable sentences come from the same draws: an error is chosen, clauses are drawn until one can
have it, and only then the label decides whether it is made. So what a sentence is about says nothing of its label,
and most errors leave the words of the sentence, taken singly, as likely as before.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from tasks._demo_glue.lexicon import (
    ADJECTIVES,
    ADVERBS,
    ANIMATES,
    INTRANSITIVE,
    MEN,
    THING_ADJECTIVES,
    THINGS,
    TIMES,
    TRANSITIVE,
    WOMEN,
    Verb,
    text,
)
from tasks._draw import Draw, article, held_out

LABELS = ("unacceptable", "acceptable")
SUBJECT_CASE = {"he": "him", "she": "her", "they": "them", "we": "us"}
REFLEXIVES = ("himself", "herself", "themselves")
DETERMINERS = {False: ("the", "a", "this", "that", "every"), True: ("the", "these", "those", "many", "several")}
ALL_DETERMINERS = (*DETERMINERS[False], *DETERMINERS[True], "an")
MODALS = ("will", "can", "must", "should")


@dataclass(frozen=True)
class Phrase:
    """A noun phrase as written, with the features that agreement looks at. Pronouns have only a noun."""

    noun: str
    plural: bool
    determiner: str = ""
    adjective: str = ""
    lemma: str = ""
    other_number: str = ""  # the noun in the other number
    reflexive: str = ""  # the one that refers back to it, if it is plain which

    @property
    def words(self) -> list[str]:
        return [self.determiner, self.adjective, self.noun]


@dataclass(frozen=True)
class Clause:
    """subject (near) (auxiliary) verb (object) (tail), as written."""

    subject: Phrase
    near: list[str]  # between subject and verb; its noun often has the other number
    auxiliary: str
    verb: str
    lemma: Verb
    object: Phrase | None
    tail: str

    @property
    def words(self) -> list[str]:
        return [*self.subject.words, *self.near, *self._predicate]

    @property
    def _predicate(self) -> list[str]:
        return [self.auxiliary, self.verb, *(self.object.words if self.object else []), self.tail]


def example(draw: Draw, acceptable: bool, test: bool) -> tuple[str, ...]:
    """One sentence. Subject and verb are a held-out combination in test, and never one elsewhere."""
    spoil = draw.one(ERRORS)
    while True:
        clause = _clause(draw)
        if held_out(clause.subject.lemma, clause.lemma.base) != test:
            continue
        spoilt = spoil(draw, clause)
        if spoilt is not None:
            return (text(clause.words if acceptable else spoilt),)


def _clause(draw: Draw) -> Clause:
    subject = _subject(draw)
    near = []
    if subject.determiner and draw.chance(0.3):
        near = [draw.one(("near", "behind", "beside")), *_noun_phrase(draw, THINGS, ()).words]
    transitive = draw.chance(0.65)
    lemma = draw.one(TRANSITIVE if transitive else INTRANSITIVE)
    auxiliary, verb = _verb(draw, lemma, subject.plural)
    tail = draw.one(ADVERBS + TIMES) if draw.chance(0.4) else ""
    return Clause(subject, near, auxiliary, verb, lemma, _object(draw, subject) if transitive else None, tail)


def _subject(draw: Draw) -> Phrase:
    if draw.chance(0.2):
        pronoun, reflexive = draw.one(tuple(zip(("he", "she", "they"), REFLEXIVES, strict=True)) + (("we", ""),))
        return Phrase(pronoun, plural=pronoun in ("they", "we"), lemma=pronoun, reflexive=reflexive)
    nouns, reflexive = draw.one(((ANIMATES, ""), (ANIMATES, ""), (MEN, "himself"), (WOMEN, "herself")))
    phrase = _noun_phrase(draw, nouns, ADJECTIVES)
    return replace(phrase, reflexive="themselves" if phrase.plural else reflexive)


def _object(draw: Draw, subject: Phrase) -> Phrase:
    if subject.reflexive and draw.chance(0.25):
        return Phrase(subject.reflexive, subject.plural)
    if draw.chance(0.2):
        own = SUBJECT_CASE.get(subject.noun)  # "we saw us" is no better than "us saw it"
        return Phrase(draw.one([case for case in SUBJECT_CASE.values() if case != own]), plural=False)
    return _noun_phrase(draw, THINGS, THING_ADJECTIVES)


def _noun_phrase(draw: Draw, nouns, adjectives) -> Phrase:
    noun, plural = draw.one(nouns), draw.chance(0.5)
    written, other = (noun.many, noun.one) if plural else (noun.one, noun.many)
    adjective = draw.one(adjectives) if adjectives and draw.chance(0.4) else ""
    determiner = draw.one(DETERMINERS[plural])
    if determiner == "a":
        determiner = article(adjective or written)
    return Phrase(written, plural, determiner, adjective, lemma=noun.one, other_number=other)


def _verb(draw: Draw, verb: Verb, plural: bool) -> tuple[str, str]:
    """Auxiliary (or none) and verb form."""
    tense = draw.one(("present", "progressive", "perfect", "modal"))
    if tense == "present":
        return "", verb.base if plural else verb.third
    if tense == "progressive":
        return draw.one(("are", "were") if plural else ("is", "was")), verb.ing
    if tense == "perfect":
        return "have" if plural else "has", verb.participle
    return draw.one(MODALS), verb.base


# Errors: each gives the words of the clause with one thing wrong, or None where the clause has no place for it.

OTHER_NUMBER = {"is": "are", "are": "is", "was": "were", "were": "was", "has": "have", "have": "has"}


def _agreement(draw: Draw, clause: Clause) -> list[str] | None:
    """The dogs near the house barks."""
    if clause.auxiliary in MODALS:
        return None
    if clause.auxiliary:
        return replace(clause, auxiliary=OTHER_NUMBER[clause.auxiliary]).words
    return replace(clause, verb=clause.lemma.third if clause.subject.plural else clause.lemma.base).words


def _verb_form(draw: Draw, clause: Clause) -> list[str] | None:
    """The dog is bark."""
    lemma = clause.lemma
    if not clause.auxiliary:
        return None
    wrong = [form for form in (lemma.base, lemma.participle, lemma.ing) if form != clause.verb]
    return replace(clause, verb=draw.one(wrong)).words


def _order(draw: Draw, clause: Clause) -> list[str] | None:
    """Dog the is barking; The dog barking is; Small the dog is barking."""
    words = [word for word in clause.words if word]
    first = [place for place, word in enumerate(words[:-1]) if word in ALL_DETERMINERS or word == clause.auxiliary]
    if not first:
        return None
    place = draw.one(first)
    words[place], words[place + 1] = words[place + 1], words[place]
    return words


def _no_determiner(draw: Draw, clause: Clause) -> list[str] | None:
    """Dog is barking."""
    return _change_phrase(draw, clause, lambda phrase: None if phrase.plural else replace(phrase, determiner=""))


def _determiner_number(draw: Draw, clause: Clause) -> list[str] | None:
    """These dog are barking: the verb still agrees with the determiner."""
    return _change_phrase(
        draw, clause, lambda phrase: None if phrase.determiner == "the" else replace(phrase, noun=phrase.other_number)
    )


def _article(draw: Draw, clause: Clause) -> list[str] | None:
    """A owl is sleeping."""
    other = {"a": "an", "an": "a"}
    return _change_phrase(
        draw,
        clause,
        lambda phrase: replace(phrase, determiner=other[phrase.determiner]) if phrase.determiner in other else None,
    )


def _case(draw: Draw, clause: Clause) -> list[str] | None:
    """Him is barking; The dog sees he."""
    if clause.subject.noun in SUBJECT_CASE:
        return replace(clause, subject=replace(clause.subject, noun=SUBJECT_CASE[clause.subject.noun])).words
    nominative = {accusative: nominative for nominative, accusative in SUBJECT_CASE.items()}
    if clause.object and clause.object.noun in nominative:
        return replace(clause, object=replace(clause.object, noun=nominative[clause.object.noun])).words
    return None


def _reflexive(draw: Draw, clause: Clause) -> list[str] | None:
    """The queen sees himself."""
    if not clause.object or clause.object.noun not in REFLEXIVES:
        return None
    wrong = draw.one([word for word in REFLEXIVES if word != clause.object.noun])
    return replace(clause, object=replace(clause.object, noun=wrong)).words


def _object_number(draw: Draw, clause: Clause) -> list[str] | None:
    """The dog sleeps the bone; The dog finds."""
    return replace(clause, object=None if clause.object else _noun_phrase(draw, THINGS, THING_ADJECTIVES)).words


def _change_phrase(draw: Draw, clause: Clause, change: Callable[[Phrase], Phrase | None]) -> list[str] | None:
    """The clause with a change made to its subject or object, whichever have a determiner and can be changed."""
    phrases = {"subject": clause.subject, "object": clause.object}
    changed = {role: change(phrase) for role, phrase in phrases.items() if phrase and phrase.determiner}
    possible = [role for role, phrase in changed.items() if phrase]
    if not possible:
        return None
    role = draw.one(possible)
    return replace(clause, **{role: changed[role]}).words


ERRORS = (
    *(_agreement, _agreement, _verb_form, _verb_form, _order, _order),
    *(_no_determiner, _determiner_number, _article, _case, _reflexive, _object_number),
)
