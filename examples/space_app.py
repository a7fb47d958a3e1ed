"""The app.py of a Hub Space: the whole demo in Gradio. The Space's requirements.txt says `unmask[gradio]`."""

from __future__ import annotations

import unmask
from unmask.demo.gradio_app import look, make_gradio

demo = make_gradio(unmask.load("nano-llada"))

if __name__ == "__main__":
    demo.launch(**look())
