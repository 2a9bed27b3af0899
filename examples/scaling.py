"""What a training step costs on 1 to 256 accelerators, on paper: see scaling.md.

    python examples/scaling.py
    python examples/scaling.py --parameters=110e6 --examples=32 --compute_ms=120 --decode_rate=1e5

A step on `n` accelerators, each with its share of examples, takes the longest of computing with the
all-reduce behind it, and of reading. A ring all-reduce sends `2 (n - 1) / n` times the gradients
through the slowest link (Patarasuk and Yuan 2009, "Bandwidth optimal all-reduce algorithms").
"""

from dataclasses import dataclass

from absl import app, flags

PARAMETERS = flags.DEFINE_float("parameters", 25.6e6, "That train; 4 bytes of gradient each.")
SHARE = flags.DEFINE_integer("examples", 64, "Examples of one accelerator in a step.")
COMPUTE = flags.DEFINE_float("compute_ms", 24.6, "Forward and backward of these, milliseconds.")
PER_MACHINE = flags.DEFINE_integer("per_machine", 8, "Accelerators in a machine.")
WITHIN = flags.DEFINE_float("within_gb", 200.0, "Gigabytes a second between two in a machine.")
BETWEEN = flags.DEFINE_float("between_gb", 12.5, "Gigabytes a second between two machines.")
LATENCY = flags.DEFINE_float("latency_us", 20.0, "Of a message between machines, microseconds.")
DECODE = flags.DEFINE_float("decode_rate", 18000.0, "Images a second that a machine decodes.")
DECODE_ALL = flags.DEFINE_bool("decode_all", False, "As where images are mixed.")
UNITS = flags.DEFINE_integer("units", 2048, "Features of an image that are kept, 4 bytes each.")


@dataclass(frozen=True)
class Step:
    """What a step costs, in milliseconds.

    Attributes:
        compute: Forward and backward of one accelerator's share.
        all_reduce: Summing the gradients.
        decode: Decoding; each machine decodes what its accelerators take, or with
            `--decode_all` the whole batch.
        examples: Examples of all accelerators.
    """

    compute: float
    all_reduce: float
    decode: float
    examples: int

    @property
    def total(self) -> float:
        """The longer of computing and reading, which run side by side."""
        return max(self.compute + self.all_reduce, self.decode)

    @property
    def first_to_break(self) -> str:
        """What a step waits for: decoding, or the longer of computing and the all-reduce."""
        if self.decode > self.compute + self.all_reduce:
            return "decode"
        return "all-reduce" if self.all_reduce > self.compute else "compute"


def step(accelerators: int) -> Step:
    """Returns the cost of a step on some accelerators, by the flags."""
    n, each = accelerators, PER_MACHINE.value
    size = 4 * PARAMETERS.value
    sent = 2 * (n - 1) / n * size
    link = WITHIN.value if n <= each else min(WITHIN.value, BETWEEN.value)
    hops = 2 * (n - 1) if n > each else 0
    all_reduce = 1e3 * sent / (link * 1e9) + hops * LATENCY.value / 1e3
    examples = SHARE.value * n
    decoded = examples if DECODE_ALL.value else SHARE.value * min(n, each)
    return Step(COMPUTE.value, all_reduce, 1e3 * decoded / DECODE.value, examples)


def main(argv) -> None:
    """Prints the table."""
    del argv
    print("| accelerators | batch | compute ms | all-reduce ms | decode ms | images/s | longest |")
    print("|---|---|---|---|---|---|---|")
    for power in range(9):
        n = 2**power
        cost = step(n)
        print(
            f"| {n} | {cost.examples:,} | {cost.compute:.0f} | {cost.all_reduce:.1f} | "
            f"{cost.decode:.0f} | {1e3 * cost.examples / cost.total:,.0f} | {cost.first_to_break} |"
        )
    print(f"\nfeatures of a million images: {4e6 * UNITS.value / 1e9:.2f} GB")


if __name__ == "__main__":
    app.run(main)
