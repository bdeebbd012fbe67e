"""`ccsegformer map`."""

from itertools import islice
from pathlib import Path
from typing import Annotated

import typer

from ccsegformer.cli._arguments import (
    BandsOption,
    ConfidenceOption,
    EngineOption,
    MeanOption,
    MemoryOption,
    ModelArgument,
    ModelClassesOption,
    OverlapOption,
    PrecisionOption,
    SimplifyOption,
    StdOption,
    WindowOption,
    band_numbers_or_usage_error,
    preprocessing_or_usage_error,
)

SHOWN = 20
"""Number of failed scenes that are listed."""


def map(
    model: ModelArgument,
    scenes: Annotated[
        list[str],
        typer.Argument(
            help="Scenes, folders, globs, text lists, STAC items, catalogues or search results, "
            "stac-geoparquet; local, https:// or s3://.",
            show_default=False,
        ),
    ],
    output: Annotated[str, typer.Option(help="A folder, or s3://BUCKET/PREFIX.", show_default=False)],
    asset: Annotated[
        list[str] | None,
        typer.Option(
            help="STAC asset to map. Repeat it to stack assets of one band each, in this order.",
            show_default=False,
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            help="Scenes to map at once. Default: one for two cores, or for each GPU.",
            min=1,
            show_default=False,
        ),
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(help="A Ray cluster: auto, or ray://HOST:10001.", show_default=False),
    ] = None,
    gpu_share: Annotated[float, typer.Option(help="Share of a GPU that a worker takes.")] = 1.0,
    retries: Annotated[
        int, typer.Option(help="How often to try a scene again whose server or worker failed.", min=0)
    ] = 3,
    shard: Annotated[
        str | None,
        typer.Option(help="Map every n-th scene from the i-th, from 0: i/n.", show_default=False),
    ] = None,
    polygons: Annotated[
        bool, typer.Option("--polygons", help="Also write the maps' regions, as GeoParquet.")
    ] = False,
    simplify: SimplifyOption = None,
    status: Annotated[
        bool, typer.Option("--status", help="Only say what is mapped, unfinished, failed and missing.")
    ] = False,
    scratch: Annotated[
        Path | None,
        typer.Option(
            help="Folder for maps on their way to an object store. Default: the system's.",
            show_default=False,
        ),
    ] = None,
    window: WindowOption = None,
    overlap: OverlapOption = None,
    memory: MemoryOption = "4GB",
    confidence: ConfidenceOption = False,
    classes: ModelClassesOption = None,
    bands: BandsOption = None,
    mean: MeanOption = None,
    std: StdOption = None,
    engine: EngineOption = None,
    precision: PrecisionOption = None,
) -> None:
    """Map an archive of scenes, on all cores of this machine or on a Ray cluster.

    Each scene becomes OUTPUT/scenes/NAME/NAME.tif with its STAC item. Run the same command again to go on
    after an interruption, to map new or changed scenes, and to try failed ones again.

    [bold]Examples[/bold]

      ccsegformer map runs/aerial scenes/ --output maps --polygons

      ccsegformer map unet.onnx search.json --asset B04 --asset B03 --asset B02 --output s3://bucket/maps

      ccsegformer map runs/aerial scenes.parquet --output s3://bucket/maps --address auto

      ccsegformer map runs/aerial scenes.txt --output maps --shard $SLURM_ARRAY_TASK_ID/100
    """
    if status:
        _print_status(scenes, asset or [], output)
        return
    if simplify is not None and not polygons:
        raise typer.BadParameter("is for polygons: ask for them with --polygons", param_hint="--simplify")
    from ccsegformer.archives.progress import shown
    from ccsegformer.archives.run import map_scenes, parse_shard
    from ccsegformer.data.colors import read_class_file

    results = map_scenes(
        model,
        scenes,
        output,
        assets=asset or [],
        classes=read_class_file(classes) if classes else None,
        preprocessing=preprocessing_or_usage_error(mean, std),
        bands=band_numbers_or_usage_error(bands),
        window=window,
        overlap=overlap,
        memory=memory,
        confidence=confidence,
        polygons=polygons,
        simplify=simplify,
        engine=engine,
        precision=precision,
        workers=workers,
        address=address,
        gpu_share=gpu_share,
        retries=retries,
        shard=parse_shard(shard) if shard else None,
        scratch=scratch,
    )
    total = _count(scenes, asset or [], parse_shard(shard) if shard else (0, 1))
    failed = [result for result in shown(results, total) if result.status == "failed"]
    if failed:
        listed = ", ".join(result.scene.name for result in failed[:SHOWN]) + ", ..." * (len(failed) > SHOWN)
        typer.echo(f"ccsegformer: error: {len(failed)} of the scenes failed: {listed}", err=True)
        raise typer.Exit(1)


def _count(scenes: list[str], assets: list[str], shard: tuple[int, int]) -> int:
    from ccsegformer.archives.listing import list_scenes

    index, count = shard
    return sum(1 for _ in islice(list_scenes(scenes, assets=assets), index, None, count))


def _print_status(scenes: list[str], assets: list[str], output: str) -> None:
    from ccsegformer.archives.listing import list_scenes
    from ccsegformer.archives.status import read_status
    from ccsegformer.archives.store import open_store

    found = read_status(open_store(output))
    names = {scene.name for scene in list_scenes(scenes, assets=assets)}
    failed = names & set(found.failed)
    begun = {"mapped": names & found.mapped, "unfinished": names & found.unfinished, "failed": failed}
    counts = begun | {"not begun": names.difference(*begun.values())}
    said = ", ".join(f"{len(group)} {what}" for what, group in counts.items())
    typer.echo(f"{len(names)} scenes: {said}")
    for name, reason in sorted(found.failed.items()):
        typer.echo(f"failed {name}: {reason}")
