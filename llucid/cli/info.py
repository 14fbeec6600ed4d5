"""llucid info."""

from dataclasses import dataclass

from llucid.cli.arguments import positional


@dataclass(frozen=True, kw_only=True)
class Info:
    """Describe a model: format, sizes, parameters, bytes, tokenizer. Reads no weights."""

    model: str = positional("MODEL")
    """A run, a Hugging Face folder or repository, a folder of Meta's, a .bin of llama2.c's, a .gguf, or storyteller."""

    def run(self) -> None:
        from llucid.checkpoints import describe

        facts = describe(self.model)
        width = max(map(len, facts))
        for name, fact in facts.items():
            print(f"{name:<{width}}  {fact}")
