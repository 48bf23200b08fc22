"""The page, by Gradio. Everything it loads comes from this server."""

from __future__ import annotations

import contextlib
import html
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from apps.web.look import CSS, head_in_html, meaning, theme, title
from apps.web.studio import Photo, Scene, Studio, colors
from apps.web.visitors import Visitors
from runtime.camera import ASSUMED_FOV
from runtime.console import one_line, say
from runtime.errors import ImageError, LotusError
from runtime.geometry import EDGE
from runtime.tasks import TASKS

_HIGHEST = 430  # pixels of a picture on the page
_HEIGHT = f"min({_HIGHEST}px, 88vw)"
_VIEW = (90, 80)  # degrees around, degrees down from the top: from where the camera stood
_BACK = 1.35  # times its distance: the viewer's lens is longer than most cameras'
_EMPTY = "<p>Give a photo: what the values mean, and what ran, appears here.</p>"


def create_page(
    studio: Studio, visitors: Visitors, name: str, examples: Sequence[Path], queue: int
) -> gr.Blocks:
    """The page for what `studio` answers. `queue` visitors may wait."""
    with gr.Blocks(title=f"{name} - lotus-edge", analytics_enabled=False, fill_width=True) as page:
        gr.HTML(head_in_html(name, studio.tasks), elem_id="head")
        with gr.Row(elem_id="all"):
            with gr.Column(scale=1, min_width=300, elem_id="left"):
                inputs = _inputs(studio, examples)
            with gr.Column(scale=3, min_width=320, elem_id="right"):
                outputs = _outputs(studio)
        _connect(studio, visitors, inputs, outputs)

        def leave(request: gr.Request) -> None:
            visitors.leave(str(request.session_hash))

        page.unload(leave)
    page.queue(max_size=queue, default_concurrency_limit=1)
    return page


def launch(page: gr.Blocks, host: str, port: int, max_bytes: int) -> str:
    """Serve the page in threads of its own. Returns its address."""
    _, url, _ = page.launch(
        server_name=host,
        server_port=port,
        prevent_thread_lock=True,
        quiet=True,
        share=False,
        show_error=True,
        max_file_size=max_bytes,
        ssr_mode=False,
        run_history=False,
        footer_links=[],
        theme=theme(),
        css=CSS,
    )
    return str(url)


def _inputs(studio: Studio, examples: Sequence[Path]) -> dict[str, Any]:
    photo = gr.Image(
        label="Photo",
        type="filepath",
        image_mode=None,
        sources=["upload", "webcam", "clipboard"],
        height=250,
        elem_id="photo",
    )
    # The file as it came, EXIF and all: Gradio would open it with any decoder that Pillow has.
    photo.preprocess = lambda payload: None if payload is None else payload.path
    if examples:
        gr.Examples([str(path) for path in examples], photo, label="Or try one of these")
    fov = gr.Slider(
        20,
        120,
        value=ASSUMED_FOV,
        step=1,
        label="Field of view, degrees",
        elem_id="fov",
        info="across the longer edge; read from the photo where it says it",
    )
    edge = gr.Slider(
        0.01,
        0.2,
        value=EDGE,
        step=0.01,
        label="Edges of the scene",
        elem_id="edge",
        info="a larger jump in depth is a gap",
    )
    seed = gr.Number(
        value=None,
        precision=0,
        minimum=0,
        label="Seed",
        elem_id="seed",
        visible=studio.takes_seed,
        info="another seed, another answer that fits the photo",
    )
    return {"photo": photo, "fov": fov, "edge": edge, "seed": seed}


def _outputs(studio: Studio) -> dict[str, Any]:
    first, *others = _shown(studio)
    with gr.Row(equal_height=True):
        slider = gr.ImageSlider(
            label=f"Photo / {first}",
            format="png",
            height=_HEIGHT,
            max_height=_HIGHEST,
            interactive=False,
            min_width=320,
            elem_id="slider",
            buttons=["fullscreen"],
        )
        model = gr.Model3D(
            label="3D scene",
            height=_HEIGHT,
            min_width=320,
            interactive=False,
            clear_color=(0.93, 0.94, 0.95, 1.0),
            elem_id="scene",
        )
    with gr.Row():
        maps = {
            task: gr.Image(
                label=title(task),
                format="png",
                height=_HEIGHT,
                interactive=False,
                min_width=320,
                elem_id=task,
                elem_classes=["map"],
                buttons=["fullscreen"],
            )
            for task in others
        }
        with gr.Column(min_width=320):
            words = gr.HTML(_EMPTY, elem_id="words")
            downloads = gr.Files(
                label="Downloads", interactive=False, height=260, elem_id="downloads"
            )
    return {"slider": slider, "scene": model, **maps, "words": words, "downloads": downloads}


def _connect(
    studio: Studio, visitors: Visitors, inputs: dict[str, Any], outputs: dict[str, Any]
) -> None:
    photo, fov, edge, seed = (inputs[name] for name in ("photo", "fov", "edge", "seed"))
    first, *others = _shown(studio)
    maps = [outputs[task] for task in others]
    of_scene = [outputs["scene"], outputs["words"], outputs["downloads"]]

    def see(path: str | None, seed: float | None, edge: float, request: gr.Request) -> list[Any]:
        session = str(request.session_hash)
        if path is None:
            visitors.leave(session)
            return [None, *[None for _ in maps], None, _EMPTY, None, gr.skip()]
        with _told():
            seen = studio.see(Path(path), None if seed is None else int(seed))
            visit = visitors.come(session, seen, Path(path))
            scene = studio.build(seen, visitors.scene_folder(visit), None, edge)
        pair = [
            _picture(visit.folder / "left.png", seen.rgb),
            _picture(visit.folder / "right.png", colors(seen, first)),
        ]
        pictures = [_picture(visit.folder / f"{task}.png", colors(seen, task)) for task in others]
        return [pair, *pictures, *_of(scene, seen), round(scene.fov)]

    def again(fov: float, edge: float, request: gr.Request) -> list[Any]:
        session = str(request.session_hash)
        visit = visitors.get(session)
        if visit is None:
            return [gr.skip()] * 3
        with _told():
            folder = visitors.scene_folder(visit)
            return _of(studio.build(visit.photo, folder, fov, edge), visit.photo)

    settings = {"concurrency_id": "studio", "api_visibility": "private"}
    gr.on(
        [photo.change, seed.change],
        see,
        [photo, seed, edge],
        [outputs["slider"], *maps, *of_scene, fov],
        show_progress_on=[outputs["slider"], *maps, outputs["scene"]],
        **settings,
    )
    gr.on(
        [fov.release, edge.release],
        again,
        [fov, edge],
        of_scene,
        show_progress_on=[outputs["scene"]],
        **settings,
    )


def _of(scene: Scene, photo: Photo) -> list[Any]:
    """The outputs of a scene: the model, the words, the downloads."""
    glb = None if scene.glb is None else str(scene.glb)
    view = (*_VIEW, _BACK * scene.distance)
    return [
        gr.Model3D(glb, camera_position=view),
        _words(photo, scene),
        [str(path) for path in scene.downloads],
    ]


def _picture(path: Path, rgb: NDArray[np.uint8]) -> str:
    Image.fromarray(rgb).save(path)
    return str(path)


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """What goes wrong is said to the visitor, in words."""
    try:
        yield
    except ImageError as error:
        raise _shown_error("This picture cannot be used", str(error)) from error
    except LotusError as error:
        say(one_line(f"error: {error}"))
        raise _shown_error("That did not work", str(error)) from error


def _shown_error(title: str, message: str) -> gr.Error:
    message = html.escape(f"{message[:1].upper()}{message[1:]}.")
    return gr.Error(message, title=title, duration=None, print_exception=False)


def _shown(studio: Studio) -> list[str]:
    """The tasks as the page has them: first what the slider shows, which is best a distance."""
    return sorted(studio.tasks, key=lambda task: TASKS[task].space is None)


def _words(photo: Photo, scene: Scene) -> str:
    """What the values mean, and what ran."""
    height, width = photo.rgb.shape[:2]
    lines = [
        f'<b title="{html.escape(TASKS[task].meaning)}">{title(task)}</b>: '
        f"{html.escape(meaning(task))}."
        for task in photo.values
    ]
    lines.append(f"<b>3D scene</b>: {html.escape(scene.words)}")
    if (width, height) != photo.size:
        lines.append(f"The photo of {photo.size[0]}x{photo.size[1]} was made {width}x{height}.")
    if photo.note:
        lines.append(html.escape(f"About the file: {photo.note}."))
    engines = "<br>".join(html.escape(engine) for engine in photo.engines)
    return "".join(f"<p>{line}</p>" for line in lines) + f'<p class="ran">{engines}</p>'
