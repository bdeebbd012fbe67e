"""Layout of a procedural scene, in world units of about a metre (one pixel at zoom 1).

Nothing here depends on the crop or on the kind of channel. Those two facts are drawn separately, and only the
farmyard and the head of the channel show them.
"""

from dataclasses import dataclass

import numpy as np

FARMYARD_RADIUS = 30.0
HEAD_RADIUS = 36.0


@dataclass(frozen=True)
class Course:
    """A road or channel that winds about a straight axis.

    The axis starts at `(x, y)` and points along `angle` (radians). `bends` holds the amplitude, wavelength
    and phase of the sine waves that move the centre line to the left and right of the axis.
    """

    x: float
    y: float
    angle: float
    width: float
    bends: tuple[tuple[float, float, float], ...]

    def sway(self, along: np.ndarray) -> np.ndarray:
        """Return the offset of the centre line from the axis; zero at the start."""
        sway = np.zeros_like(along, dtype=np.float64)
        for amplitude, wavelength, phase in self.bends:
            wave = 2 * np.pi * along / wavelength + phase
            sway += amplitude * (np.sin(wave) - np.sin(phase))
        return sway

    def locate(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return position along the axis and signed distance from the centre line, float64, of each point."""
        cos, sin = np.cos(self.angle), np.sin(self.angle)
        along = (x - self.x) * cos + (y - self.y) * sin
        offset = (y - self.y) * cos - (x - self.x) * sin
        # The line is smooth: a table with a step of two units is exact to a hundredth of a pixel.
        table = np.arange(along.min() - 4, along.max() + 4, 2.0)
        sway = self.sway(table)
        stretch = 1 / np.hypot(1, np.gradient(sway, 2.0))
        across = (offset - np.interp(along, table, sway)) * np.interp(along, table, stretch)
        return along, across

    def along(self, x: float, y: float) -> float:
        """Return the position of one point along the axis."""
        return float((x - self.x) * np.cos(self.angle) + (y - self.y) * np.sin(self.angle))

    def distance(self, x: float, y: float) -> float:
        """Return the distance of one point from the centre line."""
        along = self.along(x, y)
        before, here, after = self.sway(np.array([along - 1, along, along + 1]))
        offset = (y - self.y) * np.cos(self.angle) - (x - self.x) * np.sin(self.angle) - here
        return float(abs(offset) / np.hypot(1, (after - before) / 2))

    def at(self, along: float, across: float = 0.0) -> tuple[float, float, float]:
        """Return the point `(x, y)` at a position along and across the course, and the heading in radians."""
        near = self.sway(np.array([along - 0.5, along, along + 0.5]))
        heading = self.angle + float(np.arctan(near[2] - near[0]))
        cos, sin = np.cos(self.angle), np.sin(self.angle)
        x = self.x + along * cos - near[1] * sin - across * np.sin(heading)
        y = self.y + along * sin + near[1] * cos + across * np.cos(heading)
        return float(x), float(y), heading


@dataclass(frozen=True)
class Rectangle:
    """Outline of a building or vehicle from above. `tone` (0 to 1) selects its colour."""

    x: float
    y: float
    angle: float
    length: float
    width: float
    height: float = 0.0
    tone: float = 0.0


@dataclass(frozen=True)
class Wood:
    """A wood that covers part of a road: roughly an ellipse with semi-axes `length` and `width`."""

    x: float
    y: float
    angle: float
    length: float
    width: float


@dataclass(frozen=True)
class Parcels:
    """Strips of parcels in a rotated frame. Tables are indexed by strip and by parcel in the strip."""

    angle: float
    strips: np.ndarray  # (K + 1,) borders of the strips
    widths: np.ndarray  # (K,) width of the parcels of a strip
    shifts: np.ndarray  # (K,) start of the first parcel of a strip, in parcels
    chance: np.ndarray  # (K, J) in [0, 1): decides the use of a parcel
    looks: np.ndarray  # (K, J, 4) in [0, 1): hue, brightness, row spacing, row direction


@dataclass(frozen=True)
class Layout:
    """A scene before painting. Positions are in world units; a side has `extent` of them."""

    size: int
    zoom: float
    parcels: Parcels
    channel: Course
    roads: tuple[Course, ...]
    farmyard: tuple[float, float, float]  # x, y, direction
    woods: tuple[Wood, ...]
    buildings: tuple[Rectangle, ...]
    vehicles: tuple[Rectangle, ...]
    sun: tuple[float, float]  # azimuth and elevation, radians

    @property
    def extent(self) -> float:
        return self.size / self.zoom


def draw_layout(rng: np.random.Generator, size: int) -> Layout:
    """Draw the layout of a scene of `size` x `size` pixels."""
    zoom = rng.uniform(0.88, 1.2)
    extent = size / zoom
    parcels = _draw_parcels(rng, extent)
    channel = _draw_channel(rng, extent)
    roads: list[Course] = []
    for _ in range(round(np.sqrt(extent) / 8)):  # one at 128 pixels, two at 256, four at 1024
        roads.append(_draw_road(rng, extent, channel, roads))
    farmyard = _draw_farmyard(rng, extent, channel, roads)
    woods = tuple(_draw_wood(rng, extent, road) for road in roads)
    buildings = _draw_buildings(rng, extent, parcels, channel, roads, farmyard)
    vehicles = _draw_vehicles(rng, extent, roads, woods)
    sun = (rng.uniform(0, 2 * np.pi), np.deg2rad(rng.uniform(38, 62)))
    return Layout(size, zoom, parcels, channel, tuple(roads), farmyard, woods, buildings, vehicles, sun)


def _draw_parcels(rng: np.random.Generator, extent: float) -> Parcels:
    reach = 1.5 * extent  # covers the diagonal of the scene at any angle
    steps = rng.uniform(62, 105, int(2 * reach / 62) + 2)
    strips = np.cumsum(steps) - reach
    count = len(strips) - 1
    across = int(2 * reach / 60) + 2
    return Parcels(
        angle=rng.uniform(0, np.pi),
        strips=strips,
        widths=rng.uniform(60, 120, count),
        shifts=rng.uniform(0, 1, count),
        chance=rng.random((count, across)),
        looks=rng.random((count, across, 4)),
    )


def _on_the_rim(rng: np.random.Generator, extent: float, inset: float) -> tuple[float, float]:
    """Draw a point on a square `inset` inside the edge, in a uniform direction from the centre."""
    angle = rng.uniform(0, 2 * np.pi)
    cos, sin = np.cos(angle), np.sin(angle)
    reach = (extent / 2 - inset) / max(abs(cos), abs(sin))
    return extent / 2 + reach * cos, extent / 2 + reach * sin


def _draw_channel(rng: np.random.Generator, extent: float) -> Course:
    """Draw a channel from its head, near the edge, through the middle and out on the other side."""
    x, y = _on_the_rim(rng, extent, HEAD_RADIUS - 4)
    angle = np.arctan2(extent / 2 - y, extent / 2 - x) + rng.uniform(-0.35, 0.35)
    bends = _draw_bends(rng, (rng.uniform(5, 14), rng.uniform(1, 3)))
    return Course(x, y, angle, rng.uniform(32, 38), bends)


def _draw_bends(
    rng: np.random.Generator, amplitudes: tuple[float, float]
) -> tuple[tuple[float, float, float], ...]:
    wavelengths = (rng.uniform(170, 300), rng.uniform(70, 110))
    phases = (rng.uniform(0, 2 * np.pi), rng.uniform(0, 2 * np.pi))
    return tuple(zip(amplitudes, wavelengths, phases, strict=True))


def _draw_road(rng: np.random.Generator, extent: float, channel: Course, others: list[Course]) -> Course:
    """Draw a road across the scene, away from the channel's head and at a wide angle to other courses."""

    def propose() -> Course:
        angle = rng.uniform(0, 2 * np.pi)
        x, y = rng.uniform(0.15, 0.85, 2) * extent
        bends = _draw_bends(rng, (rng.uniform(0, 7), rng.uniform(0, 0.8)))
        return Course(x, y, angle, rng.uniform(21, 24), bends)

    def room(road: Course) -> float:
        clearance = road.distance(channel.x, channel.y) - HEAD_RADIUS - 12
        turn = min(abs(np.sin(road.angle - other.angle)) for other in [channel, *others])
        return min(clearance, 0.0) + 60 * min(turn - 0.7, 0.0)

    return max((propose() for _ in range(20)), key=room)


def _draw_farmyard(
    rng: np.random.Generator, extent: float, channel: Course, roads: list[Course]
) -> tuple[float, float, float]:
    """Draw a farmyard near the edge, in any direction, away from water and roads if there is room."""

    def room(place: tuple[float, float]) -> float:
        clearance = [road.distance(*place) - 10 for road in roads]
        clearance.append(channel.distance(*place) - 19)
        clearance.append(np.hypot(place[0] - channel.x, place[1] - channel.y) - HEAD_RADIUS)
        return min(min(clearance) - FARMYARD_RADIUS, 0.0)

    places = [_on_the_rim(rng, extent, FARMYARD_RADIUS - 4) for _ in range(20)]
    return (*max(places, key=room), rng.uniform(0, np.pi))


def _draw_wood(rng: np.random.Generator, extent: float, road: Course) -> Wood:
    """Draw a wood that covers a stretch of the road."""
    along = road.along(extent / 2, extent / 2)
    x, y, heading = road.at(along + rng.uniform(-0.35, 0.35) * extent, rng.uniform(-10, 10))
    return Wood(x, y, heading, rng.uniform(20, 34), rng.uniform(22, 40))


def _draw_buildings(
    rng: np.random.Generator,
    extent: float,
    parcels: Parcels,
    channel: Course,
    roads: list[Course],
    farmyard: tuple[float, float, float],
) -> tuple[Rectangle, ...]:
    """Draw hamlets of separate houses, away from water, roads, the farmyard and the channel's head."""
    buildings: list[Rectangle] = []
    hamlets = max(1, round((extent / 180) ** 2))
    places = np.zeros(
        (14 * hamlets, 2)
    )  # of the buildings so far; an array, because large scenes have thousands
    for _ in range(hamlets):
        centre = rng.uniform(0.1, 0.9, 2) * extent
        angle = parcels.angle + rng.choice([0.0, np.pi / 2])
        for _ in range(14):
            x, y = centre + rng.normal(0, 30, 2)
            box = Rectangle(
                x, y, angle, rng.uniform(24, 36), rng.uniform(17, 22), rng.uniform(4, 7), rng.uniform(0, 1)
            )
            free = (
                bool((np.hypot(*(places[: len(buildings)] - (x, y)).T) > 31).all())
                and all(road.distance(x, y) > 30 for road in roads)
                and channel.distance(x, y) > 40
                and np.hypot(x - farmyard[0], y - farmyard[1]) > FARMYARD_RADIUS + 18
                and np.hypot(x - channel.x, y - channel.y) > HEAD_RADIUS + 24
            )
            if free:
                places[len(buildings)] = x, y
                buildings.append(box)
    return tuple(buildings)


def _draw_vehicles(
    rng: np.random.Generator,
    extent: float,
    roads: list[Course],
    woods: tuple[Wood, ...],
) -> tuple[Rectangle, ...]:
    """Draw cars and lorries on both lanes, none of them under trees."""
    vehicles: list[Rectangle] = []
    for road in roads:
        along = road.along(extent / 2, extent / 2) - 0.7 * extent
        end = along + 1.4 * extent
        while along < end:
            lorry = rng.random() < 0.45
            length = rng.uniform(28, 36) if lorry else rng.uniform(17, 20)
            along += length + rng.exponential(26)
            side = rng.choice([-1.0, 1.0])
            x, y, heading = road.at(along, side * road.width * 0.25)
            hidden = any(
                np.hypot(x - wood.x, y - wood.y) < max(wood.length, wood.width) + 8 for wood in woods
            )
            tone = rng.random()
            if not hidden:
                vehicles.append(Rectangle(x, y, heading, length, 9.6, 3.4 if lorry else 1.6, tone))
    return tuple(vehicles)
