"""Text of tokens as they come: whole letters only, and nothing from a stop string on."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from modelium.managers.ray.models.modelium_served.text import Text

TEXTS = st.text(st.sampled_from("abé€😀 "), max_size=20)


def decode(tokens: list[int]) -> str:
    """A token a byte: letters of several bytes come in parts."""
    return bytes(tokens).decode(errors="replace")


def said(whole: bytes, stops: list[str]) -> tuple[list[str], Text]:
    """The pieces that a client sees; tokens after the end are not made."""
    text, pieces = Text(decode, stops), []
    for token in whole:
        pieces.append(text.add(token))
        if text.stopped:
            break
    return [*pieces, text.rest()], text


@given(TEXTS, st.lists(st.text(st.sampled_from("abé"), min_size=1, max_size=3), max_size=3))
def test_pieces_are_the_text_before_the_first_stop(whole: str, stops: list[str]) -> None:
    pieces, text = said(whole.encode(), stops)
    ends = [(at, stop) for stop in stops if (at := whole.find(stop)) >= 0]
    assert text.stopped == bool(ends)
    # What is found first is the stop that is complete first.
    done = min((at + len(stop) for at, stop in ends), default=len(whole))
    begins = [whole[:done].find(stop) for stop in stops if stop in whole[:done]]
    assert "".join(pieces) == whole[: min(begins, default=done)]


@given(TEXTS)
def test_without_stops_each_letter_is_given_when_its_last_byte_has_come(whole: str) -> None:
    text = Text(decode)
    for letter in whole:
        *parts, last = letter.encode()
        assert [text.add(part) for part in parts] == [""] * len(parts)
        assert text.add(last) == letter
    assert (text.rest(), text.tokens) == ("", len(whole.encode()))


def test_a_letter_that_is_never_complete_comes_at_the_end() -> None:
    pieces, _ = said("a€".encode()[:-1], [])
    assert pieces[:1] == ["a"]
    assert "".join(pieces) == "a\ufffd"


def test_no_more_is_held_back_than_a_stop_may_need() -> None:
    text = Text(decode, ["xyz"])
    assert [text.add(byte) for byte in b"abcd"] == ["", "", "a", "b"]
    assert text.rest() == "cd"
    assert Text(decode, [""]).add(97) == "a", "an empty stop is none"
