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
from functools import partial

import torch
import torchvision

from segmod.measure import flops, in_turns
from segmod.nets.boxwise import BoxwiseInception


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
    with torch.no_grad():
        times = in_turns({name: partial(work, image) for name, work in variants.items()}, options.rounds)
        paper = torch.empty(1, 3, 555, 555, device="meta")
        net, peer = net.to("meta"), peer.to("meta")
        variants = {"torchvision": peer, "trunk with a tap": net.backbone, "trunk and heads": net.forward_boxes}
        at_paper = {name: flops(partial(work, paper)) for name, work in variants.items()}
        small = torch.empty(1, 3, options.side, options.side, device="meta")
        counted = {name: flops(partial(work, small)) for name, work in variants.items()}

    print(f"connection {options.connection}, n = 7, {options.threads} thread(s)")
    for name, (wall, cpu) in times.items():
        base = times["torchvision"]
        ratios = counted[name] / counted["torchvision"], cpu / base[1], wall / base[0]
        print(
            f"{name:17} {1e-9 * at_paper[name]:7.2f} GFLOP at 555;  "
            f"at {options.side}: {1e-9 * counted[name]:6.2f} GFLOP, "
            f"CPU {cpu:.3f} s, wall {wall:.3f} s;  against torchvision: "
            "FLOPs {:.3f}, CPU {:.3f}, wall {:.3f}".format(*ratios)
        )


if __name__ == "__main__":
    main()
