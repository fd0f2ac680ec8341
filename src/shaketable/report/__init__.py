"""Reports: one model, written as `report.json`, shown as a page and on the terminal.

    report = Report(verb="evaluate", title="...", summary=["..."], verdict="pass", headline=[rate_metric("...", Rate(5, 9))])
    write_json(report, "out/report.json"); write_html(report, "out/report.html"); print_report(report, Console())

Jinja2, Plotly and Rich are imported when a page or a terminal's view is made, not before.
"""

from .document import read_json as read_json
from .document import same as same
from .document import schema as schema
from .document import to_json as to_json
from .document import write_json as write_json
from .html import render as render
from .html import write_html as write_html
from .model import Chart as Chart
from .model import Finding as Finding
from .model import Hashes as Hashes
from .model import Picture as Picture
from .model import Report as Report
from .model import Section as Section
from .model import Series as Series
from .model import Table as Table
from .model import Volatile as Volatile
from .model import verdict_of as verdict_of
from .pictures import amplified as amplified
from .pictures import picture as picture
from .provenance import elapsed_since as elapsed_since
from .provenance import environment as environment
from .terminal import print_report as print_report
from .values import Estimate as Estimate
from .values import Metric as Metric
from .values import estimate as estimate
from .values import mean_metric as mean_metric
from .values import number_metric as number_metric
from .values import rate_metric as rate_metric
