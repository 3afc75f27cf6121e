"""Box-wise Inception-v3 with one skip connection against torchvision's own Inception-v3: does a tap cost time?

    python benchmarks/skip_trunk.py [--rounds 3] [--threads 1] [--side 299] [--connection 6]

Both have the same weights; torchvision's net is run as it is, to its classifier, whose pooling and one matrix product
are next to nothing. FLOPs are counted at 555 x 555 on the meta device. A net that computes nothing twice and nothing
above its top layer takes (FLOPs of its trunk and heads) / (FLOPs of torchvision's net) of the time, give or take what
convolutions of other shapes achieve. All variants run in one process in the order A B C C B A; the ratios are of the
smallest times.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
import torchvision
from torch.utils.flop_counter import FlopCounterMode

from segmod.nets.boxwise import BoxwiseInception


def flops(work: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--side", type=int, default=299)
    parser.add_argument("--connection", type=int, default=6)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)

    net = BoxwiseInception(21, connections=options.connection, kernel=7).eval()
    peer = torchvision.models.inception_v3(aux_logits=False, init_weights=False, transform_input=True).eval()
    peer.load_state_dict(net.backbone.state_dict(), strict=False)  # all but the classifier
    variants = {"torchvision": peer, "trunk with a tap": net.backbone, "trunk and heads": net.forward_boxes}
    image = torch.randn(1, 3, options.side, options.side)
    cpu: dict[str, list[float]] = {name: [] for name in variants}
    wall: dict[str, list[float]] = {name: [] for name in variants}
    with torch.no_grad():
        for round_ in range(-1, options.rounds):  # the first one warms up
            for name in [*variants, *reversed(variants)]:
                start = time.process_time(), time.perf_counter()
                variants[name](image)
                if round_ >= 0:
                    cpu[name].append(time.process_time() - start[0])
                    wall[name].append(time.perf_counter() - start[1])

        paper = torch.empty(1, 3, 555, 555, device="meta")
        net, peer = net.to("meta"), peer.to("meta")
        variants = {"torchvision": peer, "trunk with a tap": net.backbone, "trunk and heads": net.forward_boxes}
        at_paper = {name: flops(lambda work=work: work(paper)) for name, work in variants.items()}
        small = torch.empty(1, 3, options.side, options.side, device="meta")
        counted = {name: flops(lambda work=work: work(small)) for name, work in variants.items()}

    print(f"connection {options.connection}, n = 7, {options.threads} thread(s)")
    for name in variants:
        ratios = [numbers[name] / numbers["torchvision"] for numbers in (counted, least(cpu), least(wall))]
        print(
            f"{name:17} {1e-9 * at_paper[name]:7.2f} GFLOP at 555;  "
            f"at {options.side}: {1e-9 * counted[name]:6.2f} GFLOP, "
            f"CPU {min(cpu[name]):.3f} s, wall {min(wall[name]):.3f} s;  against torchvision: "
            "FLOPs {:.3f}, CPU {:.3f}, wall {:.3f}".format(*ratios)
        )


def least(times: dict[str, list[float]]) -> dict[str, float]:
    return {name: min(values) for name, values in times.items()}


if __name__ == "__main__":
    main()
