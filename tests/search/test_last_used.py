"""What was used last is remembered, and made once."""

from holistic_clip_hf.search.last_used import LastUsed


def test_the_value_that_was_not_used_for_longest_is_made_again() -> None:
    remembered, made = LastUsed[str | None](2), list[str]()

    def ask(name: str) -> str | None:
        return remembered.of(name, lambda: made.append(name))

    for name in ("a", "b", "a", "c", "a", "b"):
        ask(name)
    assert made == ["a", "b", "c", "b"]  # a value may be None, and is remembered all the same
    remembered.keep("d", "kept")
    assert ask("d") == "kept" and made == ["a", "b", "c", "b"]
