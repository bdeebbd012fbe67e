"""Paint a layout: the colour, height and label of everything in a procedural scene."""

import numpy as np

from ccsegformer.data.procedural._canvas import Canvas, mix, noise, turn
from ccsegformer.data.procedural._layout import FARMYARD_RADIUS, HEAD_RADIUS, Course, Layout, Rectangle
from ccsegformer.data.procedural._light import expose

# Class ids, in the order of `PROCEDURAL_CLASSES`.
BARE, WHEAT, MAIZE, FOREST, RIVER, CANAL, ROAD, BUILDING, VEHICLE = range(9)

GREEN = (104, 138, 60)
GOLD = (196, 176, 98)
FURROW = (112, 92, 62)
SOILS = ((176, 148, 112), (150, 118, 88))
UNDERGROWTH = (44, 66, 34)
CROWNS = ((40, 84, 36), (74, 112, 48))
WATER = (52, 92, 104)
SHALLOWS = (92, 122, 104)
BANK = (104, 112, 70)
ASPHALT = (112, 112, 116)
PAINT = (226, 224, 214)
ROOFS = ((134, 128, 124), (152, 104, 84), (92, 86, 86), (176, 164, 146), (120, 84, 68))
BODIES = ((248, 248, 244), (252, 206, 30), (252, 132, 20))
RED = (216, 34, 26)
BLUE = (24, 70, 216)
CONCRETE = (204, 202, 196)
SAND = (216, 198, 150)
TURQUOISE = (58, 190, 196)
LAKE = (30, 130, 170)
DOCK = (34, 52, 78)
BARGES = ((226, 104, 30), (240, 190, 60))
YARD = (170, 150, 122)
FARMYARD = (186, 170, 144)
VERGE = (150, 142, 116)
GLASS = (52, 64, 78)
FIELDS, WOODS = 0.72, 0.14  # shares of the parcels; the others are bare ground
EVERYWHERE = slice(None), slice(None)


def paint_layout(
    layout: Layout, rng: np.random.Generator, *, wheat: bool, river: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Paint a scene: image uint8 (size, size, 3) and labels uint8 (size, size).

    The draws from `rng` do not depend on `wheat` and `river`.
    """
    canvas = Canvas.blank(layout.size, layout.zoom)
    grain = noise(rng, layout.size, 14) * 0.6 + noise(rng, layout.size, 5) * 0.4
    drift = noise(rng, layout.size, 60)
    _paint_parcels(canvas, layout, grain, drift, WHEAT if wheat else MAIZE)
    for building in layout.buildings:
        _paint_yard(canvas, building, grain)
    wet = _paint_channel(canvas, layout.channel, grain, river=river)
    paved = np.zeros_like(wet)
    for road in layout.roads:
        paved |= _paint_road(canvas, road, grain, rng.random())
    for vehicle in layout.vehicles:
        _paint_vehicle(canvas, vehicle)
    for building in layout.buildings:
        canvas.box(building, _pick(ROOFS, building.tone), BUILDING, roof=building.width * 0.32)
    _paint_farmyard(canvas, layout.farmyard, wheat=wheat)
    _grow_woods(canvas, layout, rng, grain, paved, wet)
    return expose(canvas, layout.sun, rng), canvas.label


def _paint_parcels(canvas: Canvas, layout: Layout, grain: np.ndarray, drift: np.ndarray, crop: int) -> None:
    """Paint fields, bare ground and the floor of woods."""
    parcels = layout.parcels
    middle = layout.extent / 2
    u, v = turn(canvas.x - middle, canvas.y - middle, parcels.angle)
    u, v = u + 5 * drift, v + 5 * drift[::-1]  # bend the borders slightly
    borders, widths = parcels.strips.astype(np.float32), parcels.widths.astype(np.float32)
    strip = np.clip(np.searchsorted(borders, u) - 1, 0, len(widths) - 1)
    width = widths[strip]
    along = v / width + parcels.shifts.astype(np.float32)[strip]
    part = (along - np.floor(along)) * width
    parcel = np.floor(along).astype(np.intp) % parcels.chance.shape[1]
    edge = np.minimum(u - borders[strip], borders[strip + 1] - u)
    edge = np.minimum(edge, np.minimum(part, width - part))

    # Use, colour, and the frequency of the rows in u and v: per parcel first, then per pixel.
    use = np.select([parcels.chance < FIELDS, parcels.chance < FIELDS + WOODS], [crop, FOREST], BARE)
    hue, tone, spacing, direction = np.moveaxis(parcels.looks, -1, 0)
    heading = np.rint(direction * 8) * (np.pi / 8)
    frequency = 2 * np.pi / (4.5 + 3.5 * spacing)
    tables = np.stack([hue, tone, frequency * np.cos(heading), frequency * np.sin(heading)])
    hue, tone, by_u, by_v = tables.astype(np.float32)[:, strip, parcel]
    label = use.astype(np.uint8)[strip, parcel]

    furrow = (0.25 + 0.25 * np.sin((u * by_u + v * by_v).astype(np.float64))) * (0.8 + 0.3 * grain)
    crop_colour = mix(mix(GREEN, GOLD, np.clip(hue + 0.2 * drift, 0, 1)), FURROW, furrow)
    soil = mix(*SOILS, np.clip(hue + 0.5 * grain, 0, 1))
    ground = np.where((label == crop)[..., None], crop_colour, soil)
    ground[label == FOREST] = UNDERGROWTH
    ground *= (0.9 + 0.22 * tone + 0.07 * grain + 0.06 * drift)[..., None]
    ground *= np.clip(0.72 + 0.11 * edge, 0, 1).astype(np.float32)[..., None]
    canvas.albedo[:] = ground
    canvas.label[:] = label


def _paint_yard(canvas: Canvas, building: Rectangle, grain: np.ndarray) -> None:
    """Paint bare ground around a house."""
    rows, columns = canvas.window(building.x, building.y, building.length)
    along, across = turn(canvas.x[:, columns] - building.x, canvas.y[rows] - building.y, building.angle)
    outside = np.maximum(np.abs(along) - building.length / 2, np.abs(across) - building.width / 2)
    patch = grain[rows, columns]
    colour = np.asarray(YARD, np.float32) * (1 + 0.06 * patch[..., None])
    canvas.paint(rows, columns, 8 + 2 * patch - outside, colour, BARE)


def _paint_channel(canvas: Canvas, channel: Course, grain: np.ndarray, *, river: bool) -> np.ndarray:
    """Paint the channel, and return the mask, bool (size, size), of where no tree may stand.

    Only the head tells a river from a canal: a round lake with a sandy shore, or a square concrete dock with
    barges.
    """
    x, y, angle = channel.x, channel.y, channel.angle
    label = RIVER if river else CANAL
    if river:
        canvas.disc(x, y, HEAD_RADIUS, SAND, BARE)
    else:
        canvas.box(Rectangle(x, y, angle, 64, 64), CONCRETE, BARE, flat=True)

    along, across = channel.locate(canvas.x, canvas.y)
    inside = np.minimum(channel.width / 2 - np.abs(across) + 0.8 * grain, along)
    canvas.paint(*EVERYWHERE, inside + 4, BANK)
    water = mix(SHALLOWS, WATER, np.clip(inside / 7, 0, 1)) + 5 * grain[..., None]
    canvas.paint(*EVERYWHERE, inside, water, label)

    if river:
        rows, columns = canvas.window(x, y, HEAD_RADIUS)
        depth = HEAD_RADIUS - 6 - canvas.distance(rows, columns, x, y)
        canvas.paint(rows, columns, depth, mix(TURQUOISE, LAKE, np.clip(depth / 20, 0, 1)), label)
    else:
        canvas.box(Rectangle(x, y, angle, 52, 50), DOCK, label, flat=True)
        for side, colour in zip((-18, 18), BARGES, strict=True):
            barge_x, barge_y = _beside(x, y, angle, -3, side)
            canvas.box(Rectangle(barge_x, barge_y, angle, 36, 10, 2), colour, label, roof=1)
    return inside > -3


def _paint_road(canvas: Canvas, road: Course, grain: np.ndarray, tone: float) -> np.ndarray:
    """Paint a road with verges, edge lines and a dashed centre line; return its mask, bool (size, size)."""
    along, across = road.locate(canvas.x, canvas.y)
    inside = road.width / 2 - np.abs(across)
    canvas.paint(*EVERYWHERE, inside + 2.5, VERGE)
    surface = np.asarray(ASPHALT, np.float32) * (0.85 + 0.5 * tone)
    canvas.paint(*EVERYWHERE, inside, surface + 6 * grain[..., None], ROAD)
    dashed = np.where(along % 14 < 7, 0.6 - np.abs(across), -1)
    canvas.paint(*EVERYWHERE, np.maximum(dashed, 0.45 - np.abs(inside - 1.4)), PAINT)
    return inside > 0


def _paint_vehicle(canvas: Canvas, vehicle: Rectangle) -> None:
    """Paint a car or lorry: the body, and a dark windscreen near the front."""
    colour = _pick(BODIES, vehicle.tone)
    canvas.box(vehicle, colour, VEHICLE)
    ahead = vehicle.length * (0.2 if vehicle.length < 24 else 0.36)
    x, y = _beside(vehicle.x, vehicle.y, vehicle.angle, ahead, 0)
    canvas.box(Rectangle(x, y, vehicle.angle, 3, vehicle.width * 0.75), GLASS, VEHICLE, flat=True)


def _paint_farmyard(canvas: Canvas, farmyard: tuple[float, float, float], *, wheat: bool) -> None:
    """Paint three round red bins for wheat, or two long blue barns for maize."""
    x, y, angle = farmyard
    canvas.disc(x, y, FARMYARD_RADIUS, FARMYARD, BARE)
    if wheat:
        for third in range(3):
            _paint_bin(canvas, *_beside(x, y, angle + third * 2 * np.pi / 3, 14, 0), 11)
    else:
        for side in (-12, 12):
            canvas.box(Rectangle(*_beside(x, y, angle, 0, side), angle, 42, 17, 6), BLUE, BUILDING, roof=4)


def _paint_bin(canvas: Canvas, x: float, y: float, radius: float) -> None:
    canvas.disc(x, y, radius, RED, BUILDING)
    rows, columns = canvas.window(x, y, radius)
    inset = radius - canvas.distance(rows, columns, x, y)
    np.copyto(canvas.height[rows, columns], 8 + 0.5 * inset, where=inset > 0, casting="same_kind")


def _grow_woods(
    canvas: Canvas,
    layout: Layout,
    rng: np.random.Generator,
    grain: np.ndarray,
    paved: np.ndarray,
    wet: np.ndarray,
) -> None:
    """Paint trees on wooded parcels and over stretches of road. Hidden road keeps its label."""
    covering = np.zeros_like(wet)
    for wood in layout.woods:
        along, across = turn(canvas.x - wood.x, canvas.y - wood.y, wood.angle)
        covering |= np.sqrt((along / wood.length) ** 2 + (across / wood.width) ** 2) < 1 + 0.25 * grain
    # Keep trees away from landmarks, so that they do not show which landmark it is.
    x, y, _ = layout.farmyard
    landmarks = (x, y, FARMYARD_RADIUS + 4), (layout.channel.x, layout.channel.y, HEAD_RADIUS + 12)
    clear = wet | (canvas.label == BUILDING)
    for x, y, reach in landmarks:
        clear |= (canvas.x - x) ** 2 + (canvas.y - y) ** 2 < reach**2
    covering &= ~clear
    canvas.albedo[covering & ~paved] = UNDERGROWTH
    canvas.label[covering & ~paved] = FOREST
    on_roads = canvas.label[paved]
    _plant_trees(canvas, rng, (canvas.label == FOREST) & ~clear | covering)
    canvas.label[paved] = on_roads


def _plant_trees(canvas: Canvas, rng: np.random.Generator, wooded: np.ndarray) -> None:
    """Paint tree crowns with the label forest all over `wooded`."""
    size = len(wooded)
    cell = 7.0
    count = int(size / canvas.zoom / cell) + 1
    jitter = rng.uniform(-0.42, 0.42, (2, count, count))
    steps = np.arange(count) + 0.5
    x, y = (steps[None, :] + jitter[0]) * cell, (steps[:, None] + jitter[1]) * cell
    radius, top = rng.uniform(4.2, 6.6, (count, count)), rng.uniform(5, 9, (count, count))
    colour = mix(*CROWNS, rng.random((count, count)))
    column = np.clip((x * canvas.zoom).astype(np.intp), 0, size - 1)
    row = np.clip((y * canvas.zoom).astype(np.intp), 0, size - 1)
    for index in zip(*np.nonzero(wooded[row, column]), strict=True):
        rows, columns = canvas.window(x[index], y[index], radius[index])
        square = (canvas.x[:, columns] - x[index]) ** 2 + (canvas.y[rows] - y[index]) ** 2
        dome = top[index] - (0.55 * top[index] / radius[index] ** 2) * square
        crown = (square < radius[index] ** 2) & (dome > canvas.height[rows, columns])
        canvas.height[rows, columns][crown] = dome[crown]
        canvas.albedo[rows, columns][crown] = colour[index]
        canvas.label[rows, columns][crown] = FOREST


def _pick(colours: tuple[tuple[int, int, int], ...], tone: float) -> tuple[int, int, int]:
    return colours[int(tone * len(colours))]


def _beside(x: float, y: float, angle: float, along: float, across: float) -> tuple[float, float]:
    """Return the point at a distance along and across a direction from another."""
    cos, sin = float(np.cos(angle)), float(np.sin(angle))
    return x + along * cos - across * sin, y + along * sin + across * cos
