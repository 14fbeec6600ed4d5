"""llucid bench."""

import json
from dataclasses import dataclass
from typing import Literal

from llucid.cli.arguments import positional
from llucid.errors import PRINTABLE


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Measure loading, prefill, decoding and training. Each is compared with what this machine could do at most."""

    model: str | None = positional("[MODEL]", None)
    """Path of a model (default: random weights of --preset)."""
    preset: str = "stories42M"  # large enough for the memory to matter, and done in half a minute
    """Size of the random model."""
    json: bool = False
    """Print JSON instead of a table."""
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Compute in this precision (default: as the file is, quantised or not; float32 for a random model)."""
    device: str | None = None
    """cpu, cuda, mps, ... (default: the fastest one here)"""

    def run(self) -> None:
        """Prints a table of what was measured, until Ctrl-C if there is one, or JSON."""
        from rich.console import Console

        from llucid import bench
        from llucid.checkpoints import choose_device, choose_dtype
        from llucid.native.step import prefetching

        device, rows = choose_device(self.device), list[bench.Row]()
        with Console(stderr=True).status("starting") as status:
            try:
                for row in bench.measure(self.model, self.preset, device, choose_dtype(self.dtype), status.update):
                    rows.append(row)
            except KeyboardInterrupt:
                if self.json or not rows:
                    raise
        name, on = self.model or f"random weights, {self.preset}", bench.machine(device)
        distances = prefetching()
        if self.json:
            figures = {"model": name, "machine": on, "prefetching": distances, "rows": [row.json() for row in rows]}
            print(json.dumps(figures, indent=2))
        else:
            print(f"{name} on {on}".translate(PRINTABLE))
            Console().print(bench.table(rows), highlight=False)
            for form, distance in distances.items():
                print(f"llama.c prefetches {form} weights {distance:,} bytes ahead, the fastest here")
