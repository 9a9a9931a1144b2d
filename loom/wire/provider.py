"""Where models live: one server that speaks a dialect, as `providers:` in config.yml names it."""

from __future__ import annotations

from loom.wire.chat import Usage
from loom.wire.record import record


@record
class Price:
    """What tokens cost, in USD a million. `cached`: input the provider had kept; None: as other input."""

    input: float
    output: float
    cached: float | None = None

    def usd(self, usage: Usage) -> float:
        """What this many tokens cost."""
        cached = self.input if self.cached is None else self.cached
        fresh = max(0, usage.input_tokens - usage.cached_tokens)
        return (fresh * self.input + usage.cached_tokens * cached + usage.output_tokens * self.output) / 1e6


@record
class Provider:
    """One model server. Holds no key, only where to find it: a record may be printed and logged.

    alias        the name before the slash of a model's name; overriding `openai`, `openrouter` or `ollama` is fine
    dialect      how the server is spoken to: "openai", "anthropic", "ollama"; '' keeps that of the built-in provider
    base_url     up to and including the version, e.g. http://10.0.0.5:8000/v1; '' keeps the built-in one
    key          name of the secret; '' when the server wants none. The secret `openai` is looked for in the
                 variable OPENAI_API_KEY, then in key_file, key_command and the secret store
    key_file     a file that holds the key and nothing else
    key_command  argument list of a program that prints the key
    context      tokens that a request and its answer may have together; None: as the server has it
    price        what its tokens cost; None: nobody said
    slots        how many requests may be in flight at once, over all processes; None: no limit
    rpm, tpm     requests and tokens a minute, over all processes; None: no limit
    """

    alias: str
    dialect: str
    base_url: str
    key: str = ""
    key_file: str = ""
    key_command: tuple[str, ...] = ()
    context: int | None = None
    price: Price | None = None
    slots: int | None = None
    rpm: int | None = None
    tpm: int | None = None
