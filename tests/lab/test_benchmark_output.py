"""Plots show slopes and distinguish contenders."""

from ccsegformer.lab.benchmark.output import scaling_plot
from ccsegformer.lab.benchmark.tables import Measurement


def test_the_plot_shows_slopes() -> None:
    def row(side: int) -> Measurement:
        return Measurement("ours", side, side, seconds=[1e-9 * side**3], peak_mib=1e-6 * side**2)

    figure = scaling_plot({str(side): [row(side)] for side in (256, 512, 1024)}, "a title")
    [part] = figure.subfigs
    assert [text.get_text() for text in part.legends[0].get_texts()] == ["ours (1.50, 1.00)"]
    variants = {f"{name}, {side}": [row(side)] for name in ("B0", "B5") for side in (256, 512)}
    parts = scaling_plot(variants, "a title").subfigs
    assert [part.get_suptitle() for part in parts] == ["B0", "B5"]


def test_the_plot_distinguishes_contenders() -> None:
    theirs = [f"transformers{way}" for way in ("", ", channels-last", ", in OpenVINO")]
    ours = [f"{name}{way}" for name in ("efficient", "criss_cross") for way in ("", ", eager")]
    against = dict.fromkeys(ours, "transformers")
    rows = [
        Measurement(name, 64, 64, seconds=[1.0], peak_mib=1.0, against=against.get(name))
        for name in (*theirs, *ours)
    ]
    [part] = scaling_plot({"64 x 64": rows}, "a title").subfigs
    lines = part.axes[0].lines
    looks = {
        name: (line.get_color(), line.get_marker()) for name, line in zip(theirs + ours, lines, strict=True)
    }
    assert len(set(looks.values())) == len(rows)
    grey = {looks[name][0] for name in theirs}
    assert len(grey) == 1
    assert looks["efficient"][0] == looks["efficient, eager"][0] not in grey
    assert looks["efficient"][0] != looks["criss_cross"][0] not in grey
