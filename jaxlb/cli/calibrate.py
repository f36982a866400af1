"""jaxlb calibrate: a server described by what it was measured to do."""

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

from jaxlb import calibration
from jaxlb.cli import folders
from jaxlb.cli.common import Draws, console, dumps, progress
from jaxlb.stations.capacity import batching


@dataclass(frozen=True, kw_only=True)
class Calibrate(Draws):
    """Fit an inference server to measurements of it."""

    measurements: tyro.conf.Positional[Path]
    """CSV file with columns time, input, output, latency: arrival, tokens of request and answer, time until
    the last token."""
    out: Path | None = None
    """Folder for calibration.json and a picture of the fit."""
    json: bool = False
    """Print one JSON object instead of text."""

    def run(self) -> None:
        """Fit, write, print."""
        self.formats()
        measured = calibration.read_measurements(self.measurements)
        with folders.begin(self, self.out) as record:
            with progress() as advance:
                found = calibration.calibrate(*measured.values(), on_progress=advance)
            if self.out is not None:
                from jaxlb import charts

                (self.out / "calibration.json").write_text(dumps(found.as_dict()), encoding="utf-8")
                charts.save(found.plot(), self.out, "calibration", self.formats())
            record.finish(f"{found.slots} slots, {found.speed:.4g} tokens per time alone")
        if self.json:
            sys.stdout.write(dumps(found.as_dict()))
            return
        screen = console()
        for name, meaning in (
            ("speed", "output tokens per time of a request that is alone"),
            ("overhead", "n requests get n / (1 + overhead (n - 1)) of that together"),
            ("prefill_weight", "work of an input token, in output tokens"),
            ("slots", "requests at a time, others wait"),
            ("error", "mean absolute log of predicted / measured latency"),
        ):
            screen.print(f"{name:15} {getattr(found, name):10.4g}   {meaning}", highlight=False)
        for remark in found.remarks:
            screen.print(remark, style="yellow", highlight=False, soft_wrap=True)
        load = 0.75 * batching(found.overhead, found.slots)
        line = ["jaxlb", "compare", "--scenario", "inference", "--load", f"{load:.3g}", "--set"]
        line += [f"{name}={value}" for name, value in found.settings().items() if name != "discipline"]
        screen.print(f"next: {shlex.join(line)}", highlight=False, soft_wrap=True)
