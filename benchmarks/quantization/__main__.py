"""A part of the benchmark, printed and not kept.

python -m benchmarks.quantization --model demo --tool llmbuild --tool modelopt --method awq
python -m benchmarks.quantization --small --limit 120        every runner once, on small models
"""

from __future__ import annotations

import argparse

from benchmarks.__main__ import table
from benchmarks.quantization.cases import DEEP, DEMO, OURS, OUTLIERS, PEERS, WIDE, Case
from benchmarks.quantization.driver import LIMIT, USUAL, measure
from benchmarks.quantization.inputs import Sizes

_MODELS = {"demo": (DEMO, OUTLIERS), "wide": (WIDE, DEEP)}


def main() -> None:
    """Run what the options name; print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=_MODELS, action="append")
    parser.add_argument("--tool", choices=(OURS, *PEERS), action="append")
    parser.add_argument("--method", action="append", help="awq, gptq, awq_gptq, fp8, int8_sq")
    parser.add_argument("--group", type=int, action="append")
    parser.add_argument("--limit", type=float, default=LIMIT, metavar="S", help="stop a run after S seconds")
    parser.add_argument("--demo", type=_size, default=USUAL.demo, metavar="NxS", help="its calibration")
    parser.add_argument("--wide", type=_size, default=USUAL.wide, metavar="NxS", help="that of random models")
    parser.add_argument("--heldout", type=int, metavar="N", help="judge quality on N windows")
    parser.add_argument(
        "--dtype", choices=("auto", "bfloat16", "float32"), default="auto", help="of the peers"
    )
    parser.add_argument("--small", action="store_true", help="small random models in place of the 8B shape")
    parser.add_argument("--resume", action="store_true", help="measure kill -9 and resume, too")
    args = parser.parse_args()
    models = [name for key in args.model or _MODELS for name in _MODELS[key]]

    def wanted(case: Case) -> bool:
        return (
            case.model in models
            and (args.tool is None or case.tool in args.tool)
            and (args.method is None or case.method in args.method)
            and (args.group is None or case.group_size in (0, *args.group))
        )

    sizes = Sizes(args.demo, args.wide, small=args.small, heldout=args.heldout)
    found = measure(sizes, args.limit, wanted, resume=args.resume, dtype=args.dtype)
    kept = found.pop("rows")
    print("\n".join(f"- {key}: {value}" for key, value in found.items()))
    if kept:
        print("\n" + table(kept))


def _size(text: str) -> tuple[int, int]:
    samples, _, length = text.partition("x")
    return int(samples), int(length)


if __name__ == "__main__":
    main()
