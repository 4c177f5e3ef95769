#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Plots of bench.json, as PNG and SVG beside it.

usage: plots.py OUT
"""

import json
import sys

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402 - the backend comes first

C, RUST = "#8a8f98", "#c4562a"
LABELS = {
    "fault_seq": "fault, sequential", "fault_rand": "fault, random", "prefault": "prefault",
    "init_mem": "INIT_MEM_REGION", "zap_1": "zap, 1 page", "zap_8": "zap, 8", "zap_512": "zap, 512",
    "zap_idle_512": "zap, 512, idle", "hole_512": "hole, 512, idle", "memslot": "memslot delete",
    "teardown": "teardown", "convert_64m": "convert, 64 MiB",
}


def style(axes):
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)


def save(figure, out, name):
    figure.tight_layout()
    figure.savefig(f"{out}/{name}.png", dpi=160)
    figure.savefig(f"{out}/{name}.svg")
    plt.close(figure)


def operations(data, out):
    """Ticks of an operation, both mirrors, relative to KVM's own."""
    names = [name for name in LABELS if name in data]
    figure, axes = plt.subplots(figsize=(8, 3.6))
    style(axes)
    for n, name in enumerate(names):
        scale = data[name]["c"]["ticks_per_op"]
        for key, colour, left in (("c", C, -0.2), ("rust", RUST, 0.2)):
            f = data[name][key]
            value = f["ticks_per_op"]
            axes.bar(n + left, value / scale, 0.38, color=colour,
                     yerr=[[max(0, value - f["low"]) / scale], [max(0, f["high"] - value) / scale]],
                     error_kw={"elinewidth": 0.8})
        axes.text(n + 0.2, data[name]["ratio"] + 0.02, f"{data[name]['ratio']:.2f}", ha="center", fontsize=8)
    axes.set_xticks(range(len(names)), [LABELS[name] for name in names], rotation=35, ha="right", fontsize=8)
    axes.set_ylabel("instructions, without SEAMCALLs\n(KVM's mirror = 1)", fontsize=8)
    axes.bar(0, 0, color=C, label="KVM's mirror (C)")
    axes.bar(0, 0, color=RUST, label="tdx_mirror (Rust)")
    axes.legend(frameon=False, fontsize=8, ncols=2, loc="upper right")
    axes.set_ylim(0, max([1.25] + [data[name]["ratio"] * 1.1 for name in names]))
    save(figure, out, "operations")


def growth(data, out):
    """Ticks per page against size."""
    titles = {"prefault": "prefault", "zap": "zap", "teardown": "teardown"}
    whats = [what for what in titles if what in data["growth"]]
    figure, all_axes = plt.subplots(1, len(whats), figsize=(8, 2.8), squeeze=False)
    for axes, what in zip(all_axes[0], whats):
        style(axes)
        sizes = [int(mib) for mib in data["growth"][what]]
        for key, colour, label in (("c", C, "C"), ("rust", RUST, "Rust")):
            axes.plot(sizes, [f[key] for f in data["growth"][what].values()], "o-", color=colour, label=label,
                      linewidth=1.4, markersize=4)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xticks(sizes, [f"{mib}" if mib < 1024 else "1024" for mib in sizes], fontsize=7)
        axes.tick_params(axis="y", labelsize=7)
        axes.set_title(titles[what], fontsize=9)
        axes.set_xlabel("MiB", fontsize=8)
    all_axes[0][0].set_ylabel("instructions per page", fontsize=8)
    all_axes[0][0].legend(frameon=False, fontsize=8)
    save(figure, out, "growth")


def calls(data, out):
    """SEAMCALLs, TRACKs and kicks of zaps."""
    names = [name for name in ("zap_idle_1", "zap_idle_8", "zap_idle_512", "zap_idle_16384") if name in data]
    figure, all_axes = plt.subplots(1, 3, figsize=(8, 2.6))
    for axes, what, title in zip(all_axes, ("seamcalls", "tracks", "kicks"), ("SEAMCALLs", "TRACKs", "kicks")):
        style(axes)
        for n, name in enumerate(names):
            for key, colour, left in (("c", C, -0.2), ("rust", RUST, 0.2)):
                axes.bar(n + left, data[name][key].get(what, 0), 0.38, color=colour)
        axes.set_yscale("symlog", linthresh=1)
        axes.set_xticks(range(len(names)), [name[9:] for name in names], fontsize=8)
        axes.tick_params(axis="y", labelsize=7)
        axes.set_title(title, fontsize=9)
        axes.set_xlabel("pages zapped", fontsize=8)
    save(figure, out, "calls")


def main(argv):
    if len(argv) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    with open(f"{argv[1]}/bench.json", encoding="utf-8") as file:
        data = json.load(file)
    plt.rcParams["svg.hashsalt"] = "tdx-mirror"
    operations(data, argv[1])
    growth(data, argv[1])
    calls(data, argv[1])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
