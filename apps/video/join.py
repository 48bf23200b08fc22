"""From the films of the chunks to one, with the true times and the sound. Nothing is encoded
again.
"""

from __future__ import annotations

import heapq
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from apps.video.forms import TICK, segment
from apps.video.packets import open_film, readable
from apps.video.source import Choice, Source
from apps.video.work import Records, Work
from runtime.errors import OutputError
from runtime.files import ending

_FORMATS = {".mp4": "mp4", ".mov": "mov", ".mkv": "matroska"}


@dataclass(frozen=True, kw_only=True)
class Joined:
    """`sound`: how many sound tracks were taken over; `notes`: what of them could not be."""

    sound: int
    notes: list[str]


def join(work: Work, records: Records, source: Source, choice: Choice, output: Path) -> Joined:
    """Write the film `output`, whole or not at all.

    Times are those of the source, from the first frame on where `choice` starts later than the
    source. Raises: OutputError.
    """
    import av

    partial = work.folder / f"joined{ending(output)}.partial"
    shift = int(records.pts[0]) if choice.start else 0
    notes: list[str] = []
    try:
        with av.open(
            str(partial),
            "w",
            format=_FORMATS[ending(output).lower()],
            options={"fflags": "+bitexact"},
        ) as container:
            films = _films(work, records, shift, source.time_base)
            first = next(films)
            stream = container.add_stream_from_template(first.stream)
            stream.time_base = source.time_base
            sounds = _sounds(container, source, choice, shift, notes)
            both = heapq.merge([first], films, sounds, key=lambda each: each.time)
            tracks = set()
            for each in both:
                if each.target is not None:
                    tracks.add(each.target.index)
                each.packet.stream = stream if each.target is None else each.target
                container.mux(each.packet)
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        output.parent.mkdir(parents=True, exist_ok=True)
        partial.replace(output)
    except (av.FFmpegError, OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OutputError(f"cannot write {output}: {reason}") from error
    return Joined(sound=len(tracks), notes=notes)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Packet:
    """At a time in seconds; `target` is the sound track it goes to, None for the film."""

    time: float
    packet: Any
    stream: Any
    target: Any = None


def _films(work: Work, records: Records, shift: int, time_base: Fraction) -> Iterator[_Packet]:
    """The packets of the chunks' films, with the true times."""
    import av

    done = 0
    pts = [int(each) - shift for each in records.pts]
    ends = [
        *pts[1:],
        pts[-1] + (pts[-1] - pts[-2] if len(pts) > 1 else round(1 / (25 * time_base))),
    ]
    for chunk in range(work.chunks("done")):
        with av.open(str(segment(work.folder, chunk))) as container:
            stream = container.streams.video[0]
            count = 0
            for packet in container.demux(stream):
                if packet.pts is None:
                    continue
                number = done + round(float(packet.pts * packet.time_base) * 1000 / TICK)
                packet.time_base = time_base
                packet.pts = packet.dts = pts[number]
                packet.duration = max(1, ends[number] - pts[number])
                yield _Packet(time=float(pts[number] * time_base), packet=packet, stream=stream)
                count += 1
            done += count


def _sounds(
    container: Any, source: Source, choice: Choice, shift: int, notes: list[str]
) -> Iterator[_Packet]:
    """The packets of the source's sound that lie in what was chosen."""
    import av

    if source.path is None:
        return iter(())
    given = open_film(str(source.path))
    targets = {}
    for sound in given.streams.audio:
        codec = "unknown" if sound.codec_context is None else sound.codec_context.name
        try:
            # Asked beforehand: a container that refuses a track is of no use any more.
            if codec not in container.supported_codecs:
                raise ValueError(f"{container.format.name} has no place for it")
            targets[sound.index] = container.add_stream_from_template(sound)
        except (av.FFmpegError, ValueError, AttributeError) as error:
            notes.append(f"the sound ({codec}) is left out: {error}")
    if not targets:
        given.close()
        return iter(())
    return _sound_packets(given, targets, source, choice, shift, notes)


def _sound_packets(
    given: Any,
    targets: dict[int, Any],
    source: Source,
    choice: Choice,
    shift: int,
    notes: list[str],
) -> Iterator[_Packet]:
    begin = float(shift * source.time_base)
    last = dict.fromkeys(targets, -math.inf)
    with given:
        packets = given.demux([given.streams[index] for index in targets])
        for packet in readable(packets, notes, "the sound"):
            if packet.pts is None or packet.dts is None:
                continue
            time, index = float(packet.dts * packet.time_base), packet.stream.index
            if choice.ends(time - source.begin):
                break
            if time < last[index]:  # where the picture goes on then is not known here
                ends = last[index] - begin
                notes.append(f"the sound ends at {ends:.1f} s: its time stamps jump back there")
                break
            last[index] = time
            if choice.start and time < begin:
                continue
            moved = round(begin / packet.time_base)
            packet.pts, packet.dts = packet.pts - moved, packet.dts - moved
            target = targets[index]
            yield _Packet(time=time - begin, packet=packet, stream=None, target=target)
