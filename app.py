"""The demo: shape the spectra of W_Q, W_K, W_V, watch κ and attention change, race models live, audit a checkpoint.

    python app.py                open the demo (GRADIO_SERVER_NAME, GRADIO_SERVER_PORT choose the address)
    python app.py --presets      recompute the races that the page shows without training

All computing and all that is shown is in `spectral_core.demo`, the page and its events in `spectral_core.demo.page`.
"""

from __future__ import annotations

import argparse
import logging
import os

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # no call home, and no wait for one without a network

import torch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", action="store_true", help="recompute the presets' races and leave")
    parser.add_argument("--port", type=int, help="port (default: GRADIO_SERVER_PORT, or the first free from 7860)")
    parser.add_argument("--open", action="store_true", help="open a browser window")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    torch.set_num_threads(1)  # many small matrices: threads inside one operation would only fight
    if options.presets:
        from spectral_core.demo.presets import write_histories

        write_histories()
        return
    from spectral_core.demo.page import build, launch

    launch(build(), server_port=options.port, inbrowser=options.open)


if __name__ == "__main__":
    main()
