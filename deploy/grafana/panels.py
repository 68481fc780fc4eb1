"""One constructor for each kind of panel, and one for a dashboard; every panel says its unit and what it means."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from grafana_foundation_sdk.builders import common as common_builders
from grafana_foundation_sdk.builders import dashboard as builders
from grafana_foundation_sdk.builders import heatmap as heatmap_builders
from grafana_foundation_sdk.builders import prometheus, stat, timeseries
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.cog.variants import Dataquery
from grafana_foundation_sdk.models import common, dashboard, heatmap
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

Panel = timeseries.Panel | stat.Panel | heatmap_builders.Panel

HEIGHT = 8
STAT_HEIGHT = 4
TOKENS_PER_SECOND = "suffix: token/s"
DATASOURCE = dashboard.DataSourceRef(type_val="prometheus", uid="${datasource}")
GOOD, WARNING, BAD, NEUTRAL = "green", "orange", "red", "text"
Steps = Sequence[tuple[float | None, str]]
"""(from, colour); the first is from None, and is also the colour of a panel without a value."""
FAULTS: Steps = ((None, NEUTRAL), (0, GOOD), (1, BAD))
"""Of what should be 0."""


@dataclass(frozen=True)
class Query:
    """An expression, and the name of the series that it gives; `{{label}}` in the name is the label's value."""

    expression: str
    legend: str


@dataclass(frozen=True)
class Row:
    """Panels under one heading; the widths of a line of panels sum to 24."""

    title: str
    panels: Sequence[Panel]


def lines(
    title: str,
    meaning: str,
    unit: str,
    *queries: Query,
    width: int = 8,
    stacked: bool = False,
    most: float | None = None,
    limits: Sequence[float] = (),
) -> timeseries.Panel:
    """Values over time. `most` is the top of the axis; a dashed line is drawn at each of `limits`."""
    panel = timeseries.Panel().min(0).line_width(1).fill_opacity(30 if stacked else 5)
    panel.show_points(common.VisibilityMode.NEVER)
    panel.legend(
        common_builders.VizLegendOptions()
        .display_mode(common.LegendDisplayMode.TABLE)
        .placement(common.LegendPlacement.BOTTOM)
        .show_legend(True)
        .calcs(["lastNotNull", "max"])
    )
    panel.tooltip(
        common_builders.VizTooltipOptions().mode(common.TooltipDisplayMode.MULTI).sort(common.SortOrder.DESCENDING)
    )
    if stacked:
        panel.stacking(common_builders.StackingConfig().mode(common.StackingMode.NORMAL))
    if most is not None:
        panel.max(most)
    if limits:
        steps = [(None, GOOD), *((limit, BAD) for limit in limits)]
        panel.thresholds(_thresholds(steps))
        panel.thresholds_style(
            common_builders.GraphThresholdsStyleConfig().mode(common.GraphThresholdsStyleMode.DASHED)
        )
    _describe(panel, title, meaning, unit, width, HEIGHT)
    return panel.targets(_targets(queries))


def number(
    title: str,
    meaning: str,
    unit: str,
    query: Query,
    *,
    width: int = 4,
    steps: Steps = ((None, NEUTRAL),),
    no_value: str = "unknown",
) -> stat.Panel:
    """The value at the end of the time shown, large; `no_value` where nobody exports it then, whoever did before."""
    panel = stat.Panel().no_value(no_value).thresholds(_thresholds(steps))
    panel.color_scheme(builders.FieldColor().mode(dashboard.FieldColorModeId.THRESHOLDS))
    panel.graph_mode(common.BigValueGraphMode.NONE)
    panel.reduce_options(common_builders.ReduceDataOptions().calcs(["lastNotNull"]).values(False))
    _describe(panel, title, meaning, unit, width, STAT_HEIGHT)
    return panel.targets(_targets([query], instant=True))


def heat(title: str, meaning: str, unit: str, expression: str, *, width: int = 12) -> heatmap_builders.Panel:
    """The buckets of a histogram over time; `expression` gives one series for each `le`."""
    panel = heatmap_builders.Panel().calculate(False).cell_gap(1)
    panel.color(
        heatmap_builders.HeatmapColorOptions()
        .mode(heatmap.HeatmapColorMode.SCHEME)
        .scheme("Oranges")
        .exponent(0.5)
        .steps(64)
    )
    panel.filter_values(heatmap_builders.FilterValueRange().le(1e-9))
    panel.y_axis(heatmap_builders.YAxisConfig().unit(unit).axis_placement(common.AxisPlacement.LEFT))
    panel.cell_values(heatmap_builders.CellValues().unit("short"))
    panel.show_value(common.VisibilityMode.NEVER)
    _describe(panel, title, meaning, unit, width, HEIGHT)
    return panel.targets(_targets([Query(expression, "{{le}}")], PromQueryFormat.HEATMAP))


def board(
    name: str,
    about: str,
    rows: Sequence[Row],
    variables: Sequence[Builder[dashboard.VariableModel]] = (),
) -> dict[str, Any]:
    """The dashboard as Grafana's JSON model; its address is `/d/loramem-<name>`."""
    built = builders.Dashboard(f"loramem: {name}").uid(uid(name)).description(about).tags(["loramem"]).readonly()
    built.time("now-1h", "now").refresh("30s").timezone("browser").tooltip(dashboard.DashboardCursorSync.CROSSHAIR)
    built.link(
        builders.DashboardLink("loramem")
        .type(dashboard.DashboardLinkType.DASHBOARDS)
        .tags(["loramem"])
        .keep_time(True)
        .include_vars(True)
    )
    built.with_variable(builders.DatasourceVariable("datasource").label("Data source").type("prometheus"))
    for variable in variables:
        built.with_variable(variable)
    built.annotation(_starts())
    number_of = iter(range(1, 1000))
    for row in rows:
        built.with_row(builders.Row(row.title).id(next(number_of)))
        for panel in row.panels:
            built.with_panel(panel.id(next(number_of)))
    model: dict[str, Any] = built.build().to_json()
    return model


def uid(name: str) -> str:
    return f"loramem-{name}"


def label_values(name: str, label: str, metric: str) -> builders.QueryVariable:
    """A variable that narrows panels to some values of a label; all of them at first."""
    return (
        builders.QueryVariable(name)
        .label(name.capitalize())
        .datasource(DATASOURCE)
        .query(f"label_values({metric}, {label})")
        .refresh(dashboard.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .multi(True)
        .include_all(True)
        .all_value(".*")
    )


def _starts() -> builders.AnnotationQuery:
    """Marks where a process was started again, which is what a deployment looks like, and a crash."""
    return (
        builders.AnnotationQuery()
        .name("Starts")
        .datasource(DATASOURCE)
        .enable(True)
        .icon_color("blue")
        .expr('changes(process_start_time_seconds{job=~"gateway|trainer"}[2m]) > 0')
    )


def _describe(panel: Panel, title: str, meaning: str, unit: str, width: int, height: int) -> None:
    panel.title(title).description(meaning).unit(unit).span(width).height(height).datasource(DATASOURCE)


def _targets(
    queries: Sequence[Query], shape: PromQueryFormat = PromQueryFormat.TIME_SERIES, *, instant: bool = False
) -> list[Builder[Dataquery]]:
    asked = [
        prometheus.Dataquery()
        .ref_id(chr(ord("A") + place))
        .datasource(DATASOURCE)
        .expr(query.expression)
        .legend_format(query.legend)
        .format(shape)
        for place, query in enumerate(queries)
    ]
    return [each.instant() if instant else each.range() for each in asked]


def _thresholds(steps: Steps) -> builders.ThresholdsConfig:
    return (
        builders.ThresholdsConfig()
        .mode(dashboard.ThresholdsMode.ABSOLUTE)
        .steps([dashboard.Threshold(value=value, color=color) for value, color in steps])
    )
