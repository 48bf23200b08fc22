"""How the page looks."""

from __future__ import annotations

import html
from collections.abc import Sequence

import gradio as gr

from runtime.tasks import TASKS

_DISTANCES = {"depth": "how far things are", "disparity": "how near things are: 1 / depth"}
CSS = """
.gradio-container { max-width: 1520px !important; margin: 0 auto !important; }
#head { padding: 0.4rem 0 0.2rem; }
#head .brand { font-weight: 650; color: var(--primary-600); letter-spacing: 0.01em; }
#head h1 { font-size: 1.75rem; line-height: 1.2; font-weight: 680; margin: 0.15rem 0 0.35rem; }
#head p { margin: 0; color: var(--body-text-color-subdued); }
#slider, #scene, .map { border-radius: var(--radius-lg); overflow: hidden; }
.map .image-frame, .map .image-container { width: 100%; height: 100%; }
.map img { width: 100% !important; height: 100% !important; object-fit: contain; }
#downloads .label-clear-button { display: none; }
#words { padding: 0.2rem 0.3rem; }
#words p { margin: 0 0 0.6rem; line-height: 1.5; }
#words .ran { color: var(--body-text-color-subdued); font-size: 0.92em; margin: 0; }
@media (max-width: 640px) { #head h1 { font-size: 1.4rem; } }
"""


def theme() -> gr.themes.Base:
    """Fonts of the visitor's own system: none are loaded."""
    return gr.themes.Soft(
        primary_hue="teal",
        secondary_hue="teal",
        neutral_hue="slate",
        font=["ui-sans-serif", "system-ui", "sans-serif"],
        font_mono=["ui-monospace", "monospace"],
    )


def title(task: str) -> str:
    """What a map is called here."""
    return "Normals" if TASKS[task].axes else task.capitalize()


def meaning(task: str) -> str:
    """What a map says, for people who never saw one."""
    if TASKS[task].axes:
        return "which way each surface faces: red is right, green is up, blue is towards you"
    if TASKS[task].space is None:
        return TASKS[task].meaning
    return f"{_DISTANCES[str(TASKS[task].space)]}. Red is near. Scale and shift are unknown"


def head_in_html(name: str, tasks: Sequence[str]) -> str:
    """The title, and what the page does in two sentences."""
    first, *others = [title(task) for task in tasks]
    shown = [first, *(name.lower() for name in others)]
    return (
        '<div class="brand">lotus-edge</div>'
        f"<h1>{html.escape(', '.join(shown))} and a 3D scene from one photo</h1>"
        f"<p>Answered by <b>{html.escape(name)}</b>. Your photo goes to this page's own server "
        "alone, and is deleted when you close the page.</p>"
    )
