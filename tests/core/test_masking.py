"""Masking: no spelling that the module claims lets a secret or a value through, and sentences stay readable."""

import html
import json
from base64 import b64encode, urlsafe_b64encode
from collections.abc import Callable
from urllib.parse import quote, quote_plus

from hypothesis import given
from hypothesis import strategies as st

from backfill.core.masking import MASK, MAX_READ, MAX_SHOWN, NONE, Secrets, masked, visible

Spell = Callable[[str], str]

PLAIN_SPELLINGS: dict[str, Spell] = {
    "as it is": str,
    "capitals": str.upper,
    "small letters": str.lower,
    "percent": lambda text: quote(text, safe=""),
    "form": quote_plus,
    "every byte percent-encoded": lambda text: "".join(f"%{byte:02x}" for byte in text.encode()),
    "percent twice": lambda text: quote(quote(text, safe=""), safe=""),
    "JSON": lambda text: json.dumps(text)[1:-1],
    "JSON, slashes too": lambda text: json.dumps(text)[1:-1].replace("/", "\\/"),
    "JSON in JSON": lambda text: json.dumps(json.dumps(text))[3:-3],
    "JSON, every character": lambda text: "".join(f"\\u{ord(character):04X}" for character in text),
    "HTML": html.escape,
    "HTML, every character": lambda text: "".join(f"&#{ord(character)};" for character in text),
    "invisible characters within": "\u200b".join,
}
SECRET_SPELLINGS = PLAIN_SPELLINGS | {
    "base64": lambda text: b64encode(text.encode()).decode(),
    "base64 for addresses": lambda text: urlsafe_b64encode(text.encode()).decode(),
    "Basic": lambda text: b64encode(f"id:{text}".encode()).decode(),
    "Basic of a longer id": lambda text: b64encode(f"a-client:{text}".encode()).decode(),
    "base64 within a text": lambda text: b64encode(f"{text}, {text}; {text}".encode()).decode(),
    "hex": lambda text: text.encode().hex(),
}

ascii_secrets = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=8, max_size=60)


@given(ascii_secrets, st.sampled_from(sorted(SECRET_SPELLINGS)), st.text("xyz .", max_size=40), st.integers(0, 400))
def test_no_spelling_of_a_secret_survives(secret: str, spelling: str, around: str, at: int) -> None:
    """However it is spelled and wherever the cut falls: no eight characters of the spelling in a row are left."""
    spelled = SECRET_SPELLINGS[spelling](secret)
    shown = masked(f"{around[:at]}{'~' * at} {spelled} {around}", (), Secrets(secret))
    assert len(shown) <= MAX_SHOWN
    remains = spelled.replace("\u200b", "")
    settled = remains if "ase64" not in spelling and "Basic" not in spelling else remains[:0]
    for place in range(len(settled) - 7):
        assert settled[place : place + 8] not in shown
    for place in range(len(secret) - 7):
        assert secret[place : place + 8] not in shown


@given(ascii_secrets, st.sampled_from(["Basic", "Basic of a longer id", "base64", "base64 within a text"]))
def test_what_is_left_of_base64_tells_no_eight_characters(secret: str, spelling: str) -> None:
    """What is left around the mask decodes to nothing of the secret but an edge of at most two characters."""
    shown = masked(SECRET_SPELLINGS[spelling](secret), (), Secrets(secret))
    assert MASK in shown
    left = [len(piece) for piece in shown.split(MASK)]
    assert max(left) <= len(b64encode(b"a-client:")) + 2


@given(ascii_secrets, st.data())
def test_a_piece_of_a_secret_is_masked(secret: str, data: st.DataObject) -> None:
    """An error that shows only the first or last characters of a token shows fewer than eight."""
    first = data.draw(st.integers(0, len(secret) - 8))
    piece = secret[first : first + data.draw(st.integers(8, len(secret) - first))]
    assert masked(f"(token {piece} is bad)", (), Secrets(secret)) == "(token *** is bad)"


@given(
    st.text(st.characters(codec="utf-8", exclude_categories=["Z", "C"]), min_size=3, max_size=40).filter(
        lambda text: len(text.strip()) >= 3
    ),
    st.sampled_from(sorted(set(PLAIN_SPELLINGS) - {"capitals", "small letters", "JSON, every character"})),
)
def test_no_spelling_of_a_value_survives(value: str, spelling: str) -> None:
    """Also of letters beyond ASCII; the words around it stay."""
    assert masked(f"~ {PLAIN_SPELLINGS[spelling](value)} ~", [value]) in (f"~ {MASK} ~", MASK)


@given(st.text("abcdefgh0123456789@.", min_size=13, max_size=60), st.data())
def test_the_beginning_and_the_end_of_a_value_are_masked(value: str, data: st.DataObject) -> None:
    """A server that shortens what it quotes shows at most eleven characters of it."""
    length = data.draw(st.integers(12, len(value)))
    for part in (value[:length], value[-length:]):
        assert masked(f"~ {part} [cut] ~", [value]) == f"~ {MASK} [cut] ~"


@given(st.integers(0, 200), st.sampled_from(sorted(PLAIN_SPELLINGS)))
def test_words_are_masked_before_they_are_cut(left: int, spelling: str) -> None:
    """Neither where the words were cut to be read nor where they are cut to be shown does half a value stand."""
    value, secret = "Jane-Döe-4711!", "hunter2-hunter3"
    spelled = PLAIN_SPELLINGS[spelling](value)
    pages = "~" * left + f"{spelled} {secret} " * (MAX_READ // len(spelled))
    for words in ("~" * (MAX_SHOWN - 5) + spelled, pages[:MAX_READ]):
        shown = masked(words, [value], Secrets(secret)).lower()
        assert len(shown) <= MAX_SHOWN
        assert not any(piece in shown for piece in ("jan", "jane", "4711", "%4a%61", "\\u004a", "hunter", "&#74;"))


def test_a_sentence_stays_readable() -> None:
    """Only what was sent is taken out of it."""
    words = "Property plan: gold of 'jane.doe@example.org' is wrong"
    assert masked(words, ["jane.doe@example.org", "gold"]) == "Property plan: *** of '***' is wrong"
    assert masked(words, ["pl", "is", ""], NONE) == words


def test_short_secrets_are_masked_as_a_whole() -> None:
    """Under eight characters a piece would be part of too many words; under three, a secret is none."""
    assert masked("secret s3cr7, %73%33cr7, czNjcjc=", (), Secrets("s3cr7")) == "secret ***, ***, ***c="
    assert masked("a is a", (), Secrets("a", "", None)) == "a is a"


def test_a_client_id_is_masked_as_a_whole_only() -> None:
    """Its parts may be words that an error needs."""
    known = Secrets("s3cr3t-s3cr3t", names=["interactions-client"])
    assert masked("interactions-client: no interactions", (), known) == "***: no interactions"


def test_secrets_show_nothing_of_themselves() -> None:
    """Not in a representation, which a traceback might print."""
    assert "hunter" not in repr(Secrets("hunter2-hunter2")) + str(Secrets("hunter2-hunter2"))


def test_secrets_join() -> None:
    """Those of the configuration and the token that was granted later."""
    both = Secrets("hunter2-hunter2") | Secrets("tok-4711-4711")
    assert masked("hunter2-hunter2 tok-4711-4711", (), both) == "*** ***"
    assert both.within("x=%74ok-4711-4711")
    assert not both.within("nothing of it")


@given(st.text(max_size=80))
def test_what_is_visible_moves_nothing(text: str) -> None:
    """No control character, line end, direction mark or zero-width character reaches a terminal."""
    shown = visible(text)
    assert shown.isprintable()
    assert visible(shown) == shown


def test_invisible_characters_leave_a_mark() -> None:
    """So that a reader sees that something stood there."""
    assert visible("a\x1b[31mb\u202ec\r\nd\u200be") == "a\ufffd[31mb\ufffdc d\ufffde"


@given(st.text(max_size=300), st.lists(st.text(max_size=30), max_size=5), st.text(max_size=30))
def test_no_words_are_an_exception(words: str, values: list[str], secret: str) -> None:
    """Whatever characters words, values and secrets hold, surrogates and broken escapes included."""
    assert len(masked(words, values, Secrets(secret))) <= MAX_SHOWN
    assert len(masked(words + "\\ud83d %f &#1114112; \\u12 \ud800", [*values, "\ud800ab"], Secrets(secret))) <= 300
