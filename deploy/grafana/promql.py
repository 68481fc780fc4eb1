"""The few shapes of PromQL that the panels are made of. `where` are label matchers, `by` label names."""

EVERY = "$__rate_interval"
RANGE = "$__range"


def rate(metric: str, where: str = "", by: str = "", over: str = EVERY) -> str:
    """Of a counter, a second."""
    return total(f"rate({selected(metric, where)}[{over}])", by)


def increase(metric: str, where: str = "", by: str = "", over: str = EVERY) -> str:
    """Of a counter, in `over`."""
    return total(f"increase({selected(metric, where)}[{over}])", by)


def growth(gauge: str, where: str = "", over: str = EVERY) -> str:
    """Of a gauge that every gateway exports alike, above its least in `over`: what falls and rises again counts."""
    found = selected(gauge, where)
    return f"max({found} - min_over_time({found}[{over}]))"


def quantile(share: float, histogram: str, where: str = "", by: str = "", over: str = EVERY) -> str:
    """`share` of 0 to 1; NaN while nothing is observed."""
    labels = f"le, {by}" if by else "le"
    return f"histogram_quantile({share:g}, {rate(f'{histogram}_bucket', where, labels, over)})"


def mean(histogram: str, where: str = "", by: str = "") -> str:
    return f"{rate(f'{histogram}_sum', where, by)} / {rate(f'{histogram}_count', where, by)}"


def share(counter: str, part: str, where: str = "", by: str = "") -> str:
    """Of what `counter` counts, the share that `part` matches as well: 0 where nothing does, NaN without any."""
    whole = rate(counter, where, by)
    return f"({rate(counter, f'{where},{part}' if where else part, by)} or 0 * {whole}) / {whole}"


def buckets(histogram: str, where: str = "") -> str:
    """For a heat map: observations of each bucket between two points."""
    return increase(f"{histogram}_bucket", where, "le")


def total(expression: str, by: str = "") -> str:
    return f"sum by ({by}) ({expression})" if by else f"sum({expression})"


def selected(metric: str, where: str = "") -> str:
    return f"{metric}{{{where}}}" if where else metric
