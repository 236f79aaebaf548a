"""Size of PNG sub-images and the time to write and read them, by level, filters and strategy, as a Markdown table.

    python benchmarks/png_compression.py --photographs DF2K/train

On one thread, from memory to memory. MB are of pixels; size is a part of them.
"""

import argparse
import sys
import time
from itertools import product
from pathlib import Path

import cv2

sys.path.insert(0, str(Path(__file__).parents[1]))  # run as a script, from anywhere

from sed_sr.data.images import list_images, read_unchanged
from sed_sr.options.cli import run

TILE_PX = 480
REPEATS = 3  # the fastest counts
FILTERS = {
    "all": cv2.IMWRITE_PNG_ALL_FILTERS,
    "none, sub, up": cv2.IMWRITE_PNG_FAST_FILTERS,
    "up": cv2.IMWRITE_PNG_FILTER_UP,
    "average": cv2.IMWRITE_PNG_FILTER_AVG,
    "paeth": cv2.IMWRITE_PNG_FILTER_PAETH,
}
STRATEGIES = {
    "default": cv2.IMWRITE_PNG_STRATEGY_DEFAULT,
    "filtered": cv2.IMWRITE_PNG_STRATEGY_FILTERED,
    "Huffman": cv2.IMWRITE_PNG_STRATEGY_HUFFMAN_ONLY,
    "RLE": cv2.IMWRITE_PNG_STRATEGY_RLE,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photographs", type=Path, required=True, help="folder of images without JPEG's traces")
    parser.add_argument("--tiles", type=int, default=20, help="how many images, of each the upper left corner (20)")
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    paths = list_images(arguments.photographs)[: arguments.tiles]
    tiles = [read_unchanged(path)[:TILE_PX, :TILE_PX] for path in paths]
    pixels_mb = sum(tile.nbytes for tile in tiles) / 1e6
    ways = [*product(range(10), ("all", "none, sub, up"), ("default",))]
    ways += [*product((1,), ("up", "average", "paeth"), ("default",)), *product((1, 6), ("all",), ("filtered",))]
    ways += [*product((1,), ("all", "none, sub, up"), ("Huffman", "RLE"))]
    print("| level | filters | strategy | size | write (MB/s) | read (MB/s) |\n|--:|---|---|--:|--:|--:|")
    for level, filters, strategy in ways:
        how = [cv2.IMWRITE_PNG_COMPRESSION, level, cv2.IMWRITE_PNG_FILTER, FILTERS[filters]]
        how += [cv2.IMWRITE_PNG_STRATEGY, STRATEGIES[strategy]]
        write_s, read_s = float("inf"), float("inf")
        for _ in range(REPEATS):
            start_s = time.perf_counter()
            encoded = [cv2.imencode(".png", tile, how)[1] for tile in tiles]
            written_s = time.perf_counter()
            for file in encoded:
                cv2.imdecode(file, cv2.IMREAD_UNCHANGED)
            write_s = min(write_s, written_s - start_s)
            read_s = min(read_s, time.perf_counter() - written_s)
        size = sum(map(len, encoded)) / 1e6 / pixels_mb
        rates = f"{pixels_mb / write_s:.0f} | {pixels_mb / read_s:.0f}"
        print(f"| {level} | {filters} | {strategy} | {size:.3f} | {rates} |", flush=True)
    return 0


if __name__ == "__main__":
    run(main)
