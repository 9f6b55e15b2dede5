"""Films and their files: GIF by Pillow, MP4 by ffmpeg."""

import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.animation import FFMpegWriter, FuncAnimation, PillowWriter
from matplotlib.figure import Figure
from PIL import Image
from tqdm import tqdm

from .._errors import UsageError
from .._files import check_film, replacing

COLORS = 128
"""The colours of a GIF. With fewer than 256, one is left for what a frame does not change, so the file is small."""

BYTES = np.array([1, 256, 65536], np.uint32)
"""The places of red, green and blue in one number."""

HOLD = 1500
"""The milliseconds that a film rests on its last frame."""

GIF_DPI, MP4_DPI = 100, 200


class Film(FuncAnimation):
    """A film of a run. `fc.plot.save` writes it to a file, and its method `to_jshtml` gives a player for notebooks."""

    def __init__(self, figure: Figure, draw: Callable[[int], Any], frames: Sequence[int], fps: int):
        super().__init__(
            figure, draw, frames=frames, interval=round(1000 / fps), repeat_delay=HOLD, cache_frame_data=False
        )
        self.figure, self.fps, self.num_frames = figure, fps, len(frames)

    def __del__(self) -> None:
        """Matplotlib would warn of a film that was never played, although its figure shows the end of the run."""


class SmallGif(PillowWriter):
    """Writes all frames with the colours that occur most and without dithering, so that a frame stores its changes."""

    def finish(self) -> None:
        frames: list[Image.Image] = self._frames  # pyright: ignore[reportAttributeAccessIssue]
        pixels = [np.asarray(frame.convert("RGB"), np.uint32) @ BYTES for frame in frames]
        seen, times = np.unique(np.concatenate([np.unique(one) for one in pixels]), return_counts=True)
        for one in pixels:
            found, often = np.unique(one, return_counts=True)
            times[np.searchsorted(seen, found)] += often
        parts = (seen[:, None] // BYTES % 256).astype(np.int64)
        palette = parts[np.argsort(-times, kind="stable")[:COLORS]]
        nearest = np.stack([((one - palette) ** 2).sum(axis=1).argmin() for one in parts]).astype(np.uint8)
        few = [Image.fromarray(nearest[np.searchsorted(seen, one)]) for one in pixels]
        for one in few:
            one.putpalette(palette.astype(np.uint8).tobytes())
        length = round(1000 / self.fps)
        options = {"save_all": True, "append_images": few[1:], "duration": [*[length] * (len(few) - 1), length + HOLD]}
        few[0].save(self.outfile, format="GIF", optimize=True, disposal=1, loop=0, **options)


def write_film(film: Film, file: Path, *, progress: bool = False) -> None:
    """Write a film as GIF or MP4, chosen by the file's suffix, completely or not at all, with a progress bar if wanted.

    Raises:
        UsageError: for another suffix, an MP4 without ffmpeg, or a file that cannot be written.
    """
    check_film(file)
    bar = tqdm(total=film.num_frames, desc="frames", disable=not progress)
    options: dict[str, Any] = {"progress_callback": lambda frame, total: bar.update()}
    with bar, replacing(file) as part:
        if file.suffix.lower() == ".gif":
            film.save(part, writer=SmallGif(film.fps), dpi=GIF_DPI, **options)
            return
        try:
            rest = f"tpad=stop_mode=clone:stop_duration={HOLD}ms"
            writer = FFMpegWriter(film.fps, codec="h264", extra_args=["-vf", rest, "-f", "mp4", "-pix_fmt", "yuv420p"])
            film.save(part, writer=writer, dpi=MP4_DPI, **options)
        except subprocess.CalledProcessError as error:
            if isinstance(error.__context__, KeyboardInterrupt):  # Ctrl-C ends ffmpeg too
                raise KeyboardInterrupt from None
            told = f"ffmpeg could not write {file}, it ended with code {error.returncode}"
            raise UsageError(f"{told}: end the name in .gif, or try another ffmpeg.") from None
