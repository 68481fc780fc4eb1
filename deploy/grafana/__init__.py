"""Grafana dashboards as code: `python -m deploy.grafana.generate` writes what stands in `dashboards/`."""
