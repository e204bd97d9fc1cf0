"""Facts that every reader knows: things, and one value of theirs in each of six relations.

The values of a relation exclude each other for all things named there, so that any other value is a wrong answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tasks._draw import article

EVERY = 3  # of the things that share a value, one in so many is for the test


@dataclass(frozen=True)
class Relation:
    """question: with `{}` for a thing. statement: with `{}` for a thing, and to be followed by a value.

    things: value -> the things that have it, without article.
    """

    question: str
    statement: str
    things: Mapping[str, tuple[str, ...]]

    def of(self, value: str, test: bool) -> list[str]:
        """The things with this value that are for the test, or for training and validation, with their articles."""
        named = [f"{article(thing)} {thing}" for thing in self.things[value]]
        return [thing for place, thing in enumerate(named) if (place % EVERY == 0) == test]


def _things(**values: str) -> dict[str, tuple[str, ...]]:
    """Underscores stand for spaces, in values and in things."""
    return {
        value.replace("_", " "): tuple(thing.replace("_", " ") for thing in things.split())
        for value, things in values.items()
    }


KIND = Relation(
    "What kind of thing is {}?",
    "{} is a kind of",
    _things(
        tool="hammer drill wrench chisel screwdriver crowbar",
        fruit="pear apple banana mango plum peach",
        bird="robin sparrow eagle owl parrot pigeon",
        vehicle="van truck bus tractor taxi ambulance",
        flower="tulip rose daisy lily orchid sunflower",
        musical_instrument="flute piano violin trumpet guitar clarinet",
        fish="trout salmon shark tuna herring sardine",
        insect="wasp bee ant moth beetle mosquito",
    ),
)
USE = Relation(
    "What is {} used for?",
    "{} is used for",
    _things(
        cutting="saw chainsaw axe razor lawnmower pair_of_scissors",
        writing="pencil pen crayon typewriter piece_of_chalk ballpoint",
        cooking="stove frying_pan oven grill saucepan microwave",
        cleaning="mop broom sponge duster bar_of_soap vacuum_cleaner",
        sitting="sofa chair bench stool armchair couch",
        giving_light="lantern lamp candle flashlight light_bulb street_lamp",
        measuring="thermometer ruler tape_measure speedometer barometer stopwatch",
        carrying_things="suitcase basket backpack bag handbag wheelbarrow",
    ),
)
PLACE = Relation(
    "Where is {} usually found?",
    "{} is usually found",
    _things(
        in_the_sea="dolphin whale shark octopus jellyfish coral_reef",
        in_a_kitchen="toaster fridge dishwasher saucepan frying_pan oven",
        in_a_bathroom="bathtub toilet shower toothbrush shower_curtain bath_mat",
        on_a_farm="barn cow pig plough hen combine_harvester",
        in_a_classroom="blackboard school_desk textbook pupil teacher spelling_book",
        in_the_sky="rainbow cloud star comet thundercloud shooting_star",
        in_a_hospital="surgeon nurse patient stretcher operating_table maternity_ward",
    ),
)
MATERIAL = Relation(
    "What is {} mostly made of?",
    "{} is mostly made of",
    _things(
        wood="plank log fence_post toothpick tree_trunk broomstick",
        glass="mirror window wine_bottle lens light_bulb test_tube",
        metal="key nail coin horseshoe anvil paper_clip",
        cloth="towel shirt curtain blanket flag handkerchief",
        paper="magazine newspaper book envelope notebook receipt",
    ),
)
COLOUR = Relation(
    "What colour is {} usually?",
    "the usual colour of {} is",
    _things(
        yellow="lemon banana egg_yolk canary dandelion sunflower",
        green="frog blade_of_grass lettuce cucumber broccoli_stalk cactus",
        red="strawberry tomato fire_engine cherry ruby stop_sign",
        white="swan snowflake polar_bear glass_of_milk tooth wedding_dress",
        black="raven crow lump_of_coal panther car_tyre top_hat",
    ),
)
LEGS = Relation(
    "How many legs does {} have?",
    "{} has",
    _things(
        no_legs="worm snake eel whale trout snail",
        two_legs="duck hen swan penguin ostrich child",
        four_legs="horse dog cat cow sheep lion",
        six_legs="beetle ant bee butterfly mosquito wasp",
        eight_legs="tarantula spider scorpion tick mite",
    ),
)
RELATIONS = (KIND, USE, PLACE, MATERIAL, COLOUR, LEGS)
