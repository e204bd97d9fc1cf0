"""The words of the demo tasks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Verb(NamedTuple):
    base: str
    third: str
    past: str
    participle: str
    ing: str


class Noun(NamedTuple):
    one: str
    many: str


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


def _verbs(text: str) -> tuple[Verb, ...]:
    return tuple(Verb(*line.split()) for line in text.strip().splitlines())


def _nouns(text: str) -> tuple[Noun, ...]:
    """'poodle' has the plural 'poodles'; 'thrush/thrushes' gives its own."""
    pairs = (word.split("/") for word in text.split())
    return tuple(Noun(pair[0], pair[1] if len(pair) > 1 else pair[0] + "s") for pair in pairs)


# never with an object, and with no adjective like their participle ("is rested")
INTRANSITIVE = _verbs("""
snore snores snored snored snoring
limp limps limped limped limping
smile smiles smiled smiled smiling
sneeze sneezes sneezed sneezed sneezing
frown frowns frowned frowned frowning
yawn yawns yawned yawned yawning
laugh laughs laughed laughed laughing
wait waits waited waited waiting
cough coughs coughed coughed coughing
shiver shivers shivered shivered shivering
complain complains complained complained complaining
blink blinks blinked blinked blinking
appear appears appeared appeared appearing
giggle giggles giggled giggled giggling
tremble trembles trembled trembled trembling
hesitate hesitates hesitated hesitated hesitating
""")

# never without one
TRANSITIVE = _verbs("""
admire admires admired admired admiring
find finds found found finding
describe describes described described describing
praise praises praised praised praising
mention mentions mentioned mentioned mentioning
avoid avoids avoided avoided avoiding
protect protects protected protected protecting
take takes took taken taking
discover discovers discovered discovered discovering
examine examines examined examined examining
ignore ignores ignored ignored ignoring
touch touches touched touched touching
photograph photographs photographed photographed photographing
bring brings brought brought bringing
inspect inspects inspected inspected inspecting
recognise recognises recognised recognised recognising
repair repairs repaired repaired repairing
greet greets greeted greeted greeting
fetch fetches fetched fetched fetching
acquire acquires acquired acquired acquiring
""")

# kind -> its members; whatever holds of a member holds of one of the kind
ANIMATE_KINDS: dict[Noun, tuple[Noun, ...]] = {
    Noun("dog", "dogs"): _nouns("poodle beagle terrier collie/collies spaniel"),
    Noun("bird", "birds"): _nouns("sparrow eagle robin owl pigeon parrot"),
    Noun("insect", "insects"): _nouns("bee ant wasp moth beetle"),
    Noun("musician", "musicians"): _nouns("violinist pianist drummer guitarist cellist"),
    Noun("athlete", "athletes"): _nouns("swimmer boxer gymnast/gymnasts sprinter cyclist"),
    Noun("scientist", "scientists"): _nouns("chemist biologist physicist astronomer geologist"),
    Noun("artist", "artists"): _nouns("painter sculptor illustrator potter"),
    Noun("worker", "workers"): _nouns("plumber carpenter mason electrician welder"),
}
# all of them count nouns with no mass reading: "she found oak" would be acceptable
THING_KINDS: dict[Noun, tuple[Noun, ...]] = {
    Noun("vehicle", "vehicles"): _nouns("car truck van bus/buses tractor ambulance"),
    Noun("tool", "tools"): _nouns("hammer drill wrench/wrenches chisel axe"),
    Noun("flower", "flowers"): _nouns("rose tulip daisy/daisies lily/lilies orchid"),
    Noun("boat", "boats"): _nouns("canoe ferry/ferries kayak yacht"),
    Noun("instrument", "instruments"): _nouns("violin piano trumpet flute accordion"),
    Noun("garment", "garments"): _nouns("jacket sweater skirt apron overcoat"),
    Noun("container", "containers"): _nouns("basket bucket suitcase urn envelope"),
    Noun("jewel", "jewels"): _nouns("necklace bracelet earring amulet"),
    Noun("toy", "toys"): _nouns("doll kite puppet marble"),
}
ANIMATES = tuple(noun for members in ANIMATE_KINDS.values() for noun in members)
THINGS = tuple(noun for members in THING_KINDS.values() for noun in members)
MEN = _nouns("boy king uncle waiter grandfather nephew")
WOMEN = _nouns("girl queen aunt waitress/waitresses grandmother niece")

ADJECTIVES = _words("small old young tall quiet clever famous angry lazy elegant hungry tired strange brave")
THING_ADJECTIVES = _words("small old new heavy expensive ugly broken yellow green red enormous ordinary")
ADVERBS = _words("quietly slowly again often suddenly eagerly calmly carefully")
TIMES = ("after lunch", "in the morning", "before noon", "on Sunday", "at midnight", "during the storm")
ORIGINS = ("from Spain", "from Norway", "from the village", "from the north", "with long hair", "with a red scarf")


def text(words: Sequence[str]) -> str:
    """Words as a sentence: a capital at the front, a full stop at the end, empty words left out."""
    joined = " ".join(word for word in words if word)
    return f"{joined[0].upper()}{joined[1:]}."
