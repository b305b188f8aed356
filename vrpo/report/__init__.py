"""The page of a run: one HTML file that shows what a run did, and opens from the disk without a network."""

from pathlib import Path


def write_page(output_dir: str | Path) -> Path:
    """Write the page of a run into its directory and return its path; see `vrpo.report.page.write_page`."""
    from vrpo.report import page  # imports plotly, which a recipe need not wait for

    return page.write_page(output_dir)
