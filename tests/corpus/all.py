"""All tables of the corpus. A new topic is a module beside this one and a line here."""

from tests.corpus import columnar, delimited, packed, spelled
from tests.corpus.case import Case

CASES: list[Case] = [*columnar.CASES, *delimited.CASES, *packed.CASES, *spelled.CASES]
