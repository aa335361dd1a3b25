"""What is said on the way: odd but usable input, and what is done with it."""


def say(text: str) -> None:
    """Says a line on standard output, at once."""
    print(text, flush=True)
